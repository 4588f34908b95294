"""Backgrounds by noise level, and the loop that puts them back."""

import pytest
import torch
from inlay.guidance.background import blend, inverted, mask_cells, renoised
from inlay.guidance.ddim import ddim_step, invert
from inlay.guidance.noise import CandidateNoise
from inlay.guidance.samplers import SAMPLERS, sample
from inlay.guidance.trajectory import Trajectory

SIGMAS = [0.03, 0.2, 0.7, 1.9, 5.0, 14.6]
DOWN = [*reversed(SIGMAS), 0.0]


def denoise(x, sigma):
    return 0.4 * x / (0.4 + sigma**2) + 0.1 * torch.sin(x)


def clean(rows=1):
    return torch.randn(rows, 4, 6, 5, generator=torch.Generator().manual_seed(3))


def path():
    start = clean()
    noises = [(x - start) / SIGMAS[index] for index, x, _ in invert(denoise, start, SIGMAS, 0.03)]
    return Trajectory(torch.tensor(SIGMAS), torch.stack(noises).half(), start, "eps", "m", 48, 40)


def keep_with(at, mask):
    return lambda x, index: blend(x, at(DOWN[index]), mask)


def soft_mask():
    mask = torch.zeros(1, 1, 6, 5)
    mask[..., 2:5, 1:4] = 1
    mask[..., 1, :] = 0.3
    return mask


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("levels", [DOWN, [4.0, 1.0, 0.02, 0.0], [14.6, 0.0]])
def test_with_nothing_to_generate_the_picture_comes_back_bit_for_bit(name, levels):
    trajectory = path()

    def keep(x, index):
        return blend(x, trajectory.at(levels[index]), torch.zeros(1, 1, 6, 5))

    noise = CandidateNoise(0, [0])
    ours = sample(denoise, 9 * clean().flip(0), levels, keep, noise, name=name, eta=0.5, repeats=2)
    assert torch.equal(ours, clean())


def test_blending_with_spins_loop_in_its_own_space():
    """A5 in float64: z <- M z + (1 - M) traj[i - 1] after each step, both in z, indices as the paper counts them."""
    trajectory, mask = path(), soft_mask()
    start = 14.6 * clean().roll(1, -1)
    ours = sample(denoise, start, DOWN, keep_with(inverted(trajectory, start), mask), CandidateNoise(0, [0]))

    def scale(sigma):
        return (1 + sigma**2) ** 0.5

    stored = [trajectory.clean.double()] + [
        (trajectory.clean.double() + sigma * noise.double()) / scale(sigma)
        for sigma, noise in zip(SIGMAS, trajectory.noises, strict=True)
    ]
    levels = [0.0, *SIGMAS]
    m = mask.double()
    z = m * start.double() / scale(levels[-1]) + (1 - m) * stored[-1]
    for i in range(len(levels) - 1, 0, -1):
        x0 = denoise(z * scale(levels[i]), levels[i])
        eps = (z * scale(levels[i]) - x0) / levels[i]
        z = (x0 + levels[i - 1] * eps) / scale(levels[i - 1])
        z = m * z + (1 - m) * stored[i - 1]
    torch.testing.assert_close(ours.double(), z, rtol=1e-4, atol=1e-5)


def test_renoised_is_a_fresh_sample_of_the_level_for_every_row_and_call():
    rows = clean().expand(64, -1, -1, -1)
    at = renoised(rows, CandidateNoise(0, range(64)))
    first, second = at(3.0), at(3.0)
    for latents in (first, second):
        noise = (latents - rows) / 3.0
        assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    assert torch.corrcoef(torch.stack([(first - rows).flatten(), (second - rows).flatten()]))[0, 1].abs() < 0.05
    assert torch.corrcoef(torch.stack([(first - rows)[0].flatten(), (first - rows)[1].flatten()]))[0, 1].abs() < 0.3
    assert torch.equal(at(0.0), rows)


def test_a_candidate_is_the_same_in_any_chunk():
    start, mask = 14.6 * clean(5), soft_mask()

    def run(rows):
        noise = CandidateNoise(9, rows)
        at = renoised(clean().expand(len(rows), -1, -1, -1), noise)
        return sample(denoise, start[list(rows)], DOWN, keep_with(at, mask), noise, name="ddpm", repeats=2)

    whole = run(range(5))
    assert torch.equal(torch.cat([run(range(0, 2)), run(range(2, 5))]), whole)
    assert not torch.equal(whole[0], whole[1])


def test_blending_is_exact_where_the_mask_is_zero_or_one():
    x, outside, mask = 1e4 * clean(), clean().roll(1, 2), soft_mask()
    mixed = blend(x, outside, mask)
    assert torch.equal(mixed[..., 2:5, 1:4], x[..., 2:5, 1:4])
    assert torch.equal(mixed[..., 0, :], outside[..., 0, :])
    assert torch.equal(blend(x, outside, mask), blend(outside, x, 1 - mask))


def test_each_background_is_seen_by_the_next_step():
    """The model is asked with the background of the very level at which it is asked."""
    trajectory, mask, seen = path(), soft_mask(), []

    def recording(x, sigma):
        seen.append((x, sigma))
        return denoise(x, sigma)

    at = inverted(trajectory, clean())
    sample(recording, 14.6 * clean().roll(1, -1), DOWN, keep_with(at, mask), CandidateNoise(0, [0]))
    assert len(seen) == len(SIGMAS)
    for x, sigma in seen:
        assert torch.equal(x[..., 0, :], trajectory.at(sigma)[..., 0, :])
    first = ddim_step(*(seen[0][0], denoise(*seen[0]), 14.6, 5.0))
    assert torch.equal(seen[1][0][..., 2:5, 1:4], first[..., 2:5, 1:4])


def test_a_mask_reaches_the_cells_of_its_picture():
    mask = torch.zeros(1, 48, 40)
    mask[:, 17, 31] = 1
    cells = mask_cells(mask, 6, 5)
    assert cells.nonzero().tolist() == [[0, 0, 2, 3]]


def test_a_mask_of_a_padded_picture_is_padded_with_its_edge():
    mask = torch.zeros(1, 45, 37)
    mask[:, 44, 36] = 1
    assert mask_cells(mask, 6, 5).nonzero().tolist() == [[0, 0, 5, 4]]
    assert mask_cells(torch.ones(1, 45, 37), 6, 5).min() == 1


def test_a_mask_of_a_picture_that_the_host_has_cut_is_cut_alike():
    mask = torch.zeros(1, 53, 45)  # the host keeps rows 2 to 49 and columns 2 to 41
    mask[:, 1] = 1
    assert mask_cells(mask, 6, 5).sum() == 0
    mask[:, 2] = 1
    assert mask_cells(mask, 6, 5)[0, 0, 0].min() == 1


def test_a_mask_of_another_aspect_is_refused():
    with pytest.raises(ValueError, match="aspect"):
        mask_cells(torch.ones(1, 48, 80), 6, 5)
