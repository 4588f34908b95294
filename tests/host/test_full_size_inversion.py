"""Inversion and replay through UNets of full width, random weights, smallest latents."""

import gc
import importlib.util
from pathlib import Path

import comfy.sample
import pytest
import torch
from inlay.host.background_sampler import background_sampler
from inlay.host.inversion import invert_latent

pytestmark = pytest.mark.full_size

_spec = importlib.util.spec_from_file_location("full_size", Path(__file__).parents[1] / "full_size.py")
full_size = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(full_size)

WIDTHS = {"sd15": 768, "sd21_v": 1024, "sdxl": 2048}


@pytest.mark.parametrize("name", WIDTHS)
def test_two_steps_up_and_down(name):
    model = getattr(full_size, name)(depth=1)
    latent = 5 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    # Without text: the zeros have to fit the family, pooled text included.
    trajectory, end = invert_latent(model, latent, 64, 64, steps=2)
    assert trajectory.prediction == ("v" if name == "sd21_v" else "eps")
    assert torch.isfinite(end).all() and trajectory.noises.std() > 0.1

    mask = torch.zeros(1, 64, 64)
    mask[:, 16:40, 16:40] = 1
    levels = torch.cat([trajectory.sigmas.flip(0), torch.zeros(1)])
    texts = full_size.conditioning(WIDTHS[name], 1), full_size.conditioning(WIDTHS[name], 2)
    noise = comfy.sample.prepare_noise(latent, 0)
    sampler = background_sampler("inverted", latent, mask, trajectory)
    options = {"disable_pbar": True, "seed": 0}
    painted = comfy.sample.sample_custom(model, noise, 5.0, sampler, levels, *texts, latent, **options)
    inside = mask[:, None, ::8, ::8].expand_as(latent) > 0
    scale = model.model.latent_format.scale_factor
    assert torch.equal(painted[~inside], (latent * scale / scale)[~inside])
    assert torch.isfinite(painted).all() and (painted - latent)[inside].abs().mean() > 0.1
    del model, sampler
    gc.collect()
