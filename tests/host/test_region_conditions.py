"""Several positives, area conditions and other guiders: each row of a batch gets its own piece of the mask and text."""

import pytest
import torch
from inlay.host.region_patches import Region, guide_region

from .region_reference import inside, largest_error, recorded

MASK = torch.zeros(128, 144)
MASK[40:128, 20:100] = 1
TOLERANCE = 3e-6
THERE = torch.randn(1, 77, 128, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def blocks(sample):
    def run(model, positive, **options):
        with recorded(model) as calls:
            picture = sample(model, positive, steps=1, **options)
        return calls, picture

    return run


def in_area(conditioning, height, width, top, left):
    return [[text, {**extra, "area": (height, width, top, left), "strength": 1.0}] for text, extra in conditioning]


def is_crop(call):
    return call[3]["original_shape"][2:] != [16, 18]


def test_every_positive_keeps_its_own_text(tiny, encode, blocks):
    positive = encode("a red star") + encode("a blue disc on sand")
    calls, picture = blocks(guide_region(tiny.model, [Region(MASK)]), positive)
    assert sorted(calls[0][3]["cond_or_uncond"]) == [0, 0, 1]
    assert largest_error(calls, lambda index, _, grid, own: ([(inside(MASK, grid), own)], None)) < TOLERANCE
    _, first_only = blocks(guide_region(tiny.model, [Region(MASK)]), positive[:1])
    assert (picture - first_only).norm() > 1e-4 * picture.norm()


def test_a_regions_text_replaces_every_positive(tiny, encode, blocks):
    positive = encode("a red star") + [[torch.cat([encode("a disc")[0][0]] * 2, 1), {}]]
    calls, _ = blocks(guide_region(tiny.model, [Region(MASK, THERE)]), positive)

    def wanted(index, picture, grid, own):
        return [(inside(MASK, grid), THERE[0] if index == 0 else own)], None

    assert largest_error(calls, wanted) < TOLERANCE


def test_an_area_gets_its_crop_of_the_mask_on_both_rows(tiny, encode, blocks):
    positive = encode("a beach") + in_area(encode("a red star"), 8, 10, 4, 6)
    calls, picture = blocks(guide_region(tiny.model, [Region(MASK)]), positive)
    crop = MASK[32:96, 48:128]
    areas = [call for call in calls if is_crop(call)]
    assert len(areas) >= 9 and len(calls) > len(areas)
    assert {index for call in areas for index in call[3]["cond_or_uncond"]} == {0, 1}
    assert largest_error(areas, lambda index, _, grid, own: ([(inside(crop, grid), own)], None)) < TOLERANCE
    whole = [call for call in calls if not is_crop(call)]
    assert largest_error(whole, lambda index, _, grid, own: ([(inside(MASK, grid), own)], None)) < TOLERANCE
    _, without_area = blocks(guide_region(tiny.model, [Region(MASK)]), positive[:1])
    assert (picture - without_area).norm() > 1e-4 * picture.norm()


def test_areas_of_one_size_in_one_batch_are_told_apart(tiny, encode, blocks):
    left, right = encode("a red star"), encode("a blue disc on sand")
    positive = in_area(left, 12, 9, 4, 0) + in_area(right, 12, 9, 4, 9)
    calls, _ = blocks(guide_region(tiny.model, [Region(MASK)]), positive)
    assert any(call[3]["cond_or_uncond"].count(0) == 2 for call in calls)

    def wanted(index, picture, grid, own):
        if index == 1:
            return None
        crop = MASK[32:128, :72] if torch.equal(own, left[0][0][0]) else MASK[32:128, 72:]
        return [(inside(crop, grid), own)], None

    assert largest_error(calls, wanted) < TOLERANCE


@pytest.mark.parametrize("null", [None, THERE])
def test_an_area_that_the_region_misses_is_all_outside(tiny, encode, blocks, null):
    positive = encode("a beach") + in_area(encode("a red star"), 4, 6, 0, 12)
    calls, _ = blocks(guide_region(tiny.model, [Region(MASK)], null_text=null), positive)
    outside = None if null is None else null[0]
    areas = [call for call in calls if is_crop(call)]
    assert areas and largest_error(areas, lambda *_: ([], outside)) < TOLERANCE
    whole = [call for call in calls if not is_crop(call)]
    assert largest_error(whole, lambda index, _, grid, own: ([(inside(MASK, grid), own)], None)) < TOLERANCE


def test_a_guider_with_the_negative_first_gets_the_text_on_its_positive(tiny, encode):
    from comfy.samplers import ksampler
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    guider = Guider_DualCFG(guide_region(tiny.model, [Region(MASK, THERE)]))
    guider.set_conds(encode("a red star"), encode("a beach"), encode(""))
    guider.set_cfg(4.0, 2.0)
    with recorded(tiny.model) as calls, torch.no_grad():
        latent = torch.zeros(1, 4, 16, 18)
        guider.sample(latent + 1, latent, ksampler("euler"), torch.tensor([10.0, 0.0]), disable_pbar=True)
    assert {index for call in calls for index in call[3]["cond_or_uncond"]} == {0, 1, 2}

    def wanted(index, picture, grid, own):
        return [(inside(MASK, grid), THERE[0] if index == 2 else own)], None

    assert largest_error(calls, wanted) < TOLERANCE


def test_another_packs_further_pass_over_the_negative_keeps_its_text(tiny, encode, blocks):
    import comfy.samplers

    def again(args):
        conds = [args["uncond"], None]
        comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], args["model_options"])
        return args["denoised"]

    guided = guide_region(tiny.model, [Region(MASK, THERE)])
    guided.set_model_sampler_post_cfg_function(again)
    calls, _ = blocks(guided, encode("a red star"))
    alone = [call for call in calls if call[3]["cond_or_uncond"] == [0]]
    assert alone and largest_error(alone, lambda _, __, grid, own: ([(inside(MASK, grid), own)], None)) < TOLERANCE


def test_as_many_masks_as_pictures(tiny, encode, blocks):
    with pytest.raises(ValueError, match="There are 2 region masks for 3 pictures"):
        blocks(guide_region(tiny.model, [Region(torch.stack([MASK, MASK]))]), encode("a star"), batch=3)
