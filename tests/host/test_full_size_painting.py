"""Inversion, region guidance and the paint job through UNets of full width, random weights, one step, small latents."""

import gc
import importlib.util
from pathlib import Path

import pytest
import torch
from inlay.host.painting import PaintSettings, paint
from inlay.host.region_patches import Region, guide_region

pytestmark = pytest.mark.full_size

_spec = importlib.util.spec_from_file_location("full_size", Path(__file__).parents[1] / "full_size.py")
full_size = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(full_size)

WIDTHS = {"sd15": 768, "sd21_v": 1024, "sdxl": 2048}


@pytest.mark.parametrize("background", ["inverted", "renoised"])
@pytest.mark.parametrize("name", WIDTHS)
def test_one_step_leaves_the_background(tiny, name, background):
    model = getattr(full_size, name)(depth=1)
    image = torch.rand(1, 61, 70, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 61, 70)
    mask[:, 20:40, 24:50] = 1
    texts = full_size.conditioning(WIDTHS[name], 1), full_size.conditioning(WIDTHS[name], 2)
    settings = PaintSettings(steps=1, inversion_steps=1, background=background, candidates=2, at_once=1)
    guided = guide_region(model, [Region(mask)], "null", texts[1][0][0])
    images, latent = paint(guided, *texts, tiny.vae, image, mask, settings)
    assert latent["samples"].isfinite().all()
    _, plain = paint(model, *texts, tiny.vae, image, mask, settings)
    assert not torch.equal(plain["samples"], latent["samples"])
    for painted in images:
        assert torch.equal(painted[mask[0] == 0], image[0][mask[0] == 0])
        assert (painted - image[0])[mask[0] == 1].abs().mean() > 0.01
    del model, guided
    gc.collect()
