"""InlayMeasure through its own execute, with feature nets from files as a user has them."""

import copy
import math
from pathlib import Path

import pytest
import torch
from inlay.host import feature_nets, measuring
from inlay.host.clip_pairs import embed_text
from inlay.host.measuring import NAMES, Subject
from inlay.nodes.measure import Measure
from torch.nn.functional import normalize


def measure(images, region="whole", **options):
    with torch.inference_mode():
        *values, text = Measure.execute(images, region, **options).args
    return dict(zip(NAMES, values, strict=True)), text


@pytest.fixture
def pictures():
    return torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255


@pytest.fixture
def models(tmp_path, monkeypatch):
    """An empty models folder of the user's, with lpips and vgg in it."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    for name in ("lpips", "vgg"):
        monkeypatch.delitem(folder_paths.folder_names_and_paths, name, raising=False)
        Path(tmp_path, name).mkdir()
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    for name in ("lpips", "vgg"):
        folder_paths.folder_names_and_paths.pop(name, None)
    folder_paths.filename_list_cache.clear()


def save_lpips(folder, split):
    """AlexNet's LPIPS as users have it: one file, or torchvision's backbone and the linear weights apart."""
    import safetensors.torch
    from torchmetrics.functional.image.lpips import _LPIPS

    torch.manual_seed(0)
    net = _LPIPS(pretrained=True, net="alex", pnet_rand=True)
    linear = {
        key: value.contiguous()
        for key, value in net.state_dict().items()
        if key.startswith("lin") and "lins" not in key
    }
    backbone = {f"net.{key}": value.contiguous() for key, value in net.net.state_dict().items()}
    if split:
        torchvision = {"features." + key.split(".", 2)[2]: value for key, value in backbone.items()}
        safetensors.torch.save_file(torchvision, folder / "lpips" / "alexnet.safetensors")
        backbone = {}
    safetensors.torch.save_file({**backbone, **linear}, folder / "lpips" / "lpips_alex.safetensors")
    return net


def test_only_what_ran_has_a_value(pictures, models):
    values, text = measure(pictures)
    assert all(math.isnan(value) for value in values.values())
    assert text.count("not computed. ") == len(NAMES) and "the mean of 2 pictures" in text
    assert "needs the original" in text and "needs DINOv2 at clip_vision; nothing is there" in text


def test_against_the_original(pictures, models):
    values, text = measure(pictures, original=pictures)
    assert values["mse"] == 0 and values["psnr"] == math.inf and values["ssim"] == pytest.approx(1)
    assert math.isnan(values["lpips"]) and "No file under models/lpips" in text


@pytest.mark.parametrize("split", [False, True], ids=["one file", "two files"])
def test_lpips_with_the_users_files(pictures, models, split):
    net = save_lpips(models, split)
    other = pictures.flip(0)
    values, text = measure(pictures, original=other, lpips_net="alex")
    want = net(pictures.movedim(-1, 1), other.movedim(-1, 1), normalize=True).mean()
    assert values["lpips"] == pytest.approx(float(want), rel=1e-4) and "(alex)" in text
    assert "models/lpips holds LPIPS's linear weights for vgg" in measure(pictures, original=other)[1]


@pytest.mark.parametrize("net, least", [("alex", 31), ("vgg", 16)])
def test_pictures_too_small_for_lpips_are_its_own_reason(models, net, least):
    """At the least side the net itself gives a value; one pixel below nothing else is lost."""
    import safetensors.torch
    import torchvision

    kind, widths = {"alex": ("alexnet", (64, 192, 384, 256, 256)), "vgg": ("vgg16", (64, 128, 256, 512, 512))}[net]
    weights = {f"lin{stage}.model.1.weight": torch.rand(1, width, 1, 1) for stage, width in enumerate(widths)}
    with torch.device("meta"):
        shapes = getattr(torchvision.models, kind)(weights=None).features.state_dict()
    weights |= {f"features.{key}": torch.randn(value.shape) * 0.01 for key, value in shapes.items()}
    safetensors.torch.save_file(weights, models / "lpips" / f"{net}.safetensors")
    for side, ran in ((least, True), (least - 1, False)):
        pictures = torch.rand(1, side, 40, 3)
        values, text = measure(pictures, original=1 - pictures, lpips_net=net)
        assert math.isfinite(values["lpips"]) == ran and math.isfinite(values["psnr"])
    assert f"lpips: not computed. LPIPS with {net} needs pictures of at least {least} x {least} pixels." in text


def test_an_original_that_is_no_picture_is_the_reason(tiny, pictures, models):
    original = pictures.clone()
    original[0, 0, 0, 0] = torch.nan
    values, text = measure(pictures, original=original, clip_vision=tiny.clip_vision, reference=pictures)
    assert all(math.isnan(values[name]) for name in ("psnr", "ssim", "mse", "lpips")) and values["clip_i"] > 0
    assert text.count("The original holds values that are not numbers. Check the node that made it.") == 4
    assert "too small" not in text


def test_a_pickled_net_is_refused_with_the_way_out(pictures, models):
    Path(models, "lpips", "alex.pth").write_bytes(b"")
    _, text = measure(pictures, original=pictures, lpips_net="alex")
    assert "alex.pth is pickled and is not opened. Convert it once: python -c" in text and "'alex.safetensors'" in text


def test_another_net_under_vgg_is_not_taken(models):
    import safetensors.torch

    safetensors.torch.save_file({"features.0.weight": torch.rand(4, 3, 3, 3)}, models / "vgg" / "other.safetensors")
    with pytest.raises(ValueError, match="No file under models/vgg holds torchvision's vgg19"):
        feature_nets.load_features("vgg19")


def test_a_net_with_other_layers_and_a_damaged_file_say_so(pictures, models):
    """vgg16_bn has as many convolutions as vgg16, with other keys and layers between."""
    import folder_paths
    import safetensors.torch
    import torchvision

    with torch.device("meta"):
        shapes = torchvision.models.vgg16_bn(weights=None).state_dict()
    backbone = {key: torch.zeros(value.shape) for key, value in shapes.items() if key.startswith("features.")}
    safetensors.torch.save_file(backbone, models / "vgg" / "vgg16_bn.safetensors")
    widths = (64, 128, 256, 512, 512)
    linear = {f"lin{stage}.model.1.weight": torch.rand(1, width, 1, 1) for stage, width in enumerate(widths)}
    safetensors.torch.save_file(linear, models / "lpips" / "linear.safetensors")
    text = measure(pictures, original=pictures)[1]
    assert "models/vgg/vgg16_bn.safetensors is of another network than torchvision's vgg16 (vgg16_bn is anoth" in text
    Path(models, "lpips", "linear.safetensors").write_bytes(b"pickled, renamed" * 20)
    folder_paths.filename_list_cache.clear()
    with pytest.raises(ValueError, match="models/lpips/linear.safetensors is damaged, or a pickled one") as caught:
        feature_nets.load_lpips("vgg")
    assert "\n" not in str(caught.value)


def test_clip_and_its_words(tiny, pictures, models):
    reference = pictures[1:]
    values, text = measure(pictures, clip_vision=tiny.clip_vision, clip=tiny.clip, text="a star", reference=reference)
    with torch.no_grad():
        embeddings = normalize(tiny.clip_vision.encode_image(pictures).image_embeds, dim=-1)
    words = embed_text(tiny.clip, tiny.clip_vision, "a star")
    assert values["clip_i"] == pytest.approx(float((embeddings @ embeddings[1]).mean()), abs=1e-5)
    assert values["clip_t"] == pytest.approx(float((embeddings @ words).mean()), abs=1e-5)
    assert math.isnan(values["dino"]) and "clip_vision_model is there" in text
    assert math.isnan(values["fid"]) and "needs at least 129 on each side" in text


def test_dino_is_called_dino_only(tiny, pictures, models):
    dino = copy.copy(tiny.clip_vision)
    dino.model_type = "dinov2"
    values, text = measure(pictures, clip_vision=dino, clip=tiny.clip, text="a star", reference=pictures[:1])
    assert values["dino"] > 0 and "(dinov2)" in text
    assert math.isnan(values["clip_i"]) and math.isnan(values["clip_t"])


def test_a_wrong_pair_is_a_reason_and_not_a_number(tiny, pictures, models):
    clip = copy.copy(tiny.clip)
    clip.cond_stage_model = copy.deepcopy(tiny.clip.cond_stage_model)
    clip.cond_stage_model.clip_l.transformer.text_projection.weight.data.fill_(1e30)
    values, text = measure(pictures, clip_vision=tiny.clip_vision, clip=clip, text="a star")
    assert math.isnan(values["clip_t"]) and "without its text_projection" in text


def test_regions(tiny, pictures, models):
    mask = torch.zeros(1, 64, 64)
    mask[:, 8:40, 8:40] = 1
    edited = torch.where(mask[..., None] > 0, 1 - pictures, pictures)
    options = {"original": pictures, "mask": mask, "clip_vision": tiny.clip_vision, "reference": pictures[:1]}
    outside, _ = measure(edited, "outside", **options)
    inside, text = measure(edited, "inside", **options)
    assert outside["mse"] == 0 and inside["mse"] > 0.1 and "inside the mask" in text
    whole, _ = measure(edited, **options)
    assert whole["mse"] == pytest.approx(inside["mse"] * 32 * 32 / 64 / 64)
    assert outside["clip_i"] == pytest.approx(measure(pictures, "outside", **options)[0]["clip_i"], abs=1e-6)
    assert inside["clip_i"] != pytest.approx(measure(pictures, "inside", **options)[0]["clip_i"], abs=1e-6)


def test_a_large_sample_has_a_frechet_distance(tiny, models):
    many = torch.rand(130, 16, 16, 3)
    values, text = measure(many, clip_vision=tiny.clip_vision, reference=many)
    assert values["fid"] == pytest.approx(0, abs=1e-3) and "not comparable with Inception's FID" in text


def test_bad_input_says_so(pictures, models):
    for sentence, options in {
        "do not fit each other": {"original": pictures[:, :32]},
        "needs a mask": {"region": "inside"},
        "nothing inside": {"region": "inside", "mask": torch.zeros(1, 64, 64)},
        "3 masks and 2 pictures": {"mask": torch.ones(3, 64, 64)},
    }.items():
        with pytest.raises(ValueError, match=sentence):
            measure(pictures, **options)
    with pytest.raises(ValueError, match="not numbers"):
        measure(pictures * torch.nan)


def test_an_original_on_another_device_comes_to_the_pictures(pictures):
    """One without data stands for it: moving it is refused, and not moving it passes."""
    subject = Subject(pictures, pictures.to("meta"), None, None, None, "", None, "whole", "vgg")
    with pytest.raises(NotImplementedError, match="copy out of meta"):
        measuring.measure(subject)
