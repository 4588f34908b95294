"""CLIP pairs against transformers' CLIP with the same weights, against the host's encoder, and against differences."""

import copy
import json

import comfy.clip_vision
import comfy.model_management
import pytest
import torch
from inlay.host import clip_pairs
from inlay.host.demo_clip import initialise
from inlay.host.demo_models import TEXT_CONFIG, VISION_CONFIG, build_bare_vision, build_vision
from inlay.host.gradients import differentiable_layers, gradient_phase, normalise
from torch.nn.functional import normalize


def test_text_is_projected_and_normalised_as_in_clip(tiny):
    transformers = pytest.importorskip("transformers")
    config = {key: value for key, value in TEXT_CONFIG.items()}
    oracle = transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(**config, vocab_size=49408, bos_token_id=49406, pad_token_id=49407)
    ).eval()
    weights = tiny.clip.cond_stage_model.clip_l.transformer.state_dict()
    missing, unexpected = oracle.load_state_dict(weights, strict=False)
    assert not unexpected and all("position_ids" in key for key in missing)
    tokens = torch.tensor([[token for token, _ in tiny.clip.tokenize("a red star")["l"][0]]])
    with torch.no_grad():
        want = normalize(oracle(input_ids=tokens).text_embeds, dim=-1)[0]
    ours = clip_pairs.embed_text(tiny.clip, tiny.clip_vision, "a red star")
    torch.testing.assert_close(ours, want, atol=2e-5, rtol=0)
    assert (ours - clip_pairs.embed_text(tiny.clip, tiny.clip_vision, "a blue box")).norm() > 0.01


def test_pictures_are_seen_as_clip_sees_them(tiny):
    transformers = pytest.importorskip("transformers")
    oracle = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION_CONFIG)).eval()
    missing, unexpected = oracle.load_state_dict(tiny.clip_vision.model.state_dict(), strict=False)
    assert not unexpected and all("position_ids" in key for key in missing)
    images = (torch.rand(3, 64, 64, 3) * 255).round() / 255
    mean, std = torch.tensor(tiny.clip_vision.image_mean), torch.tensor(tiny.clip_vision.image_std)
    with torch.no_grad():
        want = normalize(oracle(pixel_values=((images - mean) / std).movedim(-1, 1)).image_embeds, dim=-1)
        host = normalize(tiny.clip_vision.encode_image(images).image_embeds, dim=-1)
    ours = clip_pairs.embed_pictures(tiny.clip_vision, images, chunk=2)
    torch.testing.assert_close(ours, want, atol=2e-5, rtol=0)
    torch.testing.assert_close(ours, host, atol=1e-6, rtol=0)


def test_preprocessing_is_the_hosts_but_for_its_rounding(tiny):
    from comfy.clip_model import clip_preprocess

    images = torch.rand(2, 90, 150, 3)
    ours = clip_pairs.prepare_pictures(tiny.clip_vision, images.movedim(-1, 1), clamp=True)
    host = clip_preprocess(images, 64)
    assert ours.shape == host.shape
    assert (ours - host).abs().max() < 0.51 / 255 / 0.26
    assert clip_pairs.prepare_pictures(tiny.clip_vision, images.movedim(-1, 1), stretch=True).shape == (2, 3, 64, 64)


def test_the_gradient_under_inference_mode_is_the_difference_quotient():
    torch.manual_seed(0)
    target = normalize(torch.randn(128, dtype=torch.float64), dim=0)
    with torch.inference_mode():
        vision = build_vision(build_bare_vision(seed=8).state_dict())
        picture = torch.rand(1, 3, 80, 64, dtype=torch.float64)
        direction = torch.randn(1, 3, 80, 64, dtype=torch.float64)

        def score(x):
            return clip_pairs.embed_prepared(vision.model, clip_pairs.prepare_pictures(vision, x))[0] @ target

        with gradient_phase(vision.model), differentiable_layers(vision.model):
            leaf = picture.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(score(leaf), leaf)
        assert torch.is_inference_mode_enabled()
        quotient = (score(picture + 1e-5 * direction) - score(picture - 1e-5 * direction)) / 2e-5
    analytic = (gradient * direction).sum()
    assert analytic.abs() > 1e-3
    torch.testing.assert_close(analytic, quotient, rtol=1e-6, atol=1e-9)


def test_hooks_are_gone_even_after_an_error(tiny):
    with pytest.raises(KeyError), differentiable_layers(tiny.clip_vision.model):
        raise KeyError
    assert not any(module._forward_pre_hooks for module in tiny.clip_vision.model.modules())


def test_normalise_makes_ordinary_frozen_tensors_and_keeps_the_values():
    with torch.inference_mode():
        layer = torch.nn.BatchNorm1d(4)
        layer.running_mean.fill_(3)
    weight = layer.weight
    normalise(layer)
    assert not layer.weight.is_inference() and not layer.weight.requires_grad
    assert not layer.running_mean.is_inference() and (layer.running_mean == 3).all()
    assert torch.equal(layer.weight, weight)
    kept = layer.weight
    normalise(layer)
    assert layer.weight is kept


def with_projection(tiny, weight):
    """The tiny CLIP with another projection, the original left alone."""
    clip = copy.copy(tiny.clip)
    clip.cond_stage_model = copy.deepcopy(tiny.clip.cond_stage_model)
    clip.cond_stage_model.clip_l.transformer.text_projection.weight = torch.nn.Parameter(weight, requires_grad=False)
    return clip


@pytest.mark.parametrize(
    "weight",
    [
        torch.full((128, 128), 1e30),
        torch.zeros(128, 128),
        torch.full((128, 128), torch.nan),
        torch.eye(128),
        torch.full((128, 128), 1e-41),
        torch.cat([torch.rand(64, 128), torch.zeros(64, 128)]),
    ],
    ids=["garbage", "zero", "nan", "identity", "denormal", "half a page"],
)
def test_a_projection_that_was_never_loaded_is_refused(tiny, weight):
    with pytest.raises(ValueError, match="without its text_projection"):
        clip_pairs.embed_text(with_projection(tiny, weight), tiny.clip_vision, "a star")


def test_another_width_is_refused_and_the_file_is_named(tiny):
    clip = with_projection(tiny, torch.rand(768, 128))
    with pytest.raises(ValueError, match=r"\(768\) and the vision model \(128\) are no CLIP pair"):
        clip_pairs.require_pair(clip, tiny.clip_vision)
    vision = copy.copy(tiny.clip_vision)
    vision.model = torch.nn.Module()
    vision.model.visual_projection = torch.nn.Linear(4, 768)
    with pytest.raises(ValueError, match="clip-vit-large-patch14"):
        clip_pairs.require_pair(tiny.clip, vision)
    vision.model.visual_projection = None
    with pytest.raises(ValueError, match="nothing|no space in common"):
        clip_pairs.require_pair(tiny.clip, vision)


def test_no_encoder_and_a_long_text_say_so(tiny):
    with pytest.raises(ValueError, match="no text encoder"):
        clip_pairs.embed_text(None, tiny.clip_vision, "a star")
    with pytest.raises(ValueError, match="Shorten"):
        clip_pairs.embed_text(tiny.clip, tiny.clip_vision, "star " * 90)


def test_the_text_encoder_is_left_as_it_was(tiny, encode):
    before = encode("a star")[0]
    encoder = tiny.clip.cond_stage_model.clip_l
    clip_pairs.embed_text(tiny.clip, tiny.clip_vision, "a star")
    assert (encoder.layer, encoder.layer_idx, encoder.return_projected_pooled) == encoder.options_default
    after = encode("a star")[0]
    assert torch.equal(before[0], after[0]) and torch.equal(before[1]["pooled_output"], after[1]["pooled_output"])


def test_sdxl_is_scored_with_the_encoder_that_fits(tiny):
    """Two encoders in one CLIP: the one of the vision model's width, projected once."""
    clip = copy.copy(tiny.clip)
    clip.cond_stage_model = torch.nn.Module()
    clip.cond_stage_model.clip_l = copy.deepcopy(tiny.clip.cond_stage_model.clip_l)
    clip.cond_stage_model.clip_l.transformer.text_projection.weight = torch.nn.Parameter(torch.rand(768, 128))
    clip.cond_stage_model.clip_g = copy.deepcopy(tiny.clip.cond_stage_model.clip_l)
    projection = tiny.clip.cond_stage_model.clip_l.transformer.text_projection.weight
    clip.cond_stage_model.clip_g.transformer.text_projection.weight = projection
    # SDXL's clip_g returns its pooled output projected unless asked not to.
    clip.cond_stage_model.clip_g.return_projected_pooled = True
    clip.cond_stage_model.clip_g.options_default = ("last", None, True)
    clip.tokenize = lambda text: {"l": tiny.clip.tokenize(text)["l"], "g": tiny.clip.tokenize(text)["l"]}
    clip.load_model = lambda tokens: tiny.clip.patcher
    ours = clip_pairs.embed_text(clip, tiny.clip_vision, "a star")
    torch.testing.assert_close(ours, clip_pairs.embed_text(tiny.clip, tiny.clip_vision, "a star"))


def test_pictures_that_are_no_numbers_are_refused(tiny):
    with pytest.raises(ValueError, match="not numbers"):
        clip_pairs.embed_pictures(tiny.clip_vision, torch.full((1, 64, 64, 3), torch.nan))
    assert comfy.model_management.get_torch_device().type == "cpu"


@pytest.fixture
def siglip(tmp_path):
    """SigLIP2 NaFlex as the host builds it: pictures of any size of up to 16 patches, and no pooling."""
    config = {**VISION_CONFIG, "model_type": "siglip2_vision_model", "image_size": -1, "num_patches": 16}
    del config["projection_dim"]
    path = tmp_path / "siglip.json"
    path.write_text(json.dumps(config))
    vision = comfy.clip_vision.ClipVisionModel(str(path))
    vision.model.float()
    initialise(vision.model, 0)
    return vision


def test_an_encoder_of_any_size_is_shown_the_square_that_its_patches_fill(siglip):
    prepared = clip_pairs.prepare_pictures(siglip, torch.rand(2, 3, 40, 60))
    assert prepared.shape == (2, 3, 32, 32)
    with torch.no_grad():
        assert siglip.model(pixel_values=prepared, intermediate_output=-2)[1].shape == (2, 16, 128)


def test_an_encoder_without_an_embedding_of_the_whole_says_so(siglip):
    with pytest.raises(ValueError, match="no embedding of a whole picture"):
        clip_pairs.embed_pictures(siglip, torch.rand(1, 40, 40, 3))
