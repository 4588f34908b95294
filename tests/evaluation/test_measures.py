"""Measures against closed forms, and the judge's use against pictures that it must tell apart."""

import math
from dataclasses import replace

import pytest
import torch
from inlay.demo.captions import PENCIL
from inlay.demo.judge import HEADS
from inlay.demo.render import render
from inlay.demo.scenes import draw_scenes
from inlay.evaluation import judging, paint_tasks
from inlay.evaluation.finding import find_things
from inlay.evaluation.measures import border_step, cut_share, exact_outside, find_object, psnr_outside, seam


def square(size=32, low=8, high=24):
    mask = torch.zeros(1, size, size)
    mask[:, low:high, low:high] = 1
    return mask


def test_psnr_counts_only_what_was_not_painted():
    original = torch.full((1, 32, 32, 3), 0.5)
    ours = original + 0.1
    ours[0, 8:24, 8:24] = 0
    assert psnr_outside(ours, original, square()).item() == pytest.approx(20, abs=1e-4)
    ours[0, 0, 0] = 0.5
    outside = 32 * 32 - 256
    expected = -10 * math.log10(0.01 * (outside - 1) / outside)
    assert psnr_outside(ours, original, square()).item() == pytest.approx(expected, abs=1e-4)


def test_exactness_is_bit_for_bit():
    original = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    ours = original.clone()
    ours[:, 10, 10] = 0
    ours[1, 0, 31, 2] = torch.nextafter(ours[1, 0, 31, 2], torch.tensor(2.0))
    assert exact_outside(ours, original, square().expand(2, -1, -1)).tolist() == [1, 0]


def test_border_step_of_a_known_edge():
    picture = torch.zeros(1, 32, 32, 3)
    picture[0, 8:24, 8:24] = torch.tensor([0.3, 0.0, 0.6])
    assert border_step(picture, square()).item() == pytest.approx(255 * 0.3, rel=1e-5)
    # A step that is not at the border does not count, and one on half of the border counts half.
    assert border_step(picture, square(low=10, high=22)).item() == 0
    half = picture.clone()
    half[0, 8:16] = 0
    assert border_step(half, square()).item() == pytest.approx(255 * 0.3 * (16 + 8 + 8) / 64, rel=1e-5)
    assert seam(picture, picture, square()).item() == 0
    assert seam(picture, torch.zeros_like(picture), square()).item() == pytest.approx(255 * 0.3, rel=1e-5)
    assert border_step(picture, torch.ones(1, 32, 32)).item() == 0


def thing(top, left, bottom, right):
    found = torch.zeros(1, 32, 32, dtype=torch.bool)
    found[:, top:bottom, left:right] = True
    return found


def test_cut_share_of_whole_touching_and_filling_things():
    assert cut_share(thing(12, 12, 20, 20), square()).item() == 0
    # All of the border of a thing that fills the mask.
    assert cut_share(thing(8, 8, 24, 24), square()).item() == 1
    # One side of four, and of each neighbouring side the pixels within reach of the border.
    touching = cut_share(thing(8, 12, 16, 20), square()).item()
    assert touching == pytest.approx((8 + 2) / 28)
    assert math.isnan(cut_share(thing(12, 12, 13, 13), square()).item())
    # The picture's own edge is no border of the mask.
    edge = torch.ones(1, 32, 32)
    edge[:, :, 16:] = 0
    assert cut_share(thing(0, 0, 8, 8), edge).item() == 0


def test_things_are_found_where_they_stand():
    scenes = draw_scenes(range(95_000_000, 95_000_024), objects=1)
    shown, empty = render(scenes), render(scenes.emptied())
    everywhere = torch.ones(len(scenes), 128, 128)
    found = find_object(shown.image, empty.image, everywhere)
    true = shown.masks[:, 0] > 0.5
    overlap = (found & true).flatten(1).sum(1) / (found | true).flatten(1).sum(1)
    # Pencil drawings and things of their background's colour differ little from the empty place.
    assert overlap[scenes.style != PENCIL].median() > 0.75
    assert find_object(shown.image, empty.image, 1 - everywhere).sum() == 0


def test_accuracy_leaves_out_the_colours_of_pencil_drawings():
    scenes = draw_scenes(range(40), objects=1)
    truth = judging.truth_of(scenes)
    values = judging.accuracy(truth, truth)
    assert all(one["all"] == 1 for one in values)
    pencil = scenes.style == PENCIL
    assert pencil.any() and [one["colour"] is None for one in values] == pencil.tolist()
    wrong = {**truth, "shape": (truth["shape"] + 1) % 8}
    assert all(one["all"] == 0 and one["shape"] == 0 and one["surface"] == 1 for one in judging.accuracy(wrong, truth))


def test_shuffled_labels_are_the_same_labels_elsewhere():
    few = {"style": torch.arange(8)}
    assert not any((judging.shuffled(few, seed)["style"] == few["style"]).any() for seed in range(20))
    truth = judging.truth_of(draw_scenes(range(200), objects=1))
    dealt = judging.shuffled(truth, 1)
    for name in truth:
        assert torch.equal(truth[name].sort().values, dealt[name].sort().values)
    by_chance = [one["shape"] for one in judging.accuracy(dealt, truth)]
    assert 0.03 < sum(by_chance) / len(by_chance) < 0.25


@pytest.mark.parametrize("count", [1, 2])
def test_things_of_unknown_place_are_found(count):
    scenes = draw_scenes(range(95_000_100, 95_000_148), objects=count)
    boxes = find_things(render(scenes).image, scenes, count)
    centres = torch.stack([thing.centre for thing in scenes.things[:count]], 1)
    apart = (boxes[..., :2] + boxes[..., 2:] / 2 - centres).norm(dim=-1)
    # The judge was trained on crops that are off by up to an eighth of their side.
    assert apart.quantile(0.5) < 4 and apart.quantile(0.9) < boxes[0, 0, 2] / 8


class TellTale:
    """A judge that reads class numbers off the middle of a crop: red says the shape, green the colour."""

    def __call__(self, crops):
        middle = (crops[:, :2, 32, 32] * 7).round().long()
        logits = {"shape": middle[:, :1] == torch.arange(8), "colour": middle[:, 1:] == torch.arange(8)}
        unknown = {name: torch.zeros(len(crops), count) for name, count in HEADS.items()}
        return {**unknown, **{name: found.float() for name, found in logits.items()}}


def test_of_two_things_each_side_is_judged_by_itself():
    scenes = draw_scenes(range(4), objects=2, style=0, background=4)
    scenes = replace(scenes, shape=torch.tensor([[1, 6]] * 4), colour=torch.tensor([[2, 5]] * 4))
    image = render(scenes.emptied()).image
    painted = [((1, 2), (6, 5)), ((1, 2), (6, 4)), ((1, 2), (3, 5)), ((6, 5), (1, 2))]
    for row, things in enumerate(painted):
        for left, (shape, colour) in zip((12, 76), things, strict=True):
            image[row, 40:80, left : left + 40] = torch.tensor([shape / 7, colour / 7, 0.0])
    values = judging.judge_two(TellTale(), image, scenes)
    assert [tuple(one.values()) for one in values] == [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 0)]
    pencil = judging.judge_two(TellTale(), image, replace(scenes, style=torch.full((4,), PENCIL)))
    assert [one["both colours"] for one in pencil] == [None] * 4


def test_tasks_of_the_suite_take_turns():
    seeds = list(range(90_000_000, 90_000_024))
    tasks, asked, traits = paint_tasks.draw(seeds)
    assert len({tuple(one) for one in traits}) == 6
    for row, (size, place) in enumerate(traits):
        assert (asked[row] == tasks.captions[row]) == (place == "prompt with place")
        area = tasks.mask[row].sum().item() / (2 * tasks.wanted.things[0].radius[row].item()) ** 2
        grow = paint_tasks.SIZES[size.removeprefix("mask ")]
        # Round corners, and a mask may reach beyond the picture.
        assert 0.5 * grow**2 < area < grow**2 * 1.02
    from inlay.demo.vocabulary import held_out

    wanted = tasks.wanted
    assert held_out(wanted.style, wanted.shape[:, 0], wanted.colour[:, 0], wanted.surface[:, 0]).all()
