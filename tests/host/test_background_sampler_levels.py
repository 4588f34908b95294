"""The background sampler sets the background at the level that the model sees, wherever the run starts and ends."""

import comfy.sample
import comfy.samplers
import pytest
import torch
from inlay.host.background_sampler import background_sampler

from .background_sampler_setup import (  # noqa: F401
    LEVELS,
    fixture_cells,
    fixture_latent,
    fixture_mask,
    fixture_paint,
    fixture_trajectory,
    recorded,
)


def test_fixed_works_where_the_sampler_adds_no_noise(tiny, paint, latent, mask, cells):
    seen = []
    sampler = background_sampler("fixed", latent, mask)
    paint(sampler, model=recorded(tiny.model, seen), noise=torch.zeros_like(latent))
    outside = (cells == 0).expand_as(latent)
    noise = (seen[0][1] - latent * 0.18215)[outside] / LEVELS[0]
    assert 0.9 < noise.std() < 1.1


def test_the_model_sees_the_background_of_its_own_level(tiny, paint, latent, mask, cells, trajectory):
    outside = (cells == 0).expand_as(latent)
    for host in (None, comfy.samplers.sampler_object("heun")):
        seen = []
        paint(background_sampler("inverted", latent, mask, trajectory, host), model=recorded(tiny.model, seen))
        assert len(seen) == (3 if host is None else 5)
        for sigma, x in seen:
            assert torch.equal(x[outside], trajectory.at(sigma)[outside])


def test_the_official_off_by_one_can_be_had_for_comparison(tiny, paint, latent, mask, cells, trajectory):
    outside, seen = (cells == 0).expand_as(latent), []
    sampler = background_sampler("inverted", latent, mask, trajectory, level_offset=1)
    ours = paint(sampler, model=recorded(tiny.model, seen))
    for (_, x), late in zip(seen[1:], LEVELS.tolist(), strict=False):
        assert torch.equal(x[outside], trajectory.at(late)[outside])
    assert torch.equal(ours[outside], (latent * 0.18215 / 0.18215)[outside])
    # The fixed background has one noise, at whichever level.
    seen = []
    paint(background_sampler("fixed", latent, mask, level_offset=1), model=recorded(tiny.model, seen))
    clean = latent * 0.18215
    noises = [((x - clean) / late)[outside] for (_, x), late in zip(seen[1:], LEVELS.tolist(), strict=False)]
    assert noises[0].std() > 0.5
    torch.testing.assert_close(noises[0], noises[1], rtol=1e-3, atol=1e-3)


def test_partial_denoise_starts_in_the_middle_of_the_path(tiny, paint, latent, mask, cells, trajectory):
    outside, seen = (cells == 0).expand_as(latent), []
    paint(background_sampler("inverted", latent, mask, trajectory), recorded(tiny.model, seen), levels=LEVELS[1:])
    assert torch.equal(seen[0][1][outside], trajectory.at(3.0)[outside])
    inside = latent * 0.18215 + 3.0 * comfy.sample.prepare_noise(latent, 0)
    torch.testing.assert_close(seen[0][1][~outside], inside[~outside])


def test_a_run_that_stops_early_holds_the_background_of_its_last_level(paint, latent, mask, cells, trajectory):
    outside = (cells == 0).expand_as(latent)
    ours = paint(background_sampler("inverted", latent, mask, trajectory), levels=LEVELS[:3])
    torch.testing.assert_close(ours[outside] * 0.18215, trajectory.at(0.8)[outside])


def test_another_packs_mask_function_is_followed(tiny, paint, latent, mask, trajectory):
    """Differential diffusion asks for a mask by level."""
    seen, asked = [], []

    def halve(sigma, denoise_mask, extra_options):
        asked.append(float(sigma[0]))
        assert extra_options["sigmas"] is not None and extra_options["model"].inner_model is not None
        return (denoise_mask >= 0.5).to(denoise_mask)

    model = recorded(tiny.model, seen)
    model.set_model_denoise_mask_function(halve)
    paint(background_sampler("inverted", latent, torch.full((1, 128, 144), 0.4), trajectory), model=model)
    for sigma, x in seen:
        assert torch.equal(x, trajectory.at(sigma))
    assert asked == pytest.approx([14.6146, 3.0, 0.8, 0.8])
