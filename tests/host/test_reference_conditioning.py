"""References as conditioning: the encoder's own arithmetic, pairing, cropping, refusals."""

import pytest
import torch
from inlay.guidance.crops import crop_square, square_around
from inlay.guidance.reference import ReferenceEncoder
from inlay.host.reference_conditioning import reference_conditioning
from torch import nn


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    projection = nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 128))
    return ReferenceEncoder(projection, torch.randn(1, 1, 128), 128).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def references():
    return torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))


def test_the_token_is_the_projected_class_token(tiny, encoder, references):
    positive, negative = reference_conditioning(encoder, tiny.clip_vision, references)
    mean, std = (torch.tensor(getattr(tiny.clip_vision, name)).double() for name in ("image_mean", "image_std"))
    tower = tiny.clip_vision.model.vision_model
    with torch.no_grad():
        pixels = ((references.double() - mean) / std).movedim(-1, 1).float()
        hidden = tower.embeddings(pixels)
        hidden = tower.encoder(tower.pre_layrnorm(hidden), mask=None)[0][:, 0].double()
        norm, (inner, linear) = tower.post_layernorm, encoder.projection

        def layer_norm(x, layer):
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + layer.eps).sqrt()
            return x * layer.weight.double() + layer.bias.double()

        wanted = layer_norm(layer_norm(hidden, norm), inner) @ linear.weight.double().T + linear.bias.double()
    assert positive[0][0].shape == (2, 1, 128)
    assert (positive[0][0][:, 0] - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert torch.equal(negative[0][0], encoder.null.expand(2, 1, 128))
    # What SDXL reads besides; a row for each reference.
    assert all(torch.equal(told[0][1]["pooled_output"], torch.zeros(2, 1280)) for told in (positive, negative))


def test_each_reference_keeps_its_own_row(tiny, encoder, references):
    both = reference_conditioning(encoder, tiny.clip_vision, references)[0][0][0]
    for row, one in enumerate(references):
        alone = reference_conditioning(encoder, tiny.clip_vision, one[None])[0][0][0]
        assert torch.allclose(both[row], alone[0], atol=1e-5)
    assert (both[0] - both[1]).abs().max() > 1e-3


def test_it_works_inside_the_executors_inference_mode_and_samples(tiny, encoder, references, sample):
    with torch.inference_mode():
        positive, negative = reference_conditioning(encoder, tiny.clip_vision, references[:1])
    told = sample(tiny.inpaint_model, positive=positive, negative=negative)
    other = reference_conditioning(encoder, tiny.clip_vision, references[1:])[0]
    assert told.isfinite().all()
    assert not torch.equal(told, sample(tiny.inpaint_model, positive=other, negative=negative))


def test_a_mask_cuts_the_thing_out(tiny, encoder):
    large = torch.zeros(1, 96, 160, 3)
    thing = torch.rand(40, 40, 3, generator=torch.Generator().manual_seed(2))
    large[0, 30:70, 100:140] = thing
    mask = torch.zeros(1, 96, 160)
    mask[0, 30:70, 100:140] = 1
    cut = large[:, 27:73, 97:143]
    by_mask = reference_conditioning(encoder, tiny.clip_vision, large, mask)[0][0][0]
    by_hand = reference_conditioning(encoder, tiny.clip_vision, cut)[0][0][0]
    whole = reference_conditioning(encoder, tiny.clip_vision, large)[0][0][0]
    assert torch.allclose(by_mask, by_hand, atol=1e-4)
    assert (by_mask - whole).abs().max() > 1e-2


def test_squares_beyond_the_picture_repeat_its_border():
    picture = torch.arange(12.0).view(1, 1, 3, 4) / 12
    assert square_around({"x": 1, "y": 0, "width": 2, "height": 1}, 2.0) == (0, -2, 4)
    cut = crop_square(picture, (-1, 0, 3), 3)
    assert torch.equal(cut[0, 0, :, 0], picture[0, 0, :, 0]) and torch.equal(cut[0, 0, :, 1:], picture[0, 0, :, :2])


@pytest.mark.parametrize("width, kind, words", [(768, "clip_vision_model", "128 wide"), (128, "dinov2", "dinov2")])
def test_parts_that_do_not_go_together_are_refused(tiny, references, monkeypatch, width, kind, words):
    other = ReferenceEncoder(nn.Linear(width, 128), torch.zeros(1, 1, 128), width)
    monkeypatch.setattr(tiny.clip_vision, "model_type", kind)
    with pytest.raises(ValueError, match=words):
        reference_conditioning(other, tiny.clip_vision, references)


def test_an_empty_mask_and_numbers_that_are_none_are_refused(tiny, encoder, references):
    with pytest.raises(ValueError, match="empty"):
        reference_conditioning(encoder, tiny.clip_vision, references, torch.zeros(1, 64, 64))
    with pytest.raises(ValueError, match="not numbers"):
        reference_conditioning(encoder, tiny.clip_vision, references * float("nan"))
    with pytest.raises(ValueError, match="3 masks for 2"):
        reference_conditioning(encoder, tiny.clip_vision, references, torch.ones(3, 64, 64))
