"""The bench `swap`: its reference comes to the same picture by another way, and its rows."""

import torch
from inlay.benchmarks import official_swap as official
from inlay.benchmarks import swap
from inlay.host.swap import SwapSettings, swap_picture

BOX = {"x": 21, "y": 12, "width": 30, "height": 33}
SETTINGS = SwapSettings(iterations=8, skip=3, seed=3, paste="none", outside="raw")


def test_the_reference_and_each_part_come_to_our_picture(tiny, monkeypatch):
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    rows, real = [], UNetModel.forward
    monkeypatch.setattr(UNetModel, "forward", lambda self, x, *a, **k: rows.append(len(x)) or real(self, x, *a, **k))
    clip, image = swap.AnyText(128), torch.rand(1, 64, 72, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 64, 72)
    ours, _ = swap_picture(tiny.model, None, clip, tiny.vae, image, mask, swap.TEXTS, SETTINGS, bbox=BOX)
    still, _ = swap_picture(
        tiny.model, None, clip, tiny.vae, image, mask, swap.TEXTS, SwapSettings(iterations=1, paste="none"), bbox=BOX
    )
    assert rows[:3] == [2, 2, 2]
    moved = (ours - still).abs().max()
    assert moved > 1e-3
    for way in (official.OurWay(), *swap.PARTS.values()):
        rows.clear()
        theirs = official.official_swap(tiny.model, clip, tiny.vae, image, BOX, swap.TEXTS, SETTINGS, way)
        each = 1 if way.no_negative else 2
        assert rows == ([2 * each] * 3 if way.one_forward else [each] * 6)
        assert (ours - theirs).abs().max() < 0.02 * moved


def test_rows(tiny):
    scale = swap.Scale(tiny.model, 128, 64, 3, "tiny")
    names = [row.name for row in swap.run(scale)]
    assert names == ["swap", "swap: ca", *(f"swap: {part}" for part in swap.PARTS)]
