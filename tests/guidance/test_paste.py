"""Paste-back: exact outside, independent references inside."""

import pytest
import torch
from inlay.guidance.paste import (
    distance_inside,
    feather_mask,
    fill_smoothly,
    match_colour,
    paste_back,
    paste_pictures,
    seam_picture,
    seam_steps,
)

KINDS = ["none", "mean_std", "smooth"]


def pictures(batch=1, height=37, width=45, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, height, width, 3, generator=generator) for _ in range(2)]


def blob(height=37, width=45):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (((y - 17) ** 2 / 2 + (x - 22) ** 2) < 130).float()[None]


def distance_reference(mask):
    outside = (mask == 0).nonzero().double()
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in mask.shape), indexing="ij"), -1).double()
    return torch.cdist(grid.reshape(-1, 2), outside).amin(1).reshape(mask.shape)


@pytest.mark.parametrize("limit", [1, 3, 50])
def test_distance_against_all_pairs(limit):
    want = distance_reference(blob()[0]).clamp(max=limit)
    assert (distance_inside(blob(), limit)[0].double() - want).abs().max() < 1e-5


def test_the_pictures_edge_is_not_outside():
    assert torch.equal(distance_inside(torch.ones(1, 9, 7), 5), torch.full((1, 9, 7), 5.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("feather", [0, 1, 6, 40])
@pytest.mark.parametrize("soft", [False, True])
def test_outside_the_mask_every_bit_is_the_originals(kind, feather, soft):
    original, edited = pictures()
    mask = blob() * (torch.rand(1, 37, 45) if soft else 1)
    result = paste_back(original, edited, mask, feather, kind)
    outside = mask[0] == 0
    assert torch.equal(result[0][outside], original[0][outside])
    assert (result[0][~outside] - original[0][~outside]).abs().mean() > 0.01
    assert not torch.equal(result, original)


def test_hard_paste_is_the_edited_picture_inside():
    original, edited = pictures(2)
    result = paste_back(original, edited, blob().expand(2, -1, -1))
    inside = blob()[0] == 1
    assert torch.equal(result[:, inside], edited[:, inside])


def test_feathered_paste_against_float64():
    original, edited = pictures()
    ramp = (distance_reference(blob()[0]) / 5).clamp(max=1)
    weight = (3 * ramp**2 - 2 * ramp**3)[None, ..., None]
    want = original.double() * (1 - weight) + edited.double() * weight
    assert (paste_back(original, edited, blob(), 4) - want).abs().max() < 1e-6


def test_the_feather_never_leaves_the_mask_and_reaches_one():
    weight = feather_mask(blob(), 4)
    assert (weight[blob() == 0] == 0).all() and (weight[blob() == 1] > 0).all()
    assert weight.max() == 1


def test_a_thin_mask_is_not_faded_out():
    thin = torch.zeros(1, 40, 40)
    thin[:, 18:23] = 1
    assert feather_mask(thin, 30).max() == 1
    assert feather_mask(thin, 30)[0, 18, 5] < 0.5


def test_half_precision_originals_stay_exact():
    original, edited = pictures()
    result = paste_back(original.half(), edited, blob(), 3)
    assert result.dtype == torch.float16
    assert torch.equal(result[blob() == 0], original.half()[blob() == 0])


def test_filling_keeps_the_known_and_continues_it():
    values, _ = pictures()
    filled = fill_smoothly(values, 1 - blob())
    assert torch.equal(filled[blob() == 0], values[blob() == 0])
    constant = fill_smoothly(torch.full((1, 37, 45, 3), 0.3), 1 - blob())
    assert (constant - 0.3).abs().max() < 1e-5


def test_filling_ignores_what_is_under_the_hole():
    values, other = pictures()
    swapped = torch.where(blob()[..., None] > 0, other, values)
    assert torch.equal(fill_smoothly(values, 1 - blob()), fill_smoothly(swapped, 1 - blob()))


@pytest.mark.parametrize("kind", ["mean_std", "smooth"])
def test_colour_match_undoes_a_colour_cast(kind):
    original, _ = pictures()
    cast = original + torch.tensor([0.1, -0.05, 0.2])
    assert (match_colour(original, cast, blob(), kind) - original).abs().max() < 1e-4


def test_mean_std_against_float64():
    original, edited = (picture.double() for picture in pictures())
    y, x = (blob()[0] > 0).nonzero().unbind(1)
    chebyshev = torch.full((37, 45), 1000)
    for one_y, one_x in zip(y.tolist(), x.tolist(), strict=True):
        rows, columns = torch.arange(37)[:, None], torch.arange(45)[None]
        chebyshev = torch.minimum(chebyshev, torch.maximum((rows - one_y).abs(), (columns - one_x).abs()))
    band = (chebyshev > 0) & (chebyshev <= 8)
    a, b = original[0][band], edited[0][band]
    want = (edited - b.mean(0)) / b.std(0, correction=0) * a.std(0, correction=0) + a.mean(0)
    got = match_colour(original.float(), edited.float(), blob(), "mean_std")
    assert (got.double() - want).abs().max() < 1e-5


def test_without_a_band_colours_stay():
    original, edited = pictures()
    for kind in ("mean_std", "smooth"):
        assert torch.equal(match_colour(original, edited, torch.ones(1, 37, 45), kind), edited)
    batch = torch.cat([torch.ones(1, 37, 45), blob()])
    both = match_colour(original.expand(2, -1, -1, -1), edited.expand(2, -1, -1, -1), batch, "mean_std")
    assert torch.equal(both[0], edited[0]) and not torch.equal(both[1], edited[0])


def test_seam_steps_against_loops():
    picture, _ = pictures()
    want = torch.zeros(37, 45)
    inside = blob()[0] > 0
    for y in range(37):
        for x in range(45):
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= v < 37 and 0 <= u < 45 and inside[y, x] != inside[v, u]:
                    want[y, x] = max(want[y, x], (picture[0, y, x] - picture[0, v, u]).abs().mean())
    assert torch.allclose(seam_steps(picture, blob())[0], want)


def test_the_seam_picture_is_red_where_it_jumps():
    flat = torch.full((1, 37, 45, 3), 0.5)
    jump = flat + 0.2 * blob()[..., None]
    calm, loud = seam_picture(flat, blob()), seam_picture(jump, blob())
    assert calm.shape == (1, 37, 45, 3) and 0 <= loud.min() and loud.max() <= 1
    assert loud[..., 0].sum() > calm[..., 0].sum() + 10
    assert (loud[..., 0] > 0.9).any() and not (calm[..., 0] > 0.9).any()


def test_batches_and_sizes_that_go_together():
    original, edited = pictures(1)[0], pictures(4)[1]
    image, seam = paste_pictures(original, edited, blob(), 3, "none")
    assert image.shape == seam.shape == (4, 37, 45, 3)
    for one, edit in zip(image, edited, strict=True):
        assert torch.equal(one[None], paste_back(original, edit[None], blob(), 3))
    big = torch.full((1, 74, 90, 3), 0.25)
    image, _ = paste_pictures(original, big, torch.ones(1, 74, 90), 0, "none")
    assert image.shape == (1, 37, 45, 3) and (image - 0.25).abs().max() < 1e-5


def test_what_does_not_go_together_is_refused():
    original, edited = pictures(3)
    with pytest.raises(ValueError, match="do not go together"):
        paste_pictures(original, edited[:2], blob(), 3, "none")
    with pytest.raises(ValueError, match="edited picture is 37 x 45"):
        paste_pictures(original, edited.transpose(1, 2), blob(), 3, "none")
    with pytest.raises(ValueError, match="mask is 37 x 45"):
        paste_pictures(original, edited, blob().transpose(1, 2), 3, "none")


def test_an_alpha_channel_is_left_out():
    original, edited = pictures()
    alpha = torch.ones(1, 37, 45, 1)
    image, _ = paste_pictures(torch.cat([original, alpha], -1), torch.cat([edited, alpha], -1), blob(), 0, "none")
    assert torch.equal(image, paste_back(original, edited, blob()))
