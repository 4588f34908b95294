"""The maps that a concept's focus is read from: each forward's own, or a running average of them."""

from types import SimpleNamespace

import pytest
import torch
from inlay.attention.saliency import resize_map
from inlay.attention.salient_sources import READINGS, joined_map
from inlay.host.concept_saliency import ConceptSaliency

VIEWS, PICTURES, GRID, KEPT = 2, 2, (6, 8), 0.9
GRIDS = ((3, 4), (6, 8))
LAYERS = (("middle", 1, 0), ("output", 3, 1))
EXAMPLES = [(0, 1), (1, 1), (0, 1), (0, 0), (0, 1), (1, 0), (1, 1), (0, 1)]
MAPS = [2 * torch.rand(len(EXAMPLES), *grid, generator=torch.Generator().manual_seed(3)) for grid in GRIDS]


def looking(reading=READINGS[0], kept=KEPT):
    latents, thresholds = torch.zeros(VIEWS, PICTURES, 4, *GRID), torch.tensor([0.9, 1.1])
    return ConceptSaliency(SimpleNamespace(latents=latents, masks=None, thresholds=thresholds, reading=reading), kept)


def masks_of(saliency, examples, maps):
    saliency.seen = dict(zip(LAYERS, maps, strict=True))
    return saliency.of(*map(list, zip(*examples, strict=True)))


def in_steps(saliency, size):
    found = []
    for first in range(0, len(EXAMPLES), size):
        part = slice(first, first + size)
        found.append(masks_of(saliency, EXAMPLES[part], [one[part] for one in MAPS]))
        saliency.end()
    return torch.cat(found)


def expected(reading):
    """Every picture's maps so far, weighted by .9 to the power of their age, the first by what is left."""
    masks = []
    for number, place in enumerate(EXAMPLES):
        past = [one for one in range(number + 1) if EXAMPLES[one] == place]
        ages = torch.arange(len(past), dtype=torch.float64).flip(0)
        weights = KEPT**ages * (1 - KEPT)
        weights[0] = KEPT ** ages[0]
        maps = [(weights[:, None, None] * one[past].double()).sum(0, keepdim=True).float() for one in MAPS]
        masks.append(resize_map(joined_map(reading, maps), *GRID) >= (0.9, 1.1)[place[1]])
    return torch.stack(masks).float()


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("size", [1, 4, 8])
def test_a_running_average_is_one_of_each_picture_and_view_in_the_order_they_come(reading, size):
    found = in_steps(looking(reading), size)
    assert torch.equal(found, expected(reading))
    assert 0.1 < found.mean() < 0.9 and not torch.equal(found, in_steps(looking(reading, kept=0.0), size))


def test_without_it_every_forward_has_its_own_map():
    maps = resize_map(joined_map(READINGS[0], MAPS), *GRID)
    least = torch.tensor([(0.9, 1.1)[picture] for _, picture in EXAMPLES])[:, None, None]
    assert torch.equal(in_steps(looking(kept=0.0), 4)[:, 0], (maps >= least).float())


def test_a_step_that_is_done_again_or_comes_to_nothing_leaves_no_trace():
    clean, again = looking(), looking()
    first = [one[:4] for one in MAPS]
    for saliency in (clean, again):
        masks_of(saliency, EXAMPLES[:4], first)
        saliency.end()
    masks_of(again, EXAMPLES[4:], [one[4:].flip(0) for one in MAPS])
    again.begin()
    masks = [masks_of(one, EXAMPLES[4:], [it[4:] for it in MAPS]) for one in (clean, again)]
    assert torch.equal(*masks)
    for saliency in (clean, again):
        saliency.end()
    states = clean.state(), again.state()
    assert states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


def test_a_checkpoint_holds_the_averages():
    whole, first, second = looking(), looking(), looking()
    wanted = in_steps(whole, 4)[4:]
    masks_of(first, EXAMPLES[:4], [one[:4] for one in MAPS])
    first.end()
    second.load_state({key: value.clone() for key, value in first.state().items()})
    assert torch.equal(masks_of(second, EXAMPLES[4:], [one[4:] for one in MAPS]), wanted)
    second.end()
    assert torch.equal(second.masks, whole.masks) and torch.equal(second.uses, whole.uses)


def test_a_layer_whose_grid_changes_with_the_level_keeps_its_average():
    saliency = looking()
    first = masks_of(saliency, [(0, 0)], [torch.full((1, 3, 4), 2.0), torch.full((1, 6, 8), 2.0)])
    saliency.end()
    again = masks_of(saliency, [(0, 0)], [torch.zeros(1, 2, 2), torch.zeros(1, 3, 4)])
    assert first.all() and again.all()


def test_a_layer_that_is_not_seen_this_time_does_not_lend_its_average_to_another():
    saliency = looking()
    masks_of(saliency, [(0, 0)], [torch.zeros(1, 6, 8), torch.full((1, 6, 8), 2.0)])
    saliency.end()
    saliency.seen = {LAYERS[1]: torch.zeros(1, 6, 8)}
    assert saliency.of([0], [0]).all()
