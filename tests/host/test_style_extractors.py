"""What style is read from, against the networks taken apart by hand, with files as users have them."""

import copy
import json
import tempfile
from pathlib import Path

import pytest
import torch
import torchvision
from inlay.guidance.style_loss import GramLoss
from inlay.host.style_extractors import clip_vision_extractor, fit_size, vae_extractor, vgg_extractor
from inlay.host.style_guidance_patch import StyleOptions, guide_by_style
from torch.nn.functional import relu

PICTURES = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))
RELUS = (1, 6, 11, 20, 29)


def write_features(path, net="vgg19"):
    """torchvision's keys with random weights, halved."""
    from safetensors.torch import save_file

    with torch.device("meta"):
        shapes = getattr(torchvision.models, net)(weights=None).state_dict()
    generator = torch.Generator().manual_seed(0)
    # One short stretch, repeated: millions of draws would take longer than the test.
    pool = torch.randn(100_003, generator=generator)
    weights = {}
    for key, value in shapes.items():
        if key.startswith("features") and value.ndim:
            values = pool.repeat(value.numel() // len(pool) + 1)[: value.numel()].reshape(value.shape)
            weights[key] = (values / max(value[0].numel() / 2, 100) ** 0.5).half()
    path.parent.mkdir(exist_ok=True)
    save_file(weights, path)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """An empty models folder of the user's."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "vgg", raising=False)
    Path(tmp_path, "vgg").mkdir()
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    folder_paths.folder_names_and_paths.pop("vgg", None)
    folder_paths.filename_list_cache.clear()


def test_vgg_is_torchvisions_and_its_loss_the_formulas(models):
    from safetensors.torch import load_file

    write_features(models / "vgg" / "vgg19.safetensors")
    with torch.inference_mode():
        extractor = vgg_extractor(0)
    with torch.device("meta"):
        net = torchvision.models.vgg19(weights=None).features
    weights = load_file(models / "vgg" / "vgg19.safetensors")
    net.load_state_dict({key[len("features.") :]: value.double() for key, value in weights.items()}, assign=True)
    mean = torch.tensor([0.485, 0.456, 0.406]).double()[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225]).double()[:, None, None]

    def grams(picture):
        """Of one picture (3, H, W), float64, the relus out of place."""
        x, found = ((picture - mean) / deviation)[None], []
        for index, layer in enumerate(net[:30]):
            x = relu(x) if isinstance(layer, torch.nn.ReLU) else layer(x)
            if index in RELUS:
                f = x[0].flatten(1)
                found.append(torch.einsum("in,jn->ij", f, f) / f.numel())
        return found

    style = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(1))
    wanted = grams(style[0].double())
    x = PICTURES.double().requires_grad_()
    values = torch.stack([sum(((a - b) ** 2).sum() for a, b in zip(grams(one), wanted, strict=True)) for one in x])
    (want,) = torch.autograd.grad(values.sum(), x)
    ours = PICTURES.clone().requires_grad_()
    got = GramLoss(extractor, style, balanced=extractor.balanced)(ours)
    (gradient,) = torch.autograd.grad(got.sum(), ours)
    torch.testing.assert_close(got.double(), values.detach(), rtol=1e-4, atol=0)
    assert (gradient.double() - want).norm() < 1e-4 * want.norm() and want.norm() > 0


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_vgg_guides_in_the_sampler(models, tiny, sample, mode):
    """As the executor runs it: the user's weights are inference tensors."""
    write_features(models / "vgg" / "vgg19.safetensors")
    style = PICTURES[:1].movedim(1, -1) ** 3
    with torch.inference_mode():
        options = StyleOptions(features="vgg", mode=mode, feature_size=64)
        guided = guide_by_style(tiny.model, tiny.vae, style, None, None, options)
        latent, plain = (sample(model, steps=1, size=(8, 10)) for model in (guided, tiny.model))
    assert latent.isfinite().all() and (latent - plain).norm() > 0.01 * plain.norm()


def test_the_vaes_encoder_by_hand(tiny):
    encoder = tiny.vae.first_stage_model.encoder
    with torch.no_grad():
        h, want = encoder.conv_in(PICTURES * 2 - 1), []
        for level in encoder.down:
            for block in level.block:
                h = block(h, None)
            want.append(h)
            h = level.downsample(h) if hasattr(level, "downsample") else h
        want.append(encoder.mid.block_2(encoder.mid.attn_1(encoder.mid.block_1(h, None)), None))
        got = vae_extractor(tiny.vae, tiny.vae.patcher, 0)(PICTURES)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert not any(module._forward_hooks for module in encoder.modules())


def test_clip_vision_by_hand(tiny):
    """The norms' outputs at a third and two thirds of four blocks, and before them, without the class token."""
    net = tiny.clip_vision.model.vision_model
    squeezed = torch.nn.functional.interpolate(PICTURES, (64, 64), mode="bicubic", antialias=True)
    mean, deviation = (
        torch.tensor(values)[:, None, None] for values in (tiny.clip_vision.image_mean, tiny.clip_vision.image_std)
    )
    from comfy.ldm.modules.attention import optimized_attention_for_device

    attention = optimized_attention_for_device(torch.device("cpu"), small_input=True)
    with torch.no_grad():
        x, want = net.pre_layrnorm(net.embeddings((squeezed - mean) / deviation)), []
        for index, layer in enumerate(net.encoder.layers):
            if index in (0, 1, 2):
                want.append(layer.layer_norm1(x.clone())[:, 1:].transpose(1, 2).reshape(2, -1, 8, 8))
            x = layer(x.clone(), None, attention)
        got = clip_vision_extractor(tiny.clip_vision)(PICTURES)
    assert len(got) == 3
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_dino_and_siglip_give_their_patches_too():
    """Class and register tokens are left out, whatever their number, and the gradient arrives."""
    import comfy.clip_vision
    from inlay.host import demo_models as build
    from inlay.host.gradients import gradient_phase

    config = {**build.VISION_CONFIG, "num_hidden_layers": 2, "layer_norm_eps": 1e-6, "use_swiglu_ffn": False}
    # Old hosts' DINO takes 37 x 37 patches and nothing else.
    for kind, start, size in (("siglip_vision_model", 0, {}), ("dinov2", 1, {"image_size": 518, "patch_size": 14})):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "vision.json")
            path.write_text(json.dumps({**config, **size, "model_type": kind}))
            vision = comfy.clip_vision.ClipVisionModel(str(path))
        vision.model.float()
        build.initialise(vision.model, 0)
        seen = []
        norm = next(m for n, m in vision.model.named_modules() if n.endswith(("layer_norm1", "norm1")))
        handle = norm.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
        with gradient_phase(vision.model):
            pictures = PICTURES.clone().requires_grad_()
            maps = clip_vision_extractor(vision)(pictures)
            (gradient,) = torch.autograd.grad(maps[-1].square().sum(), pictures)
        handle.remove()
        patches = seen[0][:, start:]
        side = int(patches.shape[1] ** 0.5)
        assert side * side == patches.shape[1] and torch.equal(maps[0].flatten(2).mT, patches), kind
        assert gradient.isfinite().all() and gradient.norm() > 0


def test_the_size_that_features_see():
    assert fit_size(PICTURES, 0) is PICTURES and fit_size(PICTURES, 512) is PICTURES
    assert fit_size(torch.rand(1, 3, 100, 200), 128).shape[-2:] == (64, 128)
    assert fit_size(torch.rand(1, 3, 40, 400), 100).shape[-2:] == (32, 320)
    assert fit_size(torch.rand(1, 3, 16, 24), 0).shape[-2:] == (32, 48)


def test_bad_files_say_so(models):
    vgg = models / "vgg"

    def refuse(sentence):
        import folder_paths

        folder_paths.filename_list_cache.clear()
        with pytest.raises(ValueError, match=sentence) as caught:
            vgg_extractor(0)
        assert "\n" not in str(caught.value)

    refuse("No file under models/vgg holds torchvision's vgg19")
    (vgg / "vgg19.pth").write_bytes(b"pickled")
    refuse("models/vgg/vgg19.pth is pickled and is not opened. Convert it once")
    write_features(vgg / "another.safetensors", "alexnet")
    refuse("vgg19.pth is pickled")
    (vgg / "vgg19.pth").unlink()
    refuse("No file under models/vgg holds torchvision's vgg19")
    (vgg / "another.safetensors").unlink()
    write_features(vgg / "bn.safetensors", "vgg19_bn")
    refuse("models/vgg/bn.safetensors is of another network than torchvision's vgg19 .vgg19_bn is another one")
    (vgg / "bn.safetensors").write_bytes(b"pickled, renamed" * 20)
    refuse("models/vgg/bn.safetensors is damaged, or a pickled one that was only renamed to .safetensors")


def test_an_encoder_without_levels_is_refused(tiny):
    class Small(torch.nn.Module):
        pass

    patcher = copy.copy(tiny.vae.patcher)
    patcher.model = Small()
    with pytest.raises(ValueError, match="encoder of this VAE .Small. has no levels"):
        vae_extractor(tiny.vae, patcher, 0)
    with pytest.raises(ValueError, match="There is no CLIP_VISION"):
        clip_vision_extractor(None)
