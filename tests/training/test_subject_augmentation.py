"""Holes, squares and references as Paint-by-Example draws them."""

import pytest
import torch
from inlay.training.mask_augmentation import Sides, curve_points, draw_hole, draw_square, fill_polygon, grow_sides
from inlay.training.reference_augmentation import augment_reference

BOX, SIZE = Sides(40, 30, 90, 70), (128, 160)


def seeds(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def test_each_side_grows_by_up_to_0_4_of_its_room():
    grown = [grow_sides(BOX, *SIZE, generator) for generator in seeds(600)]
    steps = torch.tensor([[40 - g.left, 30 - g.top, g.right - 90, g.bottom - 70] for g in grown])
    assert steps.min(0).values.tolist() == [0, 0, 0, 0]
    assert steps.max(0).values.tolist() == [16, 12, 28, 23]
    assert (steps.double().mean(0) - torch.tensor([8.0, 6.0, 14.0, 11.5])).abs().max() < 1


def test_curves_run_from_corner_to_corner_by_the_grown_side():
    grown = Sides(30, 20, 110, 90)
    points = torch.stack([curve_points(BOX, grown, generator) for generator in seeds(400)])
    assert points.shape == (400, 72, 2)
    mean = points.mean(0)
    # At u = 0.5 a quadratic Bezier is a quarter of both ends and half of its control.
    assert (mean[9] - torch.tensor([65.0, 0.5 * 30 + 0.5 * 20])).abs().max() < 1
    assert (mean[18 + 9] - torch.tensor([0.5 * 90 + 0.5 * 110, 50.0])).abs().max() < 1
    assert (points - mean).abs().max() < 6


def test_polygons_are_filled_by_the_even_odd_rule():
    triangle = torch.tensor([[10.0, 10.0], [50.0, 10.0], [10.0, 40.0]])
    filled = fill_polygon(triangle, 60, 60)
    y, x = torch.meshgrid(torch.arange(60) + 0.5, torch.arange(60) + 0.5, indexing="ij")
    wanted = (x > 10) & (y > 10) & ((x - 10) / 40 + (y - 10) / 30 < 1)
    assert (filled.bool() ^ wanted).sum() <= 2 and abs(float(filled.sum()) - 600) < 30


@pytest.mark.parametrize("kind", ["none", "grown", "bezier", "paper"])
def test_holes_cover_the_subject_and_stay_in_the_picture(kind):
    shapes = set()
    for generator in seeds(40):
        hole, around = draw_hole(BOX, *SIZE, kind, generator)
        inner = hole[30 + 8 : 70 - 8, 40 + 8 : 90 - 8]
        assert hole.shape == SIZE and inner.all()
        rectangle = float(hole.sum()) == (around.right - around.left) * (around.bottom - around.top)
        shapes.add(rectangle)
    assert shapes == {"none": {True}, "grown": {True}, "bezier": {False}, "paper": {True, False}}[kind]


def test_squares_hold_the_hole_and_lie_in_the_picture():
    places = set()
    for generator in seeds(100):
        left, top, side = draw_square(BOX, *SIZE, generator)
        assert left <= 40 and top <= 30 and left + side >= 90 and top + side >= 70
        assert left >= 0 and top >= 0 and left + side <= 160 and top + side <= 128
        places.add((left, top, side))
    assert len(places) > 30
    assert draw_square(BOX, *SIZE, None) == (1, 0, 128)


def test_a_hole_that_no_square_holds_gets_one_beyond_the_picture():
    assert draw_square(Sides(0, 10, 160, 50), 128, 160, torch.Generator()) == (0, -50, 160)


def test_without_a_box_it_is_the_largest_square_of_the_picture():
    places = {draw_square(None, 128, 160, generator) for generator in seeds(200)}
    assert {(top, side) for _, top, side in places} == {(0, 128)}
    assert {left for left, _, _ in places} == set(range(33))
    assert draw_square(None, 128, 160, None) == (16, 0, 128)


def test_references_are_mirrored_turned_and_blurred_at_their_shares():
    crop = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    results = [augment_reference(crop, generator) for generator in seeds(600)]
    untouched = sum(torch.equal(one, crop) for one in results) / 600
    mirrored = sum(torch.equal(one, crop.flip(-1)) for one in results) / 600
    assert abs(untouched - 0.5 * 0.5 * 0.7) < 0.05 and abs(mirrored - 0.5 * 0.5 * 0.7) < 0.05
    assert all(one.shape == crop.shape and one.min() >= 0 and one.max() <= 1 for one in results)


def test_a_flat_reference_stays_flat():
    flat = torch.full((3, 32, 32), 0.25)
    assert all(torch.allclose(augment_reference(flat, generator), flat, atol=1e-6) for generator in seeds(20))
