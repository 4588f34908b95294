"""Inversion through the real host: the formula, other packs' patches, cancel, and every refusal."""

import comfy.hooks
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from inlay.host.demo_models import build_model, build_unet
from inlay.host.inversion import empty_conditioning, inversion_sigmas, invert_image, invert_latent
from inlay.host.models import model_id, prediction_kind
from inlay.nodes.invert import InvertImage

STEPS = 4


@pytest.fixture(scope="module")
def latent():
    return 5 * torch.randn(1, 4, 16, 18, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def inverted(tiny, encode, latent):
    def run(model=None, **options):
        options = {"positive": encode(""), "steps": STEPS, "precision": torch.float32, **options}
        return invert_latent(model or tiny.model, latent, 128, 144, **options)

    return run


def reference(model, latent, context, levels, dtype=torch.float64):
    """Inversion in the papers' space z from the network's own output, sharing nothing with the host's sampling."""
    inner = model.model
    sampling, network = inner.model_sampling, inner.diffusion_model
    table = 1 / (1 + sampling.sigmas.to(dtype) ** 2)
    z, before, path = latent.to(dtype) * inner.latent_format.scale_factor, torch.tensor(1.0, dtype=dtype), []
    for level in levels.to(dtype):
        # The clean level is shown to the network at its lowest timestep.
        t = 0 if not path else int((table - before).abs().argmin())
        shown = z * (table[t] / before).sqrt()
        with torch.no_grad():
            output = network(shown.float(), torch.tensor([float(t)]), context=context).to(dtype)
        if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
            output = (1 - table[t]).sqrt() * shown + table[t].sqrt() * output
        x0 = (z - (1 - before).sqrt() * output) / before.sqrt()
        before = 1 / (1 + level**2)
        z = before.sqrt() * x0 + (1 - before).sqrt() * output
        path.append(z / before.sqrt())
    return path


@pytest.mark.parametrize("name", ["model", "v_model"])
def test_it_is_the_formula_for_eps_and_v(tiny, encode, latent, inverted, name):
    model = getattr(tiny, name)
    # Levels on the model's own timesteps, so that the reference needs no interpolation of them.
    levels = model.get_model_object("model_sampling").sigmas[[20, 200, 500, 999]]
    trajectory, end = inverted(model, sigmas=levels)
    want = reference(model, latent, encode("")[0][0], levels)
    for ours, x in zip(trajectory.latents, want, strict=True):
        assert (ours - x).norm() < 2e-5 * x.norm()
    assert (trajectory.latents[-1] - trajectory.clean).norm() > trajectory.clean.norm()
    scale = model.model.latent_format.scale_factor
    torch.testing.assert_close(end, trajectory.latents[-1] / scale, rtol=1e-5, atol=1e-5)
    assert torch.equal(trajectory.clean, latent * scale)
    assert trajectory.prediction == prediction_kind(model) == {"model": "eps", "v_model": "v"}[name]


def test_the_default_levels_reach_from_the_lowest_to_the_highest(tiny):
    sampling = tiny.model.get_model_object("model_sampling")
    levels = inversion_sigmas(tiny.model, 50)
    assert len(levels) == 50 and (levels.diff() > 0).all()
    torch.testing.assert_close(levels[[0, -1]], torch.stack([sampling.sigma_min, sampling.sigma_max]))


def test_given_sigmas_are_sorted_and_lose_zero_and_doubles(tiny):
    given = torch.tensor([14.6, 3.0, 3.0, 0.5, 0.0])
    assert torch.equal(inversion_sigmas(tiny.model, 50, given), torch.tensor([0.5, 3.0, 14.6]))
    with pytest.raises(ValueError, match="no noise level above 0"):
        inversion_sigmas(tiny.model, 50, torch.zeros(3))


def test_half_precision_by_default_and_the_clean_latent_always_in_full(tiny, latent, inverted):
    trajectory, _ = invert_latent(tiny.model, latent, 128, 144, steps=2)
    assert trajectory.noises.dtype == torch.float16 and trajectory.clean.dtype == torch.float32
    assert trajectory.noises.shape == (2, 1, 4, 16, 18)
    assert (trajectory.height, trajectory.width) == (128, 144)


def test_the_end_is_where_a_sampler_without_noise_starts(tiny, encode, inverted):
    trajectory, end = inverted()
    seen = []

    def first(model, x, sigmas, extra_args=None, callback=None, disable=None):
        seen.append(x)
        return x

    levels, text = torch.cat([trajectory.sigmas.flip(0), torch.zeros(1)]), encode("")
    sampler, none = comfy.samplers.KSAMPLER(first), torch.zeros_like(end)
    comfy.sample.sample_custom(tiny.model, none, 1.0, sampler, levels, text, text, end, disable_pbar=True, seed=0)
    torch.testing.assert_close(seen[0], trajectory.latents[-1], rtol=1e-5, atol=1e-5)


def test_without_text_the_zeros_fit_every_model(tiny, latent):
    for model in (tiny.model, tiny.v_model, tiny.inpaint_model):
        trajectory, _ = invert_latent(model, latent, 128, 144, steps=2)
        assert torch.isfinite(trajectory.noises).all()
    assert empty_conditioning(tiny.model)[0][0].shape == (1, 77, 128)


def test_cfg_steers_away_from_zeros(encode, inverted):
    text = encode("a red star on a beach")
    plain, guided = inverted(positive=text)[0], inverted(positive=text, cfg=4.0)[0]
    assert (plain.noises[-1] - guided.noises[-1]).norm() > 1e-3 * plain.noises[-1].norm()


def test_other_packs_patches_reach_the_inversion(tiny, inverted):
    plain, seen = inverted()[0], []

    def louder(n, options):
        return 1.5 * n

    def prediction(executor, x, timestep, model_options, seed):
        seen.append((float(timestep[0]), model_options["transformer_options"]["sample_sigmas"]))
        return executor(x, timestep, model_options, seed)

    patched = tiny.model.clone()
    patched.set_model_attn1_output_patch(louder)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", prediction)
    assert (inverted(patched)[0].noises - plain.noises).norm() > 1e-3 * plain.noises.norm()
    assert len(seen) == STEPS
    assert seen[1][0] == pytest.approx(float(plain.sigmas[0])) and len(seen[0][1]) == STEPS + 1
    assert torch.equal(inverted()[0].noises, plain.noises)


def with_lora(model, strength=1.0):
    patched = model.clone()
    weights = model.model_state_dict("diffusion_model.")
    patches = {key: ("diff", (0.2 * weight,)) for key, weight in weights.items() if weight.ndim > 1}
    patched.add_patches(patches, strength)
    return patched


def test_a_lora_changes_the_path_but_not_the_models_name(tiny, inverted):
    plain = inverted()[0]
    patched = with_lora(tiny.model)
    trajectory = inverted(patched)[0]
    # While its weights are in place and after it.
    assert trajectory.model_id == plain.model_id == model_id(patched) == model_id(tiny.model)
    assert (trajectory.noises - plain.noises).norm() > 1e-3 * plain.noises.norm()


def test_models_are_told_apart_by_weights_and_shape(tiny):
    other = build_model(build_unet(4, seed=77).state_dict())
    same = build_model(build_unet(4, seed=1).state_dict())
    half = build_model({key: value.half().float() for key, value in build_unet(4, seed=1).state_dict().items()})
    assert len({model_id(model) for model in (tiny.model, other, tiny.inpaint_model)}) == 3
    assert model_id(tiny.model) == model_id(same) == model_id(half)


def test_the_next_plain_run_is_bit_identical(tiny, sample, inverted):
    before = sample(tiny.model)
    options = repr(tiny.model.model_options)
    inverted()
    assert torch.equal(sample(tiny.model), before)
    assert repr(tiny.model.model_options) == options


def test_cancel_in_the_middle_leaves_the_model_as_it_was(tiny, sample, inverted, monkeypatch):
    patched = with_lora(tiny.model)
    before, calls = sample(tiny.model), []
    check = comfy.model_management.throw_exception_if_processing_interrupted

    def cancel_later():
        calls.append(1)
        if len(calls) == 2:
            comfy.model_management.interrupt_current_processing(True)
        check()

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", cancel_later)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        inverted(patched)
    monkeypatch.undo()
    assert len(calls) == 2
    assert torch.equal(sample(tiny.model), before)


def test_a_flow_model_is_refused(tiny, inverted):
    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    flow = tiny.model.clone()
    flow.add_object_patch("model_sampling", Flow())
    with pytest.raises(ValueError, match="flow matching"):
        inverted(flow)


def test_a_model_gone_wrong_is_named(tiny, inverted):
    broken = tiny.model.clone()
    broken.set_model_attn1_output_patch(lambda n, options: n * float("nan"))
    with pytest.raises(ValueError, match="not numbers"):
        inverted(broken)


def test_a_missing_vae_is_named(tiny):
    with pytest.raises(ValueError, match="There is no VAE"):
        invert_image(tiny.model, None, torch.rand(1, 128, 144, 3))


def test_the_node_takes_batches_of_any_size(tiny):
    with torch.inference_mode():
        trajectory, latent = InvertImage.execute(tiny.model, tiny.vae, torch.rand(2, 61, 75, 3), 2, 1.0).args
    assert latent["samples"].shape == (2, 4, 8, 10) == trajectory.clean.shape
    assert (trajectory.height, trajectory.width) == (61, 75)
