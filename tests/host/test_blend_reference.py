"""The official structure as it is meant: two forwards a step, one candidate after another, the background one late."""

import pytest
import torch
from inlay.host import blend_reference
from inlay.host.blend_reference import official_blend, paint_with_offset
from inlay.host.blending import BlendModels, blend_settings
from inlay.host.clip_guidance_patch import ClipOptions
from inlay.host.painting import PaintSettings, paint

H, W = 64, 72
IMAGE = torch.rand(1, H, W, 3, generator=torch.Generator().manual_seed(0))
MASK = torch.zeros(1, H, W)
MASK[:, 16:35, 24:50] = 1
OUTSIDE = MASK[0] == 0


@pytest.mark.parametrize("background", ["renoised", "fixed"])
def test_without_an_offset_it_is_the_paint_job(tiny, encode, background):
    settings = PaintSettings(3, 3.0, 5, background=background, denoise=0.7, paste="none")
    job = tiny.model, encode("a red star"), encode(""), tiny.vae, IMAGE, MASK
    right, late = (paint_with_offset(*job, settings, None, offset) for offset in (0, 1))
    assert (right - paint(*job, settings)[0]).abs().max() < 1e-5
    assert (right - late).abs().max() > 1e-3


def test_the_official_structure(tiny, monkeypatch):
    calls, seen = [], []
    hook = tiny.model.model.diffusion_model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    real = blend_reference.blend
    monkeypatch.setattr(blend_reference, "blend", lambda x, out, mask: seen.append(out) or real(x, out, mask))
    models = BlendModels(tiny.model, tiny.clip, tiny.vae, tiny.clip_vision)
    settings = blend_settings("ddpm", steps=2, denoise=0.75, candidates=2)
    options = ClipOptions(strength=1000.0, augmentations=1)
    try:
        images, scores = official_blend(models, IMAGE, MASK, "a red star", settings, options)
    finally:
        hook.remove()
    assert calls == [False, True] * 2 * 2
    assert images.shape == (2, H, W, 3) and not torch.equal(*images) and scores == sorted(scores, reverse=True)
    assert all(torch.equal(image[OUTSIDE], IMAGE[0][OUTSIDE]) for image in images)
    # Both candidates end on the clean latent, and before that on fresh noise of their own.
    assert torch.equal(seen[1], seen[3]) and not torch.equal(seen[0], seen[2])
    assert (seen[0] - seen[1]).std() == pytest.approx(float(_levels(tiny, settings)[0]), rel=0.1)


def _levels(tiny, settings):
    return blend_reference.schedule(tiny.model, settings)


def test_guidance_reaches_the_reference(tiny):
    models = BlendModels(tiny.model, tiny.clip, tiny.vae, tiny.clip_vision)
    settings = blend_settings("ddpm", steps=1, denoise=0.5)
    job = models, IMAGE, MASK, "a red star", settings
    plain, guided = (official_blend(*job, ClipOptions(strength=it, augmentations=0))[0] for it in (0.0, 1000.0))
    assert not torch.equal(plain, guided)
