"""Inversion and the loops against the papers' formulas, in float64 and in the papers' own space z."""

import math

import numpy as np
import pytest
import torch
from inlay.guidance.ddim import ddim_step, invert, replay
from inlay.guidance.noise import CandidateNoise
from inlay.guidance.samplers import sample, step

SIGMAS = [0.03, 0.2, 0.7, 1.9, 5.0, 14.6]
LOWEST = 0.029
DEVIATION = 0.6


def denoise(x, sigma):
    """The exact x0 of data N(mean, DEVIATION^2), bent a little so that steps do not commute by chance."""
    mean = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)
    share = DEVIATION**2 / (DEVIATION**2 + sigma**2)
    return mean + share * (x - mean) + 0.05 * torch.sin(x / math.sqrt(1 + sigma**2))


def picture(dtype=torch.float64):
    return torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def abar(sigma):
    return 1 / (1 + sigma**2)


def in_z(model_level, z, sigma):
    """(x0, eps) of a latent z of the papers' space, the model asked at another level where there is none."""
    x = z * math.sqrt(1 + model_level**2)
    x0 = denoise(torch.from_numpy(x), model_level).numpy()
    a, s = math.sqrt(abar(model_level)), math.sqrt(1 - abar(model_level))
    return x0, (a * x - a * x0) / s


def ddim_in_z(z, sigma, target):
    x0, eps = in_z(sigma, z, sigma)
    return math.sqrt(abar(target)) * x0 + math.sqrt(1 - abar(target)) * eps


def invert_in_z(z0):
    """z_next = a_next x0 + s_next eps(z, t), upwards; level 0 asks the model's lowest level for eps."""
    path, z, level = [], z0, 0.0
    for target in SIGMAS:
        asked = level or LOWEST
        scaled = z * math.sqrt(1 + level**2) / math.sqrt(1 + asked**2)
        _, eps = in_z(asked, scaled, asked)
        x0 = z0 if level == 0 else (z - math.sqrt(1 - abar(level)) * eps) / math.sqrt(abar(level))
        z = math.sqrt(abar(target)) * x0 + math.sqrt(1 - abar(target)) * eps
        level = target
        path.append(z)
    return path


def to_x(z, sigma):
    return torch.from_numpy(z) * math.sqrt(1 + sigma**2)


def test_inversion_is_the_formula():
    ours = [x for _, x, _ in invert(denoise, picture(), SIGMAS, LOWEST)]
    for x, z, sigma in zip(ours, invert_in_z(picture().numpy()), SIGMAS, strict=True):
        torch.testing.assert_close(x, to_x(z, sigma), rtol=1e-11, atol=1e-11)


def test_inversion_in_fp32_stays_close():
    ours = [x for _, x, _ in invert(denoise, picture(torch.float32), SIGMAS, LOWEST)]
    want = to_x(invert_in_z(picture().numpy())[-1], SIGMAS[-1])
    assert (ours[-1].double() - want).norm() < 1e-5 * want.norm()


def test_replay_is_the_formula():
    levels = [*reversed(SIGMAS), 0.0]
    start = 10 * picture()
    z = start.numpy() / math.sqrt(1 + levels[0] ** 2)
    for sigma, target in zip(levels, levels[1:], strict=False):
        z = ddim_in_z(z, sigma, target)
    torch.testing.assert_close(replay(denoise, start, levels), torch.from_numpy(z), rtol=1e-11, atol=1e-11)


def test_replaying_a_fine_inversion_gives_the_picture_back():
    def error(count):
        sigmas = torch.logspace(math.log10(0.03), math.log10(14.6), count, dtype=torch.float64).tolist()
        *_, (_, end, _) = invert(denoise, picture(), sigmas, LOWEST)
        return (replay(denoise, end, [*reversed(sigmas), 0.0]) - picture()).norm() / picture().norm()

    assert error(800) < 0.02
    assert error(800) < 0.5 * error(200)


def test_ddim_without_noise_is_euler():
    x = 5 * picture()
    x0 = denoise(x, 5.0)
    torch.testing.assert_close(ddim_step(x, x0, 5.0, 1.9), step("euler", x, x0, 5.0, 1.9, 0, None))


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_noise_is_equation_12(eta):
    x, noise = 5 * picture(), picture().flip(0)
    x0, t, s = denoise(x, 5.0), abar(5.0), abar(1.9)
    deviation = eta * math.sqrt((1 - s) / (1 - t)) * math.sqrt(1 - t / s)
    eps = (x - x0) / 5.0
    z = math.sqrt(s) * x0 + math.sqrt(1 - s - deviation**2) * eps + deviation * noise
    torch.testing.assert_close(ddim_step(x, x0, 5.0, 1.9, eta, noise), z * math.sqrt(1 + 1.9**2))


def test_ddpm_is_the_posterior():
    x, noise = 5 * picture(), picture().flip(0)
    x0, t, s = denoise(x, 5.0), abar(5.0), abar(1.9)
    alpha, z, eps = t / s, math.sqrt(t) * x, (x - x0) / 5.0
    mean = (z - (1 - alpha) / math.sqrt(1 - t) * eps) / math.sqrt(alpha)
    want = mean + math.sqrt((1 - alpha) * (1 - s) / (1 - t)) * noise
    ours = step("ddpm", x, x0, 5.0, 1.9, 0, noise)
    torch.testing.assert_close(ours, want * math.sqrt(1 + 1.9**2))


def test_the_step_to_the_clean_level_is_the_estimate_itself():
    x = 5 * picture()
    x0 = denoise(x, 5.0)
    assert ddim_step(x, x0, 5.0, 0.0) is x0
    assert step("ddpm", x, x0, 5.0, 0.0, 0, None) is x0


class Counting:
    """Noise of ones, counted by purpose."""

    def __init__(self):
        self.draws = []

    def draw(self, like, purpose, draw):
        self.draws.append((purpose, draw))
        return torch.ones_like(like)


def test_repeats_bring_the_latent_back_by_repaints_rule():
    noise, seen = Counting(), []

    def recording(x, sigma):
        seen.append((sigma, x))
        return denoise(x, sigma)

    sample(recording, picture(), [5.0, 1.9, 0.7], lambda x, index: x, noise, repeats=2)
    assert [sigma for sigma, _ in seen] == [5.0, 5.0, 1.9, 1.9]
    down = ddim_step(seen[0][1], denoise(seen[0][1], 5.0), 5.0, 1.9)
    beta = 1 - abar(5.0) / abar(1.9)
    z = math.sqrt(1 - beta) * down / math.sqrt(1 + 1.9**2) + math.sqrt(beta)
    torch.testing.assert_close(seen[1][1], z * math.sqrt(1 + 5.0**2))
    assert [purpose for purpose, _ in noise.draws] == ["repeat", "repeat"]


def test_one_repeat_is_plain_and_draws_nothing():
    noise = Counting()
    levels = [5.0, 1.9, 0.0]
    ours = sample(denoise, picture(), levels, lambda x, index: x, noise)
    assert torch.equal(ours, replay(denoise, picture(), levels))
    assert noise.draws == []


def test_the_background_is_called_for_at_the_level_just_reached():
    calls = []

    def keep(x, index):
        calls.append(index)
        return x

    sample(denoise, picture(), [5.0, 1.9, 0.0], keep, Counting(), repeats=2)
    assert calls == [0, 1, 0, 1, 2, 1, 2]


def test_a_candidates_noise_knows_nothing_of_its_batch():
    like = torch.empty(3, 4, 6, 5)
    whole = CandidateNoise(7, [0, 1, 2]).draw(like, "step", 5)
    assert torch.equal(whole[1:2], CandidateNoise(7, [1]).draw(like[:1], "step", 5))
    others = [
        CandidateNoise(8, [0, 1, 2]).draw(like, "step", 5),
        CandidateNoise(7, [0, 1, 2]).draw(like, "step", 6),
        CandidateNoise(7, [0, 1, 2]).draw(like, "background", 5),
        whole.roll(1, 0),
    ]
    assert all(abs(np.corrcoef(whole.flatten(), other.flatten())[0, 1]) < 0.2 for other in others)
    many = CandidateNoise(1, range(40)).draw(torch.empty(40, 4, 8, 8), "step", 0)
    assert abs(many.mean()) < 0.03 and abs(many.std() - 1) < 0.03
