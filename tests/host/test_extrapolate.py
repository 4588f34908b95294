"""The grown picture on the tiny models."""

import comfy.model_management
import pytest
import torch
from inlay.host import extrapolation, kept_work
from inlay.nodes.extrapolate import Extrapolate

H, W = 32, 40
IMAGE = torch.rand(1, H, W, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def grow(tiny):
    """grow(image=, right=..., ...) -> image, mask."""

    def run(image=IMAGE, clip=tiny.clip, **given):
        widgets = {
            socket.id: socket.default for socket in Extrapolate.define_schema().inputs if hasattr(socket, "default")
        }
        widgets = {name: value for name, value in widgets.items() if value is not None}
        with torch.inference_mode():
            return Extrapolate.execute(
                tiny.model, clip, tiny.vae, image, **{**widgets, "right": 0, "steps": 1, "cfg": 1.0, **given}
            ).result

    return run


@pytest.fixture
def jobs(monkeypatch):
    """What was painted: (text's conditioning, window, place, settings)."""
    seen, paint = [], extrapolation.paint

    def watched(model, positive, negative, vae, image, mask, settings):
        seen.append((positive, image, mask, settings))
        return paint(model, positive, negative, vae, image, mask, settings)

    monkeypatch.setattr(extrapolation, "paint", watched)
    return seen


def test_every_side_grows_by_any_width_and_no_pixel_of_the_original_changes(grow):
    image = torch.cat([IMAGE, IMAGE.flip(2)])
    grown, mask, seam = grow(image=image, left=5, right=9, top=3, bottom=8, clean_up=0.2)
    assert isinstance(seam, float) and -255 < seam < 255
    assert grown.shape == (2, H + 11, W + 14, 3) and mask.shape == grown.shape[:3]
    assert torch.equal(grown[:, 3:-8, 5:-9], image)
    inside = torch.ones_like(mask)
    inside[:, 3:-8, 5:-9] = 0
    assert torch.equal(mask, inside)
    assert grown.isfinite().all() and 0 <= grown.min() and grown.max() <= 1
    assert not torch.equal(grown, grow(image=image, left=5, right=9, top=3, bottom=8, clean_up=0.2, seed=1)[0])


def test_levels_rise_seeds_differ_and_the_clean_up_comes_last(grow, jobs):
    grow(right=W, first_level=0.2, last_level=0.8, clean_up=0.3, seed=2**64 - 1)
    levels = [settings.denoise for *_, settings in jobs]
    assert levels[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8]) and levels[4] == 0.3
    assert [settings.seed for *_, settings in jobs] == [(i - 1) % 2**64 for i in range(7)]
    assert all(settings.background == "renoised" for *_, settings in jobs)


def test_each_side_has_its_prompt_or_the_common_one(grow, jobs, encode):
    grow(left=8, top=8, prompt="snow", left_prompt="a beach", top_prompt="  ", clean_up=0.0)
    assert [
        torch.equal(job[0][0][0], encode(text)[0][0]) for job, text in zip(jobs, ("a beach", "snow"), strict=True)
    ] == [True, True]


def test_clip_guides_a_strip_where_it_is_given(grow, tiny):
    plain, *_ = grow(right=8, prompt="a star", clean_up=0.0)
    guided, *_ = grow(right=8, prompt="a star", clean_up=0.0, clip_vision=tiny.clip_vision, strength=1.0)
    silent, *_ = grow(right=8, prompt="a star", clean_up=0.0, clip_vision=tiny.clip_vision, strength=0.0)
    assert torch.equal(plain, silent) and not torch.equal(plain, guided)
    assert torch.equal(guided[:, :, :W], IMAGE)


def test_words_and_nets_of_the_guidance_serve_all_strips(grow, tiny, monkeypatch):
    calls = []
    for name in ("clip_targets", "clip_nets"):
        real = getattr(extrapolation, name)
        monkeypatch.setattr(
            extrapolation, name, lambda *given, real=real, name=name: calls.append(name) or real(*given)
        )
    grow(right=16, left=8, prompt="a star", left_prompt="snow", clip_vision=tiny.clip_vision, negative="star " * 90)
    assert sorted(calls) == ["clip_nets", "clip_targets", "clip_targets"]


def test_colours_are_led_up_to_the_seam(grow, monkeypatch):
    def paler(model, positive, negative, vae, image, mask, settings):
        return image * 0.8 + 0.1, None

    monkeypatch.setattr(extrapolation, "paint", paler)
    flat = torch.full_like(IMAGE, 0.9)
    seams = [grow(image=flat, left=8, clean_up=0.0, feather=0, match_colour=match)[2] for match in (False, True)]
    # Of a strip of only eight pixels, all of which are looked at, half is faded by then.
    assert seams[0] == pytest.approx(255 * 0.08, rel=0.01) and seams[1] == pytest.approx(255 * 0.04, rel=0.1)


def test_cancel_keeps_what_has_grown(grow, monkeypatch):
    kept, calls, paint = [], [], extrapolation.paint

    def cancelled(*job):
        calls.append(job)
        if len(calls) == 2:
            raise comfy.model_management.InterruptProcessingException()
        return paint(*job)

    monkeypatch.setattr(extrapolation, "paint", cancelled)
    monkeypatch.setattr(extrapolation, "keep_pictures", lambda *given: kept.append(given))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        grow(right=16, clean_up=0.0)
    images, _, done, total = kept[0]
    assert images.shape == (1, H, W + 16, 3) and (done, total) == (1, 2)


def test_a_failure_keeps_what_has_grown(grow, monkeypatch):
    kept, paint = [], extrapolation.paint

    def fails_later(*job):
        if job[-1].seed > 0:
            raise ValueError("no such layer")
        return paint(*job)

    monkeypatch.setattr(extrapolation, "paint", fails_later)
    monkeypatch.setattr(kept_work, "keep_pictures", lambda *given: kept.append(given))
    with pytest.raises(ValueError, match="no such layer"):
        grow(right=16, clean_up=0.0, seed=0)
    images, name, done, total, why = kept[0]
    assert images.shape == (1, H, W + 16, 3) and (name, done, total) == ("inlay_failed", 1, 2) and "failed" in why
    kept.clear()
    with pytest.raises(ValueError, match="no such layer"):
        grow(right=16, clean_up=0.0, seed=1)
    assert not kept


def test_a_text_of_another_width_is_refused(grow, tiny, monkeypatch):
    monkeypatch.setitem(tiny.model.model.model_config.unet_config, "context_dim", 2048)
    with pytest.raises(ValueError, match="The texts are 128 wide and the model takes 2048. Connect the CLIP"):
        grow(right=8)


def test_what_cannot_be_kept_does_not_take_the_cancels_place(grow, monkeypatch, caplog):
    def cancelled(*_):
        raise comfy.model_management.InterruptProcessingException()

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr(extrapolation, "paint", cancelled)
    monkeypatch.setattr(extrapolation, "keep_pictures", fails)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        grow(right=16, clean_up=0.0)
    assert "could not be kept: no space left" in caplog.text


def test_bad_input_is_one_clear_sentence(grow):
    for message, given in (
        ("no side to grow", {}),
        ("would become 8240 x 32 pixels", {"right": 8200}),
        ("too small to grow", {"image": IMAGE[:, :7], "right": 8}),
        ("no text encoder", {"clip": None, "right": 8}),
    ):
        with pytest.raises(ValueError, match=message):
            grow(**given)
