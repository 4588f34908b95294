"""Boxes, components and phrases, against other ways to compute them."""

import pytest
import torch
from inlay.attention.boxes import (
    bounding_box,
    box_mask,
    boxes_per_image,
    boxes_to_masks,
    find_box,
    largest_component,
    salient_part,
)
from inlay.attention.overlay import outline, overlay
from inlay.attention.words import find_phrase

BOX = {"x": 3, "y": 1, "width": 4, "height": 2}


def flood(mask):
    """The largest part by a plain flood fill over eight neighbours."""
    height, width = mask.shape
    left = {(y, x) for y in range(height) for x in range(width) if mask[y, x]}
    best = set()
    for start in sorted(left):
        part, open_ = set(), [start]
        while open_:
            y, x = open_.pop()
            if (y, x) in left and (y, x) not in part:
                part.add((y, x))
                open_ += [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        best = max(best, part, key=len)
    result = torch.zeros_like(mask)
    for y, x in best:
        result[y, x] = True
    return result


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_component_is_the_flood_fills(seed):
    mask = torch.rand(17, 23, generator=torch.Generator().manual_seed(seed)) > 0.66
    ours = largest_component(mask)
    assert int(ours.sum()) == int(flood(mask).sum())
    assert torch.equal(ours, flood(ours)) and not (ours & ~mask).any()


def test_an_empty_mask_has_no_component():
    assert not largest_component(torch.zeros(4, 4, dtype=torch.bool)).any()


def test_the_box_is_half_open_and_round_trips():
    mask = box_mask([BOX], 6, 9)
    assert mask.sum() == 8 and mask[1:3, 3:7].all()
    assert bounding_box(mask) == BOX
    single = torch.zeros(5, 5)
    single[4, 4] = 1
    assert bounding_box(single) == {"x": 4, "y": 4, "width": 1, "height": 1}


def test_the_margin_stops_at_the_edge():
    assert bounding_box(box_mask([BOX], 6, 9), margin=2) == {"x": 1, "y": 0, "width": 8, "height": 5}


def test_passes_are_filtered_each_and_then_united():
    maps = torch.zeros(2, 10, 10)
    maps[0, 2:5, 2:5] = 0.9
    maps[0, 9, 9] = 1.0  # a speck of the first pass
    maps[1, 4:7, 4:8] = 0.5
    assert find_box(maps, 0.5) == {"x": 2, "y": 2, "width": 6, "height": 5}
    assert find_box(maps, 0.6) == {"x": 2, "y": 2, "width": 3, "height": 3}


def test_nothing_above_the_threshold_says_so():
    with pytest.raises(ValueError, match="No place reaches the threshold 0.5"):
        find_box(torch.full((3, 4, 4), 0.4), 0.5)


@pytest.mark.parametrize("given", [BOX, [BOX], [[BOX]], [[BOX], [BOX]], ([BOX], (BOX,))])
def test_all_three_shapes_of_a_socket(given):
    assert boxes_per_image(given, 2) == [[BOX], [BOX]]


def test_boxes_of_different_images_and_empty_ones():
    other = {"x": 0, "y": 0, "width": 1, "height": 1}
    assert boxes_per_image([[BOX, other], []], 2) == [[BOX, other], []]
    masks = boxes_to_masks([[BOX, other], []], 2, 6, 9)
    assert masks.shape == (2, 6, 9) and masks[0].sum() == 9 and masks[1].sum() == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([[BOX]] * 3, "boxes for 3 images"),
        ([{"x": 1, "y": 2, "width": 3}], "A box needs the numbers"),
        ([[["a"]]], "A box needs the numbers"),
    ],
)
def test_bad_boxes_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        boxes_per_image(given, 2)


def test_a_box_outside_the_picture_is_refused():
    with pytest.raises(ValueError, match="covers no pixel of the 9 x 6 picture"):
        box_mask([{"x": 9, "y": 0, "width": 5, "height": 5}], 6, 9)
    with pytest.raises(ValueError, match="covers no pixel"):
        box_mask([{**BOX, "width": 0}], 6, 9)
    assert box_mask([{"x": -2, "y": -2, "width": 3, "height": 3}], 6, 9).sum() == 1


def test_phrases_are_found_whole_and_everywhere():
    vector = torch.arange(3.0)
    prompt = [(1, 5), (2, 6), (3, vector), (79, 5), (80, 6), (81, 7)]
    assert find_phrase(prompt, [5, 6]) == [1, 2, 79, 80]
    assert find_phrase(prompt, [vector.clone()]) == [3]
    assert find_phrase(prompt, [6, 7]) == [80, 81]
    for absent in ([7, 5], [vector + 1], [torch.zeros(2)], [8], [], [5, 6, 7, 8, 9, 10, 11]):
        assert find_phrase(prompt, absent) == []


def test_the_overlay_shows_map_and_outline():
    image = torch.full((1, 20, 24, 3), 0.5)
    mask = box_mask([{"x": 5, "y": 4, "width": 9, "height": 8}], 20, 24)[None]
    rim = outline(mask, 1)
    assert rim.sum() == 2 * 9 + 2 * 6 and torch.equal(rim * mask, rim)
    seen = overlay(image, mask, mask)
    assert seen.shape == image.shape and 0 <= seen.min() and seen.max() <= 1
    assert seen[0, 0, 0].mean() < 0.5 < seen[0, 8, 9, 0]
    assert outline(torch.ones(1, 6, 6), 1).sum() == 20  # the picture's edge is an edge


def test_the_salient_part_is_what_the_words_tell_most_of():
    salient, words = torch.zeros(40, 50), torch.full((40, 50), 0.1)
    salient[5:15, 5:20], salient[20:35, 30:45], salient[0, 49] = 1.3, 2.0, 9.0
    words[5:15, 5:20], words[20:35, 30:45], words[0, 49] = 0.9, 0.8, 1.0
    assert salient_part(salient, words, 1.25).nonzero().amin(0).tolist() == [5, 5]
    words[5:15, 5:20] = -1.0
    part = salient_part(salient, words, 1.25)
    assert part.sum() == 15 * 15 and part[20:35, 30:45].all()
    with pytest.raises(ValueError, match="smaller than a thousandth"):
        salient_part(salient, words, 3.0)
    with pytest.raises(ValueError, match="No place reaches the threshold 10"):
        salient_part(salient, words, 10.0)
