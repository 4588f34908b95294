"""CLIP guidance's gradients: against differences, added up, and where there is none."""

import copy
import logging
from types import SimpleNamespace

import comfy.samplers
import pytest
import torch
from inlay.guidance.normalised import score_move
from inlay.host import demo_models as build
from inlay.host.clip_guidance_patch import ClipOptions, guide_by_clip
from inlay.host.gradient_guidance import Guidance, guide

from .clip_guidance_setup import MODES, execute
from .gradient_guidance_setup import MASK, SIZE, find_loss, fixture_loaded, fixture_run, observed, predictions  # noqa: F401

# Of any guidance: `place` is a way of CLIP's to look.
WAYS = pytest.mark.parametrize("mode", ["fast", "exact"])


@MODES
@pytest.mark.parametrize("view", ["masked", "crop"])
def test_the_move_follows_the_loss_downhill(tiny, run, mode, view):
    """-s sigma^2 dL/dx: along the move the loss has the slope that the move's length says, by its own differences."""
    strength = 1000.0
    widgets = ClipOptions(strength=strength, strength_unit="raw", augmentations=2, view=view, mode=mode)
    captured = {}
    guided = guide_by_clip(tiny.model, tiny.vae, tiny.clip, tiny.clip_vision, "a red star", None, MASK, None, widgets)
    loss = find_loss(guided)

    def look(executor, x, sigma, model_options, seed, denoised):
        if captured:
            return
        captured["first"] = True
        plain = executor.original
        before = plain(x, sigma, model_options, seed)
        gradient = (before - denoised) / (strength * sigma**2)
        length = gradient.norm()
        direction = gradient / length
        noise = x - before
        values = []
        step = 0.5
        for sign in (1, -1):
            moved = x + sign * step * direction
            clean = plain(moved, sigma, model_options, seed) if mode == "exact" else moved - noise
            with torch.no_grad():
                values.append(loss(clean, moved, sigma))
        captured["slope"], captured["length"] = (values[0] - values[1]) / (2 * step), length

    run(observed(guided, look), steps=1)
    assert captured["length"] > 0
    torch.testing.assert_close(captured["slope"][0], captured["length"], rtol=0.03, atol=0)


@pytest.mark.parametrize("weights", [{}, {"range_weight": 3.0, "background_weight": 2.0, "mix": False}])
def test_the_loss_has_the_gradient_of_its_differences_in_float64(tiny, monkeypatch, weights):
    vae = copy.copy(tiny.vae)
    vae.vae_dtype = torch.float64
    vae.patcher = tiny.vae.patcher.clone()
    vae.patcher.model = copy.deepcopy(tiny.vae.first_stage_model).double()
    image = torch.rand(1, 64, 80, 3)
    widgets = ClipOptions(strength=1.0, strength_unit="raw", augmentations=2, **weights)
    guided = guide_by_clip(tiny.model, vae, tiny.clip, tiny.clip_vision, "a red star", None, MASK, image, widgets)
    loss = find_loss(guided)
    generator = torch.Generator().manual_seed(0)
    noise, direction = (torch.randn(1, 4, *SIZE, dtype=torch.float64, generator=generator) for _ in range(2))
    sigma = torch.tensor([2.0], dtype=torch.float64)
    x = (0.5 * noise.flip(-1) + 2 * noise).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x - 2 * noise, x, sigma).sum(), x)
    with torch.no_grad():
        values = [loss(x + h * direction - 2 * noise, x + h * direction, sigma) for h in (1e-5, -1e-5)]
    quotient = (values[0] - values[1]) / 2e-5
    assert quotient.abs() > 1e-7
    torch.testing.assert_close((gradient * direction).sum()[None], quotient, rtol=1e-5, atol=1e-12)


@MODES
def test_the_normalised_strength_is_a_share_of_each_samples_noise(loaded, run, mode):
    guided = execute(loaded, mode=mode, strength=0.2)
    (plain,) = predictions(loaded.model, run, steps=1, batch=2)
    (moved,) = predictions(guided, run, steps=1, batch=2)
    assert torch.equal(plain[0], moved[0])
    share = (moved[2] - plain[2]).flatten(1).norm(dim=1) / (plain[0] - plain[2]).flatten(1).norm(dim=1)
    torch.testing.assert_close(share, torch.full((2,), 0.2), rtol=1e-2, atol=0)


def plain_guidance(loss, **options):
    defaults = dict(
        name="Test", strength=0.5, raw_move=None, mode="fast", start_percent=0.0, end_percent=1.0, patchers=()
    )
    return Guidance(loss=loss, **{**defaults, **options})


@WAYS
def test_a_gradient_that_is_not_finite_is_skipped_for_its_sample_and_said(loaded, run, mode, caplog):
    def loss(denoised, x, sigma):
        values = denoised.square().flatten(1).sum(1)
        return values / torch.tensor([0.0, 1.0])[: len(values)] * torch.tensor([0.0, 1.0])[: len(values)]

    (plain,) = predictions(loaded.model, run, steps=1, batch=2)
    with caplog.at_level(logging.WARNING):
        (moved,) = predictions(guide(loaded.model, plain_guidance(loss, mode=mode)), run, steps=1, batch=2)
    assert "1 of 2 pictures is not finite" in caplog.text
    torch.testing.assert_close(moved[2][0], plain[2][0], rtol=0, atol=1e-3)  # another attention backend
    assert (moved[2][1] - plain[2][1]).norm() > 1
    if mode == "fast":
        assert torch.equal(moved[2][0], plain[2][0])


@WAYS
def test_two_guidances_add_up(loaded, run, mode):
    targets = [torch.full((4, *SIZE), value) for value in (1.0, -2.0)]

    def pull(target):
        return plain_guidance(
            lambda denoised, x, sigma: (denoised - target).square().flatten(1).sum(1) / 1e4,
            mode=mode,
            strength=0.01,
            raw_move=score_move,
        )

    (plain,) = predictions(loaded.model, run, steps=1)
    first, second = (predictions(guide(loaded.model, pull(it)), run, steps=1)[0] for it in targets)
    (both,) = predictions(guide(guide(loaded.model, pull(targets[0])), pull(targets[1])), run, steps=1)
    move = first[2] + second[2] - 2 * plain[2]
    assert (both[2] - plain[2] - move).norm() < 0.05 * move.norm()


def test_the_percent_range(loaded, run):
    seen = []

    def loss(denoised, x, sigma):
        seen.append(float(sigma[0]))
        return denoised.square().flatten(1).sum(1)

    sigmas = [float(sigma[0]) for _, sigma, _ in predictions(loaded.model, run, steps=4)]
    run(guide(loaded.model, plain_guidance(loss, start_percent=0.2, end_percent=0.6)), steps=4)
    sampling = loaded.model.get_model_object("model_sampling")
    first, last = (float(sampling.percent_to_sigma(it)) for it in (0.2, 0.6))
    assert seen == [sigma for sigma in sigmas if last <= sigma <= first] and 0 < len(seen) < 4


def test_a_patch_that_stops_gradients_is_named(loaded, run):
    model = loaded.model.clone()
    model.set_model_unet_function_wrapper(
        lambda forward, args: forward(args["input"], args["timestep"], **args["c"]).detach()
    )
    guided = execute(SimpleNamespace(**{**vars(loaded), "model": model}), mode="exact")
    with pytest.raises(ValueError, match="lets no gradient through the UNet. Set mode to fast"):
        run(guided)
    assert run(execute(SimpleNamespace(**{**vars(loaded), "model": model}), mode="fast")).isfinite().all()


def test_a_guider_of_two_models_takes_fast_alone(loaded):
    from comfy_extras import nodes_custom_sampler

    if not hasattr(nodes_custom_sampler, "Guider_DualModel"):
        pytest.skip("This host has no guider of two models.")
    other = build.build_model(build.build_unet(4, seed=8).state_dict())
    for mode in ("fast", "exact"):
        guider = nodes_custom_sampler.Guider_DualModel(execute(loaded, mode=mode), other)
        text = [[torch.randn(1, 77, 128), {}]]
        guider.set_conds(text, [[torch.randn(1, 77, 128), {}]])
        guider.set_cfg(3.0)
        noise, sigmas = torch.randn(1, 4, *SIZE), torch.tensor([5.0, 1.0, 0.0])
        sampler = comfy.samplers.sampler_object("euler")
        with torch.inference_mode():
            if mode == "fast":
                assert guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, seed=0).isfinite().all()
            else:
                with pytest.raises(ValueError, match="paints with two models, .* Set mode to fast"):
                    guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, seed=0)
