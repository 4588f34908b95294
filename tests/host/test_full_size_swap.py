"""The swap through UNets of full width, random weights, two gradients on the smallest latents."""

import gc
import importlib.util
from pathlib import Path

import pytest
import torch
from inlay.host import swap_run
from inlay.host.swap import SwapSettings, SwapTexts, swap_picture

pytestmark = pytest.mark.full_size

_spec = importlib.util.spec_from_file_location("full_size", Path(__file__).parents[1] / "full_size.py")
full_size = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(full_size)

WIDTHS = {"sd15": 768, "sd21_v": 1024, "sdxl": 2048}
TEXTS = SwapTexts("a cat on a sofa", "a teapot on a sofa", "cat", "teapot")


@pytest.mark.parametrize("name", WIDTHS)
def test_one_model_in_one_batch_is_two_models_apart(tiny, monkeypatch, name):
    """Each branch keeps its own texts, pooled ones too, where both share a forward; nothing moves outside the box."""
    encode = lambda clip, text: full_size.conditioning(WIDTHS[name], sum(map(ord, text)))  # noqa: E731
    monkeypatch.setattr(swap_run, "encode_text", encode)
    model = getattr(full_size, name)(depth=1, dtype=torch.float32)
    image = torch.rand(1, 61, 70, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 61, 70)
    mask[:, 20:40, 24:50] = 1

    def swap(target_model):
        settings = SwapSettings(iterations=10, skip=5)
        return swap_picture(model, target_model, tiny.clip, tiny.vae, image, mask, TEXTS, settings)

    (together, latent), (apart, other) = swap(None), swap(model.clone())
    moved = (latent["samples"] - other["samples"]).abs().max()
    assert moved < 1e-3 * latent["samples"].abs().max()
    assert torch.equal(together[mask == 0], image[mask == 0]) and torch.equal(apart[mask == 0], image[mask == 0])
    assert (together - image)[mask == 1].abs().mean() > 0.01
    gc.collect()
