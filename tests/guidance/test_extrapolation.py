"""Where a picture grows, and that nothing of it moves."""

import pytest
import torch
from inlay.guidance.extrapolation import (
    LARGEST_MATCH,
    SIDES,
    Edit,
    grow,
    grow_mask,
    match_seam,
    outermost,
    place_at,
    plan_side,
    seam_step,
)


def test_a_whole_extent_is_four_strips_and_a_clean_up():
    edits = list(plan_side(128, 128, 0.2, 0.8, 0.25))
    assert [edit.added for edit in edits] == [32, 32, 32, 32, 0]
    assert [edit.level for edit in edits] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.25])
    assert edits[0] == Edit(32, 32, 128, 0.2) and edits[-1] == Edit(0, 128, 160, 0.25)


@pytest.mark.parametrize("extent, width", [(128, 1), (128, 300), (100, 37), (8, 20), (9, 9), (513, 1000)])
def test_any_width_is_covered_once_by_strips_and_once_by_clean_ups(extent, width):
    edits = list(plan_side(extent, width, 0.2, 0.8, 0.25))
    reach = extent
    for edit in edits:
        # Mirrored pixels have to be there.
        assert edit.added < reach
        reach += edit.added
        assert 0 < edit.masked < edit.window and (edit.added in (0, edit.masked))
        assert edit.added or edit.masked < reach
    assert reach == extent + width
    assert sum(edit.masked for edit in edits if not edit.added) == width
    assert edits[-1].added == 0
    assert not [edit for edit in plan_side(extent, width, 0.2, 0.8, 0.0) if not edit.added]


def test_no_width_no_edit():
    assert list(plan_side(128, 0, 0.2, 0.8, 0.25)) == []


@pytest.mark.parametrize("side", SIDES)
def test_growing_mirrors_the_side_and_keeps_the_rest(side):
    picture = torch.rand(2, 10, 12, 3)
    grown, mask = grow(picture, side, 4), grow_mask(torch.zeros(2, 10, 12), side, 4)
    across = side in ("left", "right")
    assert grown.shape == ((2, 10, 16, 3) if across else (2, 14, 12, 3)) and mask.shape == grown.shape[:3]
    assert torch.equal(grown[mask == 0].view_as(picture), picture)
    dim = 2 if across else 1
    line = {
        "left": picture[:, :, 1:5],
        "right": picture[:, :, -5:-1],
        "top": picture[:, 1:5],
        "bottom": picture[:, -5:-1],
    }
    assert torch.equal(outermost(grown, side, 4), line[side].flip(dim))
    assert int(mask.sum()) == 2 * 4 * (10 if across else 12) and outermost(mask, side, 4).all()


@pytest.mark.parametrize("side", SIDES)
def test_a_window_is_a_view_with_the_place_at_its_side(side):
    picture = torch.zeros(1, 10, 12, 3)
    window = outermost(picture, side, 6)
    place = place_at(window, side, Edit(0, 2, 6, 0.5))
    assert place.shape == window.shape[:3] and outermost(place, side, 2).all()
    assert int(place.sum()) == 2 * (10 if side in ("left", "right") else 12)
    window.fill_(1)
    assert int(picture.sum()) == window.numel()
    assert outermost(picture, side, 99).shape == picture.shape


def test_the_place_is_where_the_picture_is():
    place = place_at(torch.zeros(1, 8, 8, 3, device="meta"), "left", Edit(0, 2, 6, 0.5))
    assert place.device.type == "meta" and place.dtype == torch.float32


@pytest.mark.parametrize("side", SIDES)
def test_the_seam_is_matched_and_the_far_edge_kept(side):
    window = torch.full((2, 40, 44, 3), 0.5)
    painted, mask = window.clone(), torch.zeros(2, 40, 44)
    outermost(mask, side, 16).fill_(1)
    for picture, cast in enumerate((0.1, -0.4)):
        painted[picture][mask[picture] > 0] = 0.5 + cast
    matched = match_seam(painted, window, side, 16)
    assert torch.equal(matched[mask == 0], painted[mask == 0])
    found = [seam_step(it, mask) for it in (window, painted, matched)]
    assert found[0].abs().max() == 0
    torch.testing.assert_close(found[1], torch.tensor([25.5, 102.0]))
    # Of the 16 pixels 8 are looked at, over which a little has faded.
    assert found[2][0] < 0.25 * 25.5 and found[2][1] == pytest.approx(255 * (0.4 - 0.81 * LARGEST_MATCH), rel=0.03)
    assert (outermost(matched, side, 1) - outermost(painted, side, 1)).abs().max() < 0.01


def test_soft_edges_count_and_fine_texture_does_not():
    mask = torch.zeros(1, 32, 48)
    mask[:, :, 28:] = 1
    soft = torch.where(mask[..., None] > 0, 0.6, 0.5) * torch.ones(3)
    soft[:, :, 28:32] = torch.linspace(0.5, 0.6, 4).view(1, 1, 4, 1)
    assert seam_step(soft, mask)[0] == pytest.approx(25.5 * 0.75, rel=0.05)
    noise = 0.5 + 0.1 * torch.randn(1, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    assert seam_step(noise, mask)[0] < 3
    inner = torch.nn.functional.pad(torch.full((1, 16, 20), -1.0), (12, 12, 8, 8)) + 1
    framed = 0.5 + 0.1 * inner[..., None].expand(-1, -1, -1, 3)
    assert seam_step(framed, inner)[0] == pytest.approx(25.5, rel=0.01)
