"""Where CLIP guidance looks, in pictures whose sides are no multiple of the VAE's cell, and in masks of other sizes."""

import pytest
import torch
from inlay.host.clip_place import Place

from .clip_guidance_setup import MODES, execute
from .gradient_guidance_setup import fixture_loaded, fixture_run  # noqa: F401


def rectangle(height, width, top, left):
    mask = torch.zeros(1, height, width)
    mask[:, top : top + 30, left : left + 35] = 1
    return mask


@MODES
def test_pictures_that_vae_encode_cut(loaded, run, mode):
    """69 x 83 pixels become 8 x 10 cells, two rows and one column short at the upper left corner."""
    mask, image = rectangle(69, 83, 15, 20), torch.rand(1, 69, 83, 3)
    for options in ({}, {"background_weight": 5.0}):
        given = [{"image": image, "mask": mask}, {"image": image[:, 2:66, 1:81], "mask": mask[:, 2:66, 1:81]}]
        one, other = (run(execute(loaded, mode=mode, **options, **its), steps=1) for its in given)
        assert torch.equal(one, other)
    assert torch.equal(
        run(execute(loaded, mode=mode, mask=mask), steps=1),
        run(execute(loaded, mode=mode, mask=mask[:, 2:66, 1:81]), steps=1),
    )


def test_a_mask_of_twice_the_size_without_the_picture(loaded, run):
    """120 x 130 pixels, padded to 120 x 136."""
    mask = rectangle(120, 130, 45, 90)
    twice = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    one, other = (run(execute(loaded, mask=its), steps=1, size=(15, 17)) for its in (mask, twice))
    assert torch.equal(one, other)


def test_a_padded_picture_keeps_its_mask_in_place(tiny):
    mask = rectangle(120, 130, 40, 95)
    place = Place(tiny.vae, mask, torch.rand(1, 120, 130, 3))
    pictures = torch.zeros(2, 3, 120, 136)
    assert torch.equal(place.mask(pictures)[:, :, :130], mask.expand(2, -1, -1))
    assert place.picture(pictures).shape == (2, 3, 120, 136)


def test_a_mask_that_was_cut_away_is_empty(tiny):
    mask = torch.zeros(1, 69, 80)
    mask[:, 68] = 1
    with pytest.raises(ValueError, match="empty"):
        Place(tiny.vae, mask, None).mask(torch.zeros(1, 3, 64, 80))
