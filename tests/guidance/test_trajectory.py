"""A trajectory is matched by noise level, and refuses what it does not belong to."""

import math
from dataclasses import replace

import pytest
import torch
from inlay.guidance.trajectory import Trajectory

SIGMAS = torch.tensor([0.03, 0.5, 2.0, 14.6])


def path(precision=torch.float32, batch=1):
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(batch, 4, 5, 6, generator=generator)
    noises = torch.randn(4, batch, 4, 5, 6, generator=generator).to(precision)
    return Trajectory(SIGMAS, noises, clean, "eps", "model", 40, 48)


def test_on_the_grid_it_is_what_was_stored():
    trajectory = path()
    for index, sigma in enumerate(SIGMAS.tolist()):
        assert torch.equal(trajectory.at(sigma), trajectory.latents[index])


def test_level_zero_is_the_clean_latent_bit_for_bit():
    trajectory = path(torch.float16)
    assert torch.equal(trajectory.at(0.0), trajectory.clean)
    assert trajectory.at(0.0).data_ptr() != trajectory.clean.data_ptr()


def test_between_levels_the_noise_is_linear_in_the_log_of_sigma():
    trajectory, sigma = path(), 1.1
    share = (math.log(sigma) - math.log(0.5)) / (math.log(2.0) - math.log(0.5))
    noise = (1 - share) * trajectory.noises[1].double() + share * trajectory.noises[2].double()
    want = trajectory.clean.double() + sigma * noise
    torch.testing.assert_close(trajectory.at(sigma).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("sigma", "index"), [(0.001, 0), (30.0, -1)])
def test_beyond_the_grid_the_ends_noise_holds(sigma, index):
    trajectory = path()
    assert torch.equal(trajectory.at(sigma), trajectory.clean + sigma * trajectory.noises[index])


def test_half_precision_keeps_the_noise_to_its_rounding():
    for sigma in (*SIGMAS.tolist(), 0.01, 1.0, 20.0):
        error = (path(torch.float16).at(sigma) - path().at(sigma)).abs()
        assert error.max() < sigma * 2.0**-9
    assert path(torch.float16).at(2.0).dtype == torch.float32


def test_rows_choose_pictures_with_repeats():
    trajectory = path(batch=2)
    chosen = trajectory.rows(torch.tensor([1, 0, 1]))
    assert torch.equal(chosen.at(0.7), trajectory.at(0.7)[[1, 0, 1]])


def test_its_own_picture_and_model_pass():
    path().check(5, 6, "model", "eps")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_id": "another"}, "another model"),
        ({"prediction": "v"}, "predicts v"),
        ({"clean": torch.zeros(1, 4, 5, 7), "width": 56}, "56 x 40 pixels"),
    ],
)
def test_anothers_path_is_refused_in_one_sentence(change, words):
    with pytest.raises(ValueError, match=words):
        replace(path(), **change).check(5, 6, "model", "eps")
