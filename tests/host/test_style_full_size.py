"""Style guidance at the width of SD1.5, SD2.1-v, SDXL and PixArt, random weights, one step each."""

import gc

import pytest
import torch
from inlay.host.style_guidance_patch import StyleOptions, guide_by_style

from ..full_size import conditioning, sd15, sd21_v, sdxl
from .test_region_pixart import SIZE as PIXART_SIZE
from .test_region_pixart import build as pixart

pytestmark = pytest.mark.full_size

WIDE_PIXART = {"hidden_size": 1152, "num_heads": 16, "caption_channels": 4096, "micro_condition": True}
UNETS = {
    "sd15": (sd15, 768),
    "sd21_v": (sd21_v, 1024),
    "sdxl": (lambda: sdxl(depth=1), 2048),
    "pixart": (lambda: pixart(**WIDE_PIXART), 4096),
}


@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize("name", UNETS)
def test_a_step_of_the_full_width(tiny, sample, name, mode):
    make, width = UNETS[name]
    model, size = make(), PIXART_SIZE if name == "pixart" else (8, 8)
    texts = conditioning(width, 1), conditioning(width, 2)
    scene = torch.rand(1, 8 * size[0], 8 * size[1], 3, generator=torch.Generator().manual_seed(0)) ** 3

    def step(model):
        with torch.inference_mode():
            return sample(model, *texts, steps=1, size=size)

    plain = step(model)
    guided = step(guide_by_style(model, tiny.vae, scene, None, None, StyleOptions(mode=mode, feature_size=64)))
    assert guided.isfinite().all() and (guided - plain).norm() > 1e-3 * plain.norm()
    unguided = guide_by_style(model, tiny.vae, scene, None, None, StyleOptions(mode=mode, strength=0.0))
    assert torch.equal(step(unguided), plain)
    del model, unguided
    gc.collect()
