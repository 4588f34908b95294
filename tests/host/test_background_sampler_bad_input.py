"""The background sampler refuses what does not fit before the first step; flow models keep what works on them."""

from dataclasses import replace

import comfy.model_sampling
import comfy.samplers
import pytest
import torch
from inlay.host.background_sampler import background_sampler

from .background_sampler_setup import fixture_latent, fixture_mask, fixture_paint, fixture_trajectory  # noqa: F401


def test_what_does_not_fit_is_refused_at_once(latent, mask, trajectory):
    euler = comfy.samplers.sampler_object("euler")
    for words, arguments in {
        "needs a trajectory": ("inverted", latent, mask),
        "not numbers": ("renoised", latent * float("nan"), mask),
        "Repeats need": ("renoised", latent, mask, None, euler, "ddim", 0.0, 2),
        "no steps that Inlay": ("renoised", latent, mask, None, comfy.samplers.Sampler()),
        "144 x 128 pixels .latent 18 x 16., but the latent here is 18 x 17": (
            *("inverted", torch.zeros(1, 4, 17, 18), mask, trajectory),
        ),
        "same aspect": ("renoised", latent, torch.ones(1, 128, 200)),
    }.items():
        with pytest.raises(ValueError, match=words):
            background_sampler(*arguments)


def test_what_does_not_fit_the_model_is_refused_before_the_first_step(tiny, paint, latent, mask, trajectory):
    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    flow = tiny.model.clone()
    flow.add_object_patch("model_sampling", Flow())
    renoised, two = background_sampler("renoised", latent, mask), latent.expand(2, -1, -1, -1)
    for words, sampler, options in [
        ("flow matching", renoised, {"model": flow}),
        ("predicts v", background_sampler("inverted", latent, mask, trajectory), {"model": tiny.v_model}),
        ("another model", background_sampler("inverted", latent, mask, replace(trajectory, model_id="x")), {}),
        ("of 18 x 16, but the sampler works on 10 x 8", renoised, {"start": latent[..., :8, :10]}),
        ("2 pictures and the sampler 3", background_sampler("renoised", two, mask), {"batch": 3}),
    ]:
        with pytest.raises(ValueError, match=words):
            paint(sampler, **options)


def test_fixed_and_none_work_on_flow_models(tiny, paint, latent, mask):
    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    flow = tiny.model.clone()
    flow.add_object_patch("model_sampling", Flow())
    levels = torch.tensor([1.0, 0.5, 0.0])
    for background in ("fixed", "none"):
        assert torch.isfinite(paint(background_sampler(background, latent, mask), model=flow, levels=levels)).all()
        for options in ({"method": "ddpm"}, {"eta": 0.5}, {"repeats": 2}):
            with pytest.raises(ValueError, match="eta 0 and repeats 1"):
                paint(background_sampler(background, latent, mask, **options), model=flow, levels=levels)
