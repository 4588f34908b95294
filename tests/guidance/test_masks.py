"""Masks from pixels to latent cells."""

import pytest
import torch
from inlay.guidance.masks import dilate, erode, fit_mask, latent_mask, progressive_masks, require_region


def box(height=64, width=72, top=10, left=20, bottom=30, right=41):
    mask = torch.zeros(1, height, width)
    mask[:, top:bottom, left:right] = 1
    return mask


def test_a_mask_of_the_pictures_size_comes_back_bit_for_bit():
    mask = torch.rand(2, 131, 97)
    assert torch.equal(fit_mask(mask, 131, 97), mask)


@pytest.mark.parametrize("shape", [(97, 131), (1, 97, 131), (1, 1, 97, 131)])
def test_every_mask_shape_of_the_host_is_taken(shape):
    assert fit_mask(torch.ones(shape), 97, 131).shape == (1, 97, 131)


@pytest.mark.parametrize("size", [(66, 49), (65, 48), (262, 194), (262, 195)])
def test_the_same_aspect_is_resized_also_when_its_sides_were_rounded(size):
    assert torch.equal(fit_mask(torch.ones(1, *size), 131, 97), torch.ones(1, 131, 97))


@pytest.mark.parametrize("size", [(64, 64), (97, 131), (131, 99)])
def test_another_aspect_is_refused(size):
    with pytest.raises(ValueError, match="same aspect"):
        fit_mask(torch.ones(1, *size), 131, 97)


def test_resizing_keeps_the_place():
    small = fit_mask(box(128, 144, 20, 40, 60, 82), 64, 72)
    assert (small - box()).abs().max() < 1e-6


def test_numbers_are_checked_and_clamped():
    assert fit_mask(torch.full((1, 8, 8), 1.5), 8, 8).max() == 1
    with pytest.raises(ValueError, match="not numbers"):
        fit_mask(torch.full((1, 8, 8), torch.nan), 8, 8)


def test_an_empty_mask_is_named():
    with pytest.raises(ValueError, match="^The mask is empty"):
        require_region(torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="Mask 2 of 3 is empty"):
        require_region(torch.stack([torch.ones(8, 8), torch.zeros(8, 8), torch.ones(8, 8)]))


def test_latent_cells_contain_the_whole_pixel_mask():
    cells = latent_mask(box(), 8, 9)
    assert cells.shape == (1, 1, 8, 9)
    back = cells[0].repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert (back >= box()).all()
    assert torch.equal(cells[0, 0].nonzero().amin(0), torch.tensor([1, 2]))
    assert torch.equal(cells[0, 0].nonzero().amax(0), torch.tensor([3, 5]))


def test_area_cover_is_the_mean():
    mask = torch.rand(2, 64, 72)
    want = mask.double().reshape(2, 8, 8, 9, 8).mean((2, 4))
    assert torch.allclose(latent_mask(mask, 8, 9, "area")[:, 0].double(), want, atol=1e-6)


def test_a_share_is_the_mean_at_the_rim_of_what_holds_a_cell_and_all_of_what_is_thin():
    mask = torch.zeros(1, 64, 72)
    mask[:, 6:36, 12:44] = 1
    shares = latent_mask(mask, 8, 9, "share")
    assert torch.equal(shares, latent_mask(mask, 8, 9, "area")) and shares[0, 0, 0, 2] == 0.25
    thin = torch.zeros(1, 64, 72)
    thin[:, 11:14, 8:64], thin[:, 40, 40] = 1, 0.6
    assert torch.equal(latent_mask(thin, 8, 9, "share"), latent_mask(thin, 8, 9))


@pytest.mark.parametrize("cover", ["any", "area", "share"])
def test_full_stays_full(cover):
    assert torch.equal(latent_mask(torch.ones(1, 136, 104), 17, 13, cover), torch.ones(1, 1, 17, 13))


def test_dilate_and_erode_are_squares():
    grown = torch.zeros(1, 64, 72)
    grown[:, 7:33, 17:44] = 1
    assert torch.equal(dilate(box(), 3), grown)
    assert torch.equal(erode(grown, 3), box())
    assert torch.equal(dilate(box(), 0), box())
    assert torch.equal(erode(torch.ones(1, 9, 9), 2), torch.ones(1, 9, 9))


def test_progressive_masks_shrink_to_the_mask():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8, 8] = 1
    masks = progressive_masks(mask, stages=3, steps=10)
    assert [int(one.sum()) for one in masks] == [49] * 3 + [25] * 3 + [9] * 3 + [1]
    assert progressive_masks(mask, stages=0, steps=2) == [mask, mask]


@pytest.mark.parametrize("radius", [1, 3, 20])
def test_a_dilation_is_the_greatest_of_its_square(radius):
    mask = torch.rand(2, 17, 23, generator=torch.Generator().manual_seed(radius))
    padded = torch.nn.functional.pad(mask, [radius] * 4, value=-1)
    side = 2 * radius + 1
    assert torch.equal(dilate(mask, radius), padded.unfold(1, side, 1).unfold(2, side, 1).amax((-1, -2)))
