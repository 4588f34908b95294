"""The demo world's pictures follow from their seeds, and its truth is true."""

from pathlib import Path

import numpy as np
import pytest
import torch
from inlay.demo.captions import Named, attribute_labels, caption, full_captions, training_captions
from inlay.demo.render import mask_boxes, render
from inlay.demo.scenes import SIZE, draw_scenes
from inlay.demo.shapes import signed_distance
from inlay.demo.subjects import SUITE_SUBJECTS, draw_things, scenes_with_subjects
from inlay.demo.tasks import KINDS, draw_tasks
from inlay.demo.training.pictures import training_scenes
from inlay.demo.vocabulary import SHAPES, held_out
from PIL import Image

GOLDEN = Path(__file__).with_name("golden.png")


def test_pictures_are_the_same_on_every_machine():
    image = render(draw_scenes([1, 2, 3, 4])).image
    strip = torch.cat(list(image), 1)
    golden = torch.from_numpy(np.array(Image.open(GOLDEN))).float() / 255
    assert (strip - golden).abs().max() <= 1.5 / 255  # one level of drawing, half a level of rounding


def test_a_scene_does_not_depend_on_its_neighbours():
    alone, together = render(draw_scenes([7])), render(draw_scenes([5, 7, 9]))
    assert torch.equal(alone.image[0], together.image[1])
    assert torch.equal(alone.masks[0], together.masks[1])


def test_other_seeds_are_other_scenes():
    image = render(draw_scenes(range(16))).image.flatten(1)
    assert torch.cdist(image, image).add(torch.eye(16) * 1e9).min() > 5


@pytest.mark.parametrize("style", range(4))
def test_masks_mark_exactly_what_the_thing_changes(style):
    scenes = draw_scenes(range(40, 52), style=style, objects=1)
    with_thing, without = render(scenes), render(scenes.emptied())
    changed = (with_thing.image - without.image).abs().amax(-1)
    mask = with_thing.masks[:, 0]
    # Outlines and shadows reach beyond the thing; a thing may have its background's colour here and there.
    assert (changed[mask > 0.99] > 0.02).float().mean() > 0.9
    far = torch.nn.functional.max_pool2d(mask[:, None], 41, 1, 20)[:, 0] == 0
    if style in (1, 2):
        assert changed[far].max() == 0


def test_boxes_are_tight():
    mask = torch.zeros(2, 32, 32)
    mask[0, 5:9, 7:20] = 1
    assert mask_boxes(mask).tolist() == [[7, 5, 13, 4], [0, 0, 0, 0]]


def test_shapes_differ_and_stay_in_the_unit_circle():
    line = torch.linspace(-1.3, 1.3, 131)
    y, x = torch.meshgrid(line, line, indexing="ij")
    grid = (x.expand(len(SHAPES), -1, -1), y.expand(len(SHAPES), -1, -1))
    inside = signed_distance(torch.arange(len(SHAPES)), *grid) < 0
    assert not inside[:, torch.hypot(x, y) > 1.08].any()
    shares = inside.float().mean((1, 2))
    assert shares.min() > 0.08
    flat = inside.flatten(1).float()
    overlap = (flat @ flat.T) / (flat.sum(1)[:, None] + flat.sum(1)[None] - flat @ flat.T)
    assert (overlap - torch.eye(len(SHAPES))).max() < 0.9


def test_one_shape_of_every_combination_is_held_out():
    shape, colour, surface, style = torch.cartesian_prod(*(torch.arange(n) for n in (8, 8, 3, 4))).T
    out = held_out(style, shape, colour, surface).view(8, -1)
    assert (out.sum(0) == 1).all() and (out.sum(1) == 12).all()


def test_training_never_shows_what_is_held_out():
    scenes = training_scenes(list(range(2000)))
    for index in range(2):
        rows = scenes.shape[:, index] >= 0
        attributes = (values[rows, index] for values in (scenes.shape, scenes.colour, scenes.surface))
        assert rows.sum() > 300 and not held_out(scenes.style[rows], *attributes).any()
    asked = draw_scenes(range(500), objects=1, holding_out=True)
    assert held_out(asked.style, asked.shape[:, 0], asked.colour[:, 0], asked.surface[:, 0]).all()


def test_training_draws_other_subjects_than_the_suites():
    suite, training = draw_things(range(50)), draw_things(range(SUITE_SUBJECTS, SUITE_SUBJECTS + 50))
    assert not torch.equal(suite.rgb, training.rgb)


def test_captions_name_what_is_there():
    scenes = draw_scenes(range(30))
    for row, text in enumerate(full_captions(scenes)):
        for index in range(int(scenes.count[row])):
            assert SHAPES[int(scenes.shape[row, index])] in text
    nameless = Named(False, False, (False, False), (False, False), (False, False))
    assert caption(draw_scenes([3], objects=1), 0, nameless) == "a thing"
    assert caption(draw_scenes([3], objects=0), 0, nameless) == "nothing"
    texts, _ = training_captions(scenes)
    assert texts == training_captions(scenes)[0]


def test_labels_are_the_truth():
    scenes = draw_scenes(range(64))
    labels = attribute_labels(scenes)
    assert torch.equal(labels["pair"].sum(1).long(), torch.where(scenes.count < 2, 1, labels["pair"].sum(1).long()))
    for row in range(64):
        assert labels["shape"][row, scenes.shape[row, 0]] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_have_a_place_and_a_wish(kind):
    tasks = draw_tasks(range(8), kind)
    assert tasks.image.shape == (8, SIZE, SIZE, 3) and tasks.mask.shape == (8, SIZE, SIZE)
    assert ((tasks.mask.sum((1, 2)) > 100) & (tasks.mask.sum((1, 2)) < SIZE * SIZE / 1.5)).all()
    assert (tasks.reference_mask.sum((1, 2)) > 100).all()
    thing = tasks.truth.masks[:, 0] > 0.5
    assert (tasks.mask[thing] > 0.4).float().mean() > 0.97
    if kind in ("fill", "subject"):
        assert torch.equal(tasks.image, render(tasks.wanted.emptied()).image)


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match="no task 'sing'"):
        draw_tasks([0], "sing")


def test_a_subject_keeps_its_looks_and_changes_its_pose():
    scenes = scenes_with_subjects([3, 3], [10, 11])
    first = scenes.things[0]
    assert torch.equal(first.rgb[0], first.rgb[1]) and not torch.equal(first.centre[0], first.centre[1])
    assert (scenes.shape == -1).all()
