"""Attention read from UNets of SD1.5, SD2.1-v and SDXL at their full width, in bf16, random weights."""

import importlib.util
from pathlib import Path

import pytest
import torch
from inlay.host.inversion import empty_conditioning
from inlay.host.saliency import chosen_layers, self_attention_map, word_maps

pytestmark = pytest.mark.full_size

_spec = importlib.util.spec_from_file_location("full_size", Path(__file__).parents[1] / "full_size.py")
full_size = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(full_size)

WIDTHS = {"sd15": 768, "sd21_v": 1024, "sdxl": 2048}


@pytest.mark.parametrize("name", WIDTHS)
def test_maps_of_real_widths(name):
    model = getattr(full_size, name)(depth=1)
    latent = 5 * torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    text = full_size.conditioning(WIDTHS[name])
    layers = chosen_layers(model, latent, "16x16")
    saliency = self_attention_map(model, empty_conditioning(model), latent, layers, [300.0])
    assert abs(float(saliency.mean()) - 1) < 1e-4 and saliency.std() > 0
    words = word_maps(model, text, latent, [4, 5], layers, [300.0], stretch=True)
    assert torch.isfinite(words).all() and words.min() == 0 and words.max() == 1
