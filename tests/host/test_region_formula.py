"""Every block of a guided UNet against the formula in float64, whatever acts inside and outside."""

import pytest
import torch
from inlay.host.region_patches import Region, guide_region

from .region_reference import inside, largest_error, recorded

LEFT, RIGHT = torch.zeros(128, 144), torch.zeros(128, 144)
LEFT[30:90, 10:90] = 1
RIGHT[50:128, 60:144] = 1
TOLERANCE = 3e-6


@pytest.fixture
def text():
    def make(seed, length=77):
        return torch.randn(1, length, 128, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def error(sample):
    """Samples a step with that model and gives the largest relative error of a block."""

    def measure(model, wanted, masked_output=False, **options):
        with recorded(model) as calls:
            sample(model, steps=1, **options)
        assert len(calls) >= 9
        return largest_error(calls, wanted, masked_output)

    return measure


def test_the_reference_is_the_block(tiny, error):
    assert error(tiny.model, lambda _, __, grid, own: ([], own)) < TOLERANCE


def test_zero_outside(tiny, error):
    def wanted(index, picture, grid, own):
        return [(inside(LEFT, grid), own)], None

    guided = guide_region(tiny.model, [Region(LEFT)])
    assert error(guided, wanted) < TOLERANCE
    assert error(guided, lambda *a: (wanted(*a)[0], a[3])) > 1e-3  # the reference tells the modes apart


def test_null_outside_on_both_rows(tiny, error, text):
    null = text(1)

    def wanted(index, picture, grid, own):
        return [(inside(LEFT, grid), own)], null[0]

    assert error(guide_region(tiny.model, [Region(LEFT)], "null", null_text=null), wanted) < TOLERANCE


def test_text_outside_is_the_positive_rows_only(tiny, error, text):
    elsewhere = text(2, 154)

    def wanted(index, picture, grid, own):
        return [(inside(LEFT, grid), own)], elsewhere[0] if index == 0 else own

    assert error(guide_region(tiny.model, [Region(LEFT)], "text", outside_text=elsewhere), wanted) < TOLERANCE


def test_text_outside_falls_back_to_the_samplers_own(tiny, error, text):
    there = text(3)

    def wanted(index, picture, grid, own):
        return [(inside(LEFT, grid), there[0] if index == 0 else own)], own

    assert error(guide_region(tiny.model, [Region(LEFT, there)], "text"), wanted) < TOLERANCE


def test_chained_regions_keep_their_texts_and_overlaps_average(tiny, error, text):
    first, second = text(4, 77), text(5, 231)

    def wanted(index, picture, grid, own):
        texts = (first[0], second[0]) if index == 0 else (own, own)
        return [(inside(LEFT, grid), texts[0]), (inside(RIGHT, grid), texts[1])], None

    guided = guide_region(guide_region(tiny.model, [Region(LEFT, first)]), [Region(RIGHT, second)])
    assert error(guided, wanted) < TOLERANCE
    together = guide_region(tiny.model, [Region(LEFT, first), Region(RIGHT, second)])
    assert error(together, wanted) < TOLERANCE


def test_two_masks_with_the_samplers_text(tiny, error):
    def wanted(index, picture, grid, own):
        return [(inside(LEFT, grid), own), (inside(RIGHT, grid), own)], None

    assert error(guide_region(guide_region(tiny.model, [Region(LEFT)]), [Region(RIGHT)]), wanted) < TOLERANCE


def test_one_mask_for_each_picture_of_the_batch(tiny, error, text):
    there, masks = text(6), (LEFT, RIGHT)

    def wanted(index, picture, grid, own):
        return [(inside(masks[picture], grid), there[0] if index == 0 else own)], None

    assert error(guide_region(tiny.model, [Region(torch.stack(masks), there)]), wanted, batch=2) < TOLERANCE


def test_one_text_for_each_picture_of_the_batch(tiny, error, text):
    there = torch.cat([text(7), text(8)])

    def wanted(index, picture, grid, own):
        return [(inside(LEFT, grid), there[picture] if index == 0 else own)], None

    assert error(guide_region(tiny.model, [Region(LEFT, there)]), wanted, batch=2) < TOLERANCE


def test_one_row_at_a_time(tiny, error):
    def wanted(index, picture, grid, own):
        return [(inside(LEFT, grid), own)], None

    assert error(guide_region(tiny.model, [Region(LEFT)]), wanted, cfg=1.0) < TOLERANCE


@pytest.mark.parametrize("size", [(17, 19), (15, 16)])
def test_odd_sizes(tiny, error, size):
    mask = torch.zeros(size[0] * 8, size[1] * 8)
    mask[20:70, 33:110] = 1

    def wanted(index, picture, grid, own):
        return [(inside(mask, grid), own)], None

    assert error(guide_region(tiny.model, [Region(mask)]), wanted, size=size) < TOLERANCE


def test_a_mask_of_one_pixel(tiny, error):
    mask = torch.zeros(128, 144)
    mask[77, 41] = 1

    def wanted(index, picture, grid, own):
        assert inside(mask, grid).sum() == 1
        return [(inside(mask, grid), own)], None

    assert error(guide_region(tiny.model, [Region(mask)]), wanted) < TOLERANCE


def test_contexts_of_different_length(tiny, error, encode, text):
    there = text(9, 77)
    positive = [[torch.cat([encode("a red star on a beach")[0][0], text(10)], 1), {}]]

    def wanted(index, picture, grid, own):
        assert len(own) == 154
        return [(inside(LEFT, grid), there[0] if index == 0 else own)], own

    guided = guide_region(tiny.model, [Region(LEFT, there)], "text")
    assert error(guided, wanted, positive=positive) < TOLERANCE


def test_the_rejected_alternative_masks_the_output_of_plain_attention(tiny, error):
    def wanted(index, picture, grid, own):
        return [(inside(LEFT, grid), own)], None

    guided = guide_region(tiny.model, [Region(LEFT)], form="masked_output")
    assert error(guided, wanted, masked_output=True) < TOLERANCE
    assert error(guided, wanted, masked_output=False) > 1e-4
