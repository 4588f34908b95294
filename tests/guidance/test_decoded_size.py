"""Masks and pictures at the size that a latent decodes to."""

import pytest
import torch
from inlay.guidance.decoded_size import fit_decoded, pad_or_cut


def planes(height, width):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_padded_right_and_below_or_cut_in_the_middle():
    picture = planes(120, 133)
    assert torch.equal(pad_or_cut(picture, 120, 136, 8)[..., :133], picture)
    assert torch.equal(pad_or_cut(picture, 120, 136, 8)[..., 133:], picture[..., 129:132].flip(-1))
    assert torch.equal(pad_or_cut(picture, 120, 128, 8), picture[..., 2:130])
    assert torch.equal(pad_or_cut(planes(69, 83), 64, 80, 8), planes(69, 83)[:, :, 2:66, 1:81])
    for height, width in ((120, 144), (112, 136), (104, 128), (60, 64)):
        assert pad_or_cut(picture, height, width, 8) is None


def test_the_pictures_own_mask_is_padded_or_cut_as_the_picture_is():
    mask = planes(120, 133)[:, 0]
    for width in (136, 128):
        assert torch.equal(fit_decoded(mask, 120, width, 8)[:, None], pad_or_cut(mask[:, None], 120, width, 8))


@pytest.mark.parametrize("scale", [0.5, 1, 1.5, 2])
@pytest.mark.parametrize("height, width, decoded", [(512, 517, 520), (512, 517, 512), (512, 512, 512)])
def test_a_mask_of_another_size_meets_the_same_pixels(height, width, decoded, scale):
    """A box 100 to 200 pixels from the picture's upper left corner, less the columns cut there."""
    mask = torch.zeros(1, round(height * scale), round(width * scale))
    low, high = int(100 * scale), int(200 * scale)
    mask[:, low:high, low:high] = 1
    fitted = fit_decoded(mask, height, decoded, 8)
    cut = max(width - decoded, 0) // 2
    want = torch.zeros(1, height, decoded)
    want[:, 100:200, 100 - cut : 200 - cut] = 1
    assert fitted.shape == want.shape
    off = (fitted - want).abs()
    assert off.sum() < 2 * 400 and off[:, 103:197, 103 - cut : 197 - cut].max() == 0 and off[:, 210:].max() == 0


def test_another_aspect_is_refused():
    for mask in (torch.ones(1, 64, 160), torch.ones(1, 3, 80), torch.ones(1, 400, 1)):
        with pytest.raises(ValueError, match="same aspect"):
            fit_decoded(mask, 64, 80, 8)
