"""The small swap that its tests share: a picture with a box in it, two texts and a few updates."""

import pytest
import torch
from inlay.host.swap import SwapSettings, SwapTexts, swap_picture

TEXTS = SwapTexts("a red star on a beach", "a blue robot on a beach", "red star", "blue robot")
QUICK = SwapSettings(iterations=10, skip=5, seed=3)
BOX = {"x": 21, "y": 12, "width": 30, "height": 33}


@pytest.fixture(name="picture", scope="module")
def fixture_picture():
    return torch.rand(1, 64, 72, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(name="mask", scope="module")
def fixture_mask():
    mask = torch.zeros(1, 64, 72)
    mask[:, 12:45, 21:51] = 1
    return mask


@pytest.fixture(name="swap")
def fixture_swap(tiny, picture, mask):
    def run(
        settings=QUICK, texts=TEXTS, model=None, target_model=None, image=picture, mask=mask, clip=tiny.clip, **more
    ):
        model = model or tiny.model
        return swap_picture(model, target_model, clip, tiny.vae, image, mask, texts, settings, **more)

    return run


@pytest.fixture(name="forwards")
def fixture_forwards(monkeypatch):
    """Rows of every call of a UNet."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    rows, real = [], UNetModel.forward

    def counted(self, x, *args, **kwargs):
        rows.append(len(x))
        return real(self, x, *args, **kwargs)

    monkeypatch.setattr(UNetModel, "forward", counted)
    return rows


def latent_of(tiny, picture):
    return tiny.vae.encode(picture)
