"""Concepts on SDXL's two encoders and SD2's, on models made of inference tensors, and S against its formula."""

import logging
from types import SimpleNamespace

import comfy.cli_args
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models
import comfy.text_encoders.sd2_clip
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.model_base import ModelType
from inlay.host import concept_loop, concept_preview
from inlay.host import demo_models as build
from inlay.host.concept_training import learn_concept
from inlay.training.concept import ConceptSettings

IMAGES = torch.rand(1, 36, 44, 3, generator=torch.Generator().manual_seed(0))
QUICK = {"steps": 2, "accumulation": 1, "tokens": 3, "preview_every": 0}


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    monkeypatch.setattr(concept_preview, "PREVIEW_STEPS", 1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    known = [str(tmp_path / "embeddings")], {".safetensors"}
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", known)
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path


def learn(model, clip, vae, **settings):
    with torch.inference_mode():
        return learn_concept(model, clip, vae, IMAGES, "cat", ConceptSettings(**{**QUICK, **settings}))


def narrow_clip(model_class, tokenizer, widths, folder):
    """The host's CLIP of a family with random narrow encoders. widths: {clip_l: 64, ...}."""
    target = SimpleNamespace(params={}, clip=model_class, tokenizer=tokenizer)
    configs = {
        f"{name}_model_config": {**build.TEXT_CONFIG, "hidden_size": width, "intermediate_size": 2 * width}
        for name, width in widths.items()
    }
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=[str(folder / "embeddings")],
        model_options={**configs, "dtype": torch.float32},
        disable_dynamic=True,
    )
    for number, name in enumerate(widths):
        build.initialise(getattr(clip.cond_stage_model, name).transformer, number)
    return clip


def narrow_sdxl(context, pooled):
    class Narrow(comfy.supported_models.SDXL):
        unet_config = {}
        unet_extra_config = {}

    config = {
        **build.UNET_CONFIG,
        "in_channels": 4,
        "use_linear_in_transformer": True,
        "context_dim": context,
        "num_classes": "sequential",
        "adm_in_channels": pooled + 6 * 256,
    }
    supported = Narrow(config)
    supported.set_inference_dtype(torch.float32, None)
    supported.model_type = lambda *_: ModelType.EPS
    model = supported.get_model({}, "", device="cpu")
    build.initialise(model.diffusion_model, 7)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def same_as_stock(clip, learned, caplog):
    with caplog.at_level(logging.WARNING), torch.no_grad():
        caplog.clear()
        ((text, extra),) = clip.encode_from_tokens_scheduled(clip.tokenize(learned.prompt))
    assert caplog.records == []
    assert torch.equal(text, learned.conditioning[0][0])
    assert torch.equal(extra["pooled_output"], learned.conditioning[0][1]["pooled_output"])


def test_sdxl_learns_for_both_encoders(tiny, folder, caplog):
    widths = {"clip_l": 64, "clip_g": 96}
    clip = narrow_clip(comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer, widths, folder)
    start = learn(narrow_sdxl(160, 96), clip, tiny.vae, steps=1, learning_rate=1e-30)
    learned = learn(narrow_sdxl(160, 96), clip, tiny.vae, learning_rate=0.01, accumulation=2)
    vectors, first = (comfy.utils.load_torch_file(one.path) for one in (learned, start))
    assert {key: value.shape for key, value in vectors.items()} == {"clip_l": (3, 64), "clip_g": (3, 96)}
    for key in vectors:
        assert ((vectors[key] - first[key]).abs().amax(1) > 0.005).all(), key
    same_as_stock(clip, learned, caplog)


def test_sd2_learns_under_its_own_key(tiny, folder, caplog):
    module = comfy.text_encoders.sd2_clip
    clip = narrow_clip(module.SD2ClipModel, module.SD2Tokenizer, {"clip_h": 128}, folder)
    learned = learn(tiny.v_model, clip, tiny.vae)
    assert list(comfy.utils.load_torch_file(learned.path)) == ["clip_h"]
    same_as_stock(clip, learned, caplog)


@pytest.mark.parametrize("objective", ["saliency focus", "pixel"])
def test_models_as_the_hosts_loaders_make_them(folder, objective):
    with torch.inference_mode():
        model = build.build_model(build.build_unet(4, seed=1).state_dict())
        vae = build.build_vae(build.build_autoencoder(seed=5).state_dict())
        clip = build.build_text_encoder(build.build_bare_text_encoder(seed=4).state_dict())
    assert next(model.model.parameters()).is_inference()
    learned = learn(model, clip, vae, objective=objective, checkpointing=True)
    assert torch.tensor(learned.losses).isfinite().all()


def test_the_saliency_is_spins_of_the_same_forward(tiny, folder, monkeypatch):
    """S from the layer's own projections: softmax over keys, mean over heads, sum over queries, resized, at least 1."""
    attention = tiny.model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1
    taken = {}
    hooks = [
        getattr(attention, name).register_forward_hook(lambda _, __, out, name=name: taken.update({name: out.detach()}))
        for name in ("to_q", "to_k")
    ]
    plain, found = concept_loop.objective_loss, []

    def compare(objective, estimate, weight, saliency, *rest):
        q, k = (taken[name].double().unflatten(-1, (attention.heads, -1)).transpose(1, 2) for name in ("to_q", "to_k"))
        received = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(1).sum(1).reshape(1, 1, 2, 2)
        size = estimate.clean.shape[-2:]
        received = torch.nn.functional.interpolate(received, size, mode="bilinear", align_corners=False)
        found.append((saliency(), received))
        return plain(objective, estimate, weight, saliency, *rest)

    monkeypatch.setattr(concept_loop, "objective_loss", compare)
    try:
        learned = learn(tiny.model, tiny.clip, tiny.vae, steps=3, flips=False, mask_source="self-attention")
    finally:
        for hook in hooks:
            hook.remove()
    for ours, received in found:
        clear = (received - 1).abs() > 1e-5
        assert torch.equal(ours[clear], (received >= 1)[clear].float()) and clear.float().mean() > 0.8
    assert len(found) == 3
    used = torch.stack([ours for ours, _ in found]).mean(0)[0]
    assert learned.mask.mean() == pytest.approx(float(used.mean()), abs=0.1)


def test_the_live_preview_shows_the_mask_and_a_sample(tiny, folder, monkeypatch):
    shown = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **_: shown.append(args))
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.Latent2RGB)
    with_samples = learn(tiny.model, tiny.clip, tiny.vae, preview_every=1)
    sizes = [args[2][1].size for args in shown if args[2] is not None]
    assert sizes[-2:] == [(3 * 44, 36)] * 2
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.NoPreviews)
    without = learn(tiny.model, tiny.clip, tiny.vae)
    assert without.losses == with_samples.losses  # looking changes nothing
