"""The losses, the strengths and the warps against their formulas in float64."""

import math

import pytest
import torch
from inlay.guidance import augment, clip_losses, normalised
from inlay.guidance.region_view import masked_view
from torch.nn.functional import grid_sample, normalize


def units(*shape, seed=0):
    return normalize(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_spherical_distance_is_half_the_squared_angle():
    u, v = units(5, 16), units(5, 16, seed=1)
    angle = (u * v).sum(-1).acos()
    torch.testing.assert_close(clip_losses.spherical_distance(u, v), angle**2 / 2)
    torch.testing.assert_close(clip_losses.cosine_distance(u, v), 1 - angle.cos())


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("distance", clip_losses.DISTANCES.values())
def test_the_gradient_stays_finite_at_equal_and_at_opposite_vectors(distance, sign):
    v = units(1, 16)
    u = (sign * v).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distance(u, v).sum(), u)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", clip_losses.DISTANCES)
def test_the_clip_distance_is_the_mean_over_copies_and_targets(name):
    copies, targets = units(3, 2, 8).requires_grad_(), units(4, 8, seed=1)
    values = clip_losses.clip_distance(copies, targets, name)
    for sample in range(2):
        each = [clip_losses.DISTANCES[name](copies[n, sample], t) for n in range(3) for t in targets]
        torch.testing.assert_close(values[sample], torch.stack(each).mean())
    assert torch.autograd.gradcheck(lambda x: clip_losses.clip_distance(x, targets, name), copies)
    own = torch.stack([targets[:2], targets[2:]])
    alone = [clip_losses.clip_distance(copies[:, [row]], own[row], name)[0] for row in range(2)]
    torch.testing.assert_close(clip_losses.clip_distance(copies, own, name), torch.stack(alone))


def test_range_and_background():
    pictures = torch.full((2, 3, 4, 4), 1.5, dtype=torch.float64)
    pictures[1] = 0.5
    assert clip_losses.range_loss(pictures).tolist() == [0.25, 0]
    mask = torch.zeros(1, 4, 4, dtype=torch.float64)
    mask[:, :2] = 1
    original = torch.where(mask[:, None] > 0, torch.rand(2, 3, 4, 4, dtype=torch.float64), pictures - 0.5)
    torch.testing.assert_close(clip_losses.background_loss(pictures, original, mask), torch.full((2,), 0.125).double())

    def perceptual(a, b, weight):
        assert a.min() >= 0 and torch.equal(weight, (1 - mask).expand(2, 4, 4))
        return torch.tensor([1.0, 2.0], dtype=torch.float64)

    both = clip_losses.background_loss(pictures, original, mask, perceptual)
    torch.testing.assert_close(both, torch.tensor([0.5625, 1.0625], dtype=torch.float64))


def test_the_mix_is_the_papers_in_z():
    z, denoised = torch.randn(2, 4, 3, 3).double(), torch.randn(2, 4, 3, 3).double()
    sigma = torch.tensor([0.3, 14.0], dtype=torch.float64)
    abar = (1 / (1 + sigma**2))[:, None, None, None]
    share = (1 - abar).sqrt()
    mixed = clip_losses.mixed_estimate(denoised, z / abar.sqrt(), sigma)
    torch.testing.assert_close(mixed, share * denoised + (1 - share) * z)


def test_the_moves_are_the_papers_in_z():
    generator = torch.Generator().manual_seed(2)
    z, eps, gradient_z = (torch.randn(2, 4, 3, 3, dtype=torch.float64, generator=generator) for _ in range(3))
    sigma = torch.tensor([0.5, 7.0], dtype=torch.float64)
    a = (1 / (1 + sigma**2).sqrt())[:, None, None, None]
    s = (1 - a**2).sqrt()

    def clean(noise):
        return (z - s * noise) / a

    # dL/dx = a dL/dz, since z = a x.
    x, denoised, gradient = z / a, clean(eps), a * gradient_z
    torch.testing.assert_close(denoised + normalised.noise_move(gradient, sigma, 0.3), clean(eps + 0.3 * gradient_z))
    torch.testing.assert_close(
        denoised + normalised.score_move(gradient, sigma, 0.3), clean(eps + 0.3 * s * gradient_z)
    )

    def norm(it):
        return it.flatten(1).norm(dim=1)[:, None, None, None]

    guided = clean(eps + 0.1 * gradient_z * norm(eps) / norm(gradient_z))
    torch.testing.assert_close(
        denoised + normalised.normalised_move(x, denoised, gradient, 0.1), guided, rtol=1e-6, atol=1e-6
    )
    zero = normalised.normalised_move(x, denoised, torch.zeros_like(x), 0.1)
    assert (zero == 0).all()


def test_samples_that_are_not_finite_are_left_out_one_by_one():
    gradient = torch.randn(3, 4, 2, 2)
    gradient[0, 1, 0, 0], gradient[2, 0, 1, 1] = math.nan, math.inf
    finite, kept = normalised.finite_samples(gradient)
    assert kept.tolist() == [False, True, False]
    assert (finite[[0, 2]] == 0).all() and torch.equal(finite[1], gradient[1])


def test_a_warp_is_the_homography_it_says():
    pictures = torch.rand(2, 4, 20, 20)
    identity = torch.eye(3)[None]
    copies = augment.warp_copies(pictures, identity)
    torch.testing.assert_close(copies[1], pictures)
    assert torch.equal(copies[0], pictures) and augment.warp_copies(pictures, identity[:0]).shape[0] == 1
    warps = augment.random_warps(4, torch.Generator().manual_seed(1))
    copies = augment.warp_copies(pictures, warps)
    line = torch.linspace(-1, 1, 20)
    points = torch.stack([line.repeat(20), line.repeat_interleave(20), torch.ones(400)])
    for copy, warp in zip(copies[1:], warps, strict=True):
        source = torch.linalg.inv(warp) @ points
        grid = (source[:2] / source[2]).T.reshape(1, 20, 20, 2).expand(2, -1, -1, -1)
        want = grid_sample(pictures, grid, padding_mode="border", align_corners=True)
        torch.testing.assert_close(copy, want, atol=2e-4, rtol=0)


def test_warps_stay_in_their_ranges_and_leave_the_random_state_alone():
    state = torch.random.get_rng_state()
    warps = augment.random_warps(400, torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(warps, augment.random_warps(400, torch.Generator().manual_seed(0)))
    plain = (warps - torch.eye(3)).abs().amax((1, 2)) < 1e-6
    assert 0.04 < plain.float().mean() < 0.15  # neither part: 0.3 * 0.3
    affine = warps[(warps[:, 2, :2].abs().amax(1) < 1e-6) & ~plain]
    angle = torch.atan2(affine[:, 1, 0], affine[:, 0, 0]).rad2deg()
    assert 10 < angle.abs().max() <= 15.01 and 0.15 < affine[:, :2, 2].abs().max() <= 0.2001


def test_the_projection_moves_corners_inwards_only(monkeypatch):
    monkeypatch.setattr(augment, "DEGREES", 0)
    monkeypatch.setattr(augment, "TRANSLATION", 0)
    corners = torch.tensor([[-1.0, 1.0, 1.0, -1.0], [-1.0, -1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    projected = augment.random_warps(300, torch.Generator().manual_seed(0)) @ corners
    moved = projected[:, :2] / projected[:, 2:] * corners[:2]
    assert 0.29 < moved.min() < 0.33 and 0.99 < moved.max() < 1.001


def test_picture_and_mask_are_warped_alike():
    mask = (torch.rand(1, 24, 24) > 0.5).float()
    picture = mask[:, None].expand(1, 3, 24, 24)
    copies = augment.warp_copies(torch.cat([picture, mask[:, None]], 1), augment.random_warps(3, torch.Generator()))
    torch.testing.assert_close(copies[:, :, 0], copies[:, :, 3])
    assert not torch.equal(copies[1], copies[2])


def test_the_views_show_the_place():
    pictures = torch.rand(2, 3, 40, 60)
    mask = torch.zeros(1, 40, 60)
    mask[:, 10:20, 30:40] = 1
    whole, crop = (masked_view(pictures, mask, 32, view) for view in ("masked", "crop"))
    assert whole.shape == crop.shape == (2, 4, 32, 32)
    assert whole[:, 3].mean() == pytest.approx(100 / 2400, rel=0.02)
    assert crop[:, 3].mean() == pytest.approx((10 / 11) ** 2, rel=0.02)
    changed = torch.where(mask[:, None] > 0, pictures, 0.0)
    inside = crop[:, 3] > 0.999
    middle = torch.zeros_like(inside)
    middle[:, 8:24, 8:24] = True
    same = masked_view(changed, mask, 32, "crop")
    torch.testing.assert_close(same[:, :3].movedim(1, -1)[inside & middle], crop[:, :3].movedim(1, -1)[inside & middle])
