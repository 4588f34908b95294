"""Style guidance's gradients: against differences, their steps, what they lower, and half precision."""

import copy
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from inlay.host.style_guidance_patch import StyleOptions, guide_by_style

from .gradient_guidance_setup import (  # noqa: F401
    MASK,
    SIZE,
    count_forwards,
    find_loss,
    fixture_loaded,
    fixture_run,
    observed,
    predictions,
)
from .style_guidance_setup import MODES, STYLE, execute


@pytest.mark.parametrize("features, region", [("vae", "whole"), ("vae", "masked"), ("clip_vision", "inside")])
def test_the_loss_has_the_gradient_of_its_differences_in_float64(tiny, features, region):
    vae, vision = copy.copy(tiny.vae), copy.copy(tiny.clip_vision)
    vae.vae_dtype = torch.float64
    vae.patcher, vision.patcher = tiny.vae.patcher.clone(), tiny.clip_vision.patcher.clone()
    vae.patcher.model = copy.deepcopy(tiny.vae.first_stage_model).double()
    vision.patcher.model = copy.deepcopy(tiny.clip_vision.model).double()
    options = StyleOptions(features=features, region=region)
    loss = find_loss(guide_by_style(tiny.model, vae, STYLE, MASK, vision, options))
    generator = torch.Generator().manual_seed(0)
    clean, direction = (torch.randn(1, 4, *SIZE, dtype=torch.float64, generator=generator) for _ in range(2))
    clean.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(clean, clean, torch.ones(1)).sum(), clean)
    with torch.no_grad():
        values = [loss(clean + h * direction, clean, torch.ones(1)) for h in (1e-4, -1e-4)]
    quotient = (values[0] - values[1]) / 2e-4
    # The target is kept in the encoder's precision; the patch's widths are float64 all the way here.
    torch.testing.assert_close((gradient * direction).sum()[None], quotient, rtol=1e-5, atol=1e-10)
    assert quotient.abs() > 1e-6


@MODES
def test_the_raw_move_is_equation_6(tiny, run, mode):
    """eps + s dL/dz_t: along the move the loss has, by its own differences, the slope that the move's length says."""
    strength = 50.0
    widgets = StyleOptions(strength=strength, strength_unit="raw", mode=mode, region="masked", start_percent=0.4)
    guided = guide_by_style(tiny.model, tiny.vae, STYLE, MASK, None, widgets)
    loss = find_loss(guided)
    captured = {}

    def look(executor, x, sigma, model_options, seed, denoised):
        plain = executor.original
        before = plain(x, sigma, model_options, seed)
        if captured or torch.equal(before, denoised):
            return
        factor = math.sqrt(1 + float(sigma) ** 2)
        eps, moved_eps = (x - before) / sigma, (x - denoised) / sigma
        slope_z = (moved_eps - eps) / strength  # dL/dz_t
        direction = slope_z / slope_z.norm()
        values, step = [], 0.2
        for sign in (1, -1):
            moved = (x / factor + sign * step * direction) * factor
            clean = plain(moved, sigma, model_options, seed) if mode == "exact" else moved - sigma * eps
            with torch.no_grad():
                values.append(loss(clean, moved, sigma))
        captured["slope"], captured["length"] = (values[0] - values[1]) / (2 * step), slope_z.norm()

    run(observed(guided, look), steps=4)
    assert captured["length"] > 0
    torch.testing.assert_close(captured["slope"][0], captured["length"], rtol=0.03, atol=0)


def test_raw_and_fast_leaves_the_highest_noise_alone(loaded, run):
    """Where 1 / a_t = sqrt(1 + sigma^2) is above 8."""
    plain = predictions(loaded.model, run, steps=1)[0]
    fast, exact = (
        predictions(execute(loaded, mode=mode, strength=1000.0, strength_unit="raw"), run, steps=1)[0]
        for mode in ("fast", "exact")
    )
    assert plain[1] > 8 and torch.equal(fast[2], plain[2]) and not torch.equal(exact[2], plain[2])


@MODES
def test_gradient_steps_share_one_forward_and_follow_each_other(loaded, run, mode):
    model, counted = count_forwards(loaded.model)
    (plain,) = predictions(loaded.model, run, steps=1, batch=2)
    share, values = [], []
    for steps in (1, 3):
        guided = execute(loaded, model=model, mode=mode, gradient_steps=steps)
        (moved,) = predictions(guided, run, steps=1, batch=2)
        share.append((moved[2] - plain[2]).flatten(1).norm(dim=1) / (plain[0] - plain[2]).flatten(1).norm(dim=1))
        with torch.no_grad():
            values.append(find_loss(guided)(moved[2], moved[0], moved[1]))
    assert counted == [4, 4]  # both conds of CFG for both latents, at once
    torch.testing.assert_close(share[0], torch.full((2,), 0.1), rtol=1e-2, atol=0)
    assert (share[1] > 0.12).all() and (share[1] <= 0.31).all()
    if mode == "fast":
        assert (values[1] < values[0]).all()


@pytest.mark.parametrize("widgets", [{}, {"region": "masked"}, {"features": "clip_vision"}, {"mode": "exact"}])
def test_guidance_lowers_the_style_loss(loaded, run, widgets):
    """Of the clean estimate, with and without, at the last step."""
    guided = execute(loaded, strength=0.3, **widgets)
    *_, plain = predictions(loaded.model, run, steps=3)
    *_, moved = predictions(guided, run, steps=3)
    loss = find_loss(guided)
    with torch.no_grad():
        assert loss(moved[2], moved[0], moved[1]) < 0.95 * loss(plain[2], plain[0], plain[1])


def test_the_region_is_the_masks_inside(tiny):
    """Masked: outside pixels of the estimate and inside pixels of the style picture count for nothing."""

    class Pixels:
        patcher, balanced = tiny.vae.patcher, False

        def __call__(self, pictures):
            return [pictures]

    from inlay.host.style_guidance_patch import style_target

    inside = MASK[..., None] > 0
    other = torch.where(inside, torch.rand_like(STYLE), STYLE)
    estimate = torch.rand(1, 3, 64, 80)
    changed = torch.where(inside.movedim(-1, 1), estimate, torch.rand_like(estimate))
    loss = style_target(Pixels(), STYLE, MASK, "masked")
    assert torch.equal(loss(estimate, MASK), style_target(Pixels(), other, MASK, "masked")(changed, MASK))
    for style, mask in ((1 - other, MASK), (STYLE, 1 - MASK)):
        assert not torch.equal(loss(estimate, MASK), style_target(Pixels(), style, mask, "masked")(estimate, mask))
    assert not torch.equal(loss(estimate, MASK), style_target(Pixels(), STYLE, MASK, "inside")(estimate, MASK))


def half_vae(vae, factor=1.0):
    """The VAE in fp16; a factor on its last layer makes it overflow."""
    vae = copy.copy(vae)
    vae.vae_dtype = torch.float16
    vae.patcher = vae.patcher.clone()
    vae.patcher.model = copy.deepcopy(vae.first_stage_model).half()
    with torch.no_grad():
        vae.patcher.model.decoder.conv_out.weight.mul_(factor)
    return vae


def test_half_precision_never_ends_in_nan(tiny, run, caplog):
    models = SimpleNamespace(**{**vars(tiny), "vae": half_vae(tiny.vae)})
    (plain,) = predictions(tiny.model, run, steps=1)
    (moved,) = predictions(execute(models), run, steps=1)
    share = (moved[2] - plain[2]).norm() / (plain[0] - plain[2]).norm()
    assert float(share) == pytest.approx(0.1, rel=0.02)
    models.vae = half_vae(tiny.vae, 6e4)
    with caplog.at_level(logging.WARNING):
        (moved,) = predictions(execute(models), run, steps=1)
    assert torch.equal(moved[2], plain[2])
    assert "Guide by style: the gradient of 1 of 1 pictures is not finite" in caplog.text
