"""A swap of more pictures than fit into memory, and input that only some methods would stumble over."""

from dataclasses import replace

import comfy.model_management
import pytest
import torch
from inlay.attention.boxes import boxes_per_image
from inlay.host import candidates, swap_run
from inlay.host import swap as swap_module
from inlay.host.swap import swap_picture
from inlay.host.swap_settings import SwapSettings, SwapTexts

TEXTS = SwapTexts("a red star on a beach", "a blue robot on a beach", "red star", "blue robot")
QUICK = SwapSettings(iterations=4, skip=2, seed=3)
BOXES = [[{"x": 8, "y": 12, "width": 30, "height": 33}], [{"x": 20, "y": 5, "width": 20, "height": 20}]]


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def swap(tiny, pictures):
    def run(target_model=None, settings=QUICK, clip=tiny.clip):
        mask = torch.ones(1, 64, 64)
        return swap_picture(tiny.model, target_model, clip, tiny.vae, pictures, mask, TEXTS, settings, bbox=BOXES)

    return run


@pytest.fixture
def one_at_a_time(monkeypatch):
    real = swap_run.candidates_that_fit
    asked = []

    def short(model, latent, wanted):
        asked.append((len(latent), wanted, real(model, latent, wanted)))
        return 1

    monkeypatch.setattr(swap_run, "candidates_that_fit", short)
    return asked


@pytest.mark.parametrize("apart", [False, True])
def test_pictures_that_do_not_fit_together_come_out_the_same(swap, tiny, monkeypatch, apart):
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    rows, real = [], UNetModel.forward
    monkeypatch.setattr(UNetModel, "forward", lambda self, x, *a, **k: rows.append(len(x)) or real(self, x, *a, **k))
    target_model = tiny.model.clone() if apart else None
    image, latent = swap(target_model)
    assert rows == ([4] * 4 if apart else [8] * 2)
    rows.clear()
    models, sample = [], swap_run.SwapRun._sample
    monkeypatch.setattr(
        swap_run.SwapRun, "_sample", lambda self, which, *a: models.append(which) or sample(self, which, *a)
    )
    monkeypatch.setattr(candidates, "HEADROOM", 1e12)
    alone, parts = swap(target_model)
    assert rows == ([2] * 8 if apart else [4] * 4)
    # Source and target in turns would load each model once a part.
    assert models == ([0, 0, 1, 1] if apart else [1, 1])
    assert (latent["samples"] - parts["samples"]).abs().max() < 1e-4
    assert (image - alone).abs().max() < 1e-3


@pytest.mark.parametrize("apart", [False, True])
def test_half_as_many_pictures_go_on_where_memory_does_not_hold_them(swap, tiny, monkeypatch, caplog, apart):
    real, shown = swap_run.Forward.noises, []

    def full(self, latents, *args):
        if len(latents[0]) > 1:
            raise comfy.model_management.OOM_EXCEPTION("no room")
        return real(self, latents, *args)

    target_model = tiny.model.clone() if apart else None
    together, _ = swap(target_model)
    monkeypatch.setattr(swap_run.Forward, "noises", full)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda step, total, *_, **__: shown.append((step, total)))
    alone, _ = swap(target_model)
    assert "Going on with 1 pictures at once" in caplog.text
    assert (together - alone).abs().max() < 1e-3
    assert shown[-1] == ((8, 8) if apart else (4, 4))


def test_memory_that_holds_no_picture_is_an_error(swap, monkeypatch):
    def full(*_):
        raise comfy.model_management.OOM_EXCEPTION("no room")

    monkeypatch.setattr(swap_run.Forward, "noises", full)
    with pytest.raises(comfy.model_management.OOM_EXCEPTION, match="no room"):
        swap()


@pytest.mark.parametrize(("press_at", "moved"), [(2, 1), (4, 2)])
def test_cancel_keeps_the_pictures_that_moved(swap, pictures, monkeypatch, one_at_a_time, press_at, moved):
    kept, calls, real = [], [], swap_run.Forward.noises

    def press_cancel(self, *args):
        calls.append(1)
        if len(calls) == press_at:
            comfy.model_management.interrupt_current_processing()
        return real(self, *args)

    monkeypatch.setattr(swap_module, "keep_pictures", lambda *args: kept.append(args))
    monkeypatch.setattr(swap_run.Forward, "noises", press_cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        swap()
    assert one_at_a_time[0][:2] == (2, 2)
    ((images, _, done, total),) = kept
    assert done in (press_at - 1, press_at) and total == 4 and len(images) == moved
    assert all((images[row] != pictures[row]).any() for row in range(moved))


@pytest.mark.parametrize("method", ["instantswap", "dds"])
def test_texts_of_another_model_are_named(swap, tiny, monkeypatch, method):
    wide = [[torch.zeros(1, 77, 64), {"pooled_output": None}]]
    monkeypatch.setattr(swap_run, "encode_text", lambda clip, text: wide)
    with pytest.raises(ValueError, match="The texts are 64 wide and the model takes 128"):
        swap(settings=replace(QUICK, method=method))


@pytest.mark.parametrize("side", [float("nan"), float("inf"), None, "12"])
def test_boxes_need_numbers(side):
    with pytest.raises(ValueError, match="needs the numbers x, y, width and height"):
        boxes_per_image({"x": 1, "y": 2, "width": side, "height": 4}, 1)
