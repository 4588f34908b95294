"""The swap is InstantSwap's loop written plainly: with one model or two, eps, v and SDXL, in the box or without."""

from dataclasses import replace

import torch
from inlay.guidance.distillation import SCALE, draw_timesteps
from inlay.guidance.noise import CandidateNoise
from inlay.host import swap_run
from inlay.host.concept_region_patch import concept_region

from .swap_setup import BOX, QUICK, TEXTS, fixture_forwards, fixture_mask, fixture_picture, fixture_swap, latent_of  # noqa: F401


@torch.no_grad()
def plain_loop(model, target_model, latent, encode, settings, boxed=True):
    """InstantSwap row by row: one text, one latent, one apply_model at a time; SGD steps one by one."""
    base = model.model
    clean = base.process_latent_in(latent)
    timesteps = draw_timesteps(settings.iterations, settings.t_min, settings.t_max, settings.timesteps, settings.seed)
    noise = CandidateNoise(settings.seed, range(len(latent)))
    cells = torch.zeros(1, 1, 8, 9)
    cells[..., 1:6, 2:7] = 1  # floor(12/8) .. ceil(45/8), floor(21/8) .. ceil(51/8)
    z = clean.clone()
    for i, t in enumerate(timesteps.tolist()):
        if i % settings.skip == 0:
            sigma = base.model_sampling.sigma(torch.tensor(float(t)))
            eps = noise.draw(clean, "swap", i)
            guided = []
            for patcher, start, prompt, phrase in (
                (model, clean, TEXTS.source, TEXTS.source_concept),
                (target_model, z, TEXTS.target, TEXTS.target_concept),
            ):
                if boxed:
                    patcher = concept_region(patcher, [encode(phrase)[0][0]], [BOX], (64, 72), settings.outside)
                x = start + sigma * eps
                out = []
                for text in (prompt, ""):
                    out.append((x - forward(patcher, x, sigma, encode(text))) / sigma)
                guided.append(out[1] + settings.guidance * (out[0] - out[1]))
            g = (guided[1] - guided[0]) * (cells if boxed else 1)
        z = z - settings.learning_rate * SCALE * g
    return base.process_latent_out(z)


def forward(patcher, x, sigma, text):
    """x0 for one CONDITIONING, through a one-step sampler that gives back the model's first answer."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(text, text)
    answer = []

    def ask(denoiser, _, sigmas, extra_args, callback, disable):
        answer.append(denoiser(x, sigma.repeat(len(x)), **extra_args))
        return x

    sigmas = torch.stack([sigma, torch.zeros(())])
    guider.sample(torch.zeros_like(x), x, comfy.samplers.KSAMPLER(ask), sigmas, disable_pbar=True, seed=0)
    return answer[0]


def close(ours, want, start):
    assert (want - start).norm() > 0
    return (ours - want).norm() < 1e-3 * (want - start).norm()


def test_the_swap_is_the_plain_loop(tiny, encode, swap, picture, forwards):
    _, latent = swap()
    assert forwards == [4, 4]
    want = plain_loop(tiny.model, tiny.model, latent_of(tiny, picture), encode, QUICK)
    assert close(latent["samples"], want, latent_of(tiny, picture))


def test_v_models(tiny, encode, swap, picture):
    _, latent = swap(model=tiny.v_model)
    want = plain_loop(tiny.v_model, tiny.v_model, latent_of(tiny, picture), encode, QUICK)
    assert close(latent["samples"], want, latent_of(tiny, picture))


def test_two_models(tiny, encode, swap, picture, forwards):
    other = tiny.model.clone()
    other.add_patches({"diffusion_model.middle_block.1.proj_out.weight": (torch.full((128, 128, 1, 1), 0.01),)}, 1.0)
    _, latent = swap(target_model=other)
    assert forwards == [2, 2, 2, 2]
    want = plain_loop(tiny.model, other, latent_of(tiny, picture), encode, QUICK)
    same = plain_loop(tiny.model, tiny.model, latent_of(tiny, picture), encode, QUICK)
    assert close(latent["samples"], want, latent_of(tiny, picture))
    assert not close(latent["samples"], same, latent_of(tiny, picture))


def test_raw_needs_no_negative(tiny, encode, swap, picture, forwards):
    """No text but the phrases acts, so the prompt's rows and the negative's are the same, unless something differs."""
    raw = replace(QUICK, outside="raw")
    _, latent = swap(raw)
    assert forwards == [2, 2]
    want = plain_loop(tiny.model, tiny.model, latent_of(tiny, picture), encode, raw)
    assert close(latent["samples"], want, latent_of(tiny, picture))
    guided, tapped = tiny.model.clone(), tiny.model.clone()
    guided.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    tapped.set_model_attn1_output_patch(lambda n, step: n)
    for settings, model in (
        (raw, guided),
        (raw, tapped),
        (replace(raw, rows="conditional"), tiny.model),
        (replace(raw, secr="target"), tiny.model),
    ):
        forwards.clear()
        swap(settings, model=model)
        assert forwards == [4, 4]


def test_dds_without_box(tiny, encode, swap, picture):
    _, latent = swap(replace(QUICK, method="dds", timesteps="unsorted", t_min=50, t_max=948, skip=3))
    settings = replace(QUICK, timesteps="unsorted", t_min=50, t_max=948, skip=3)
    want = plain_loop(tiny.model, tiny.model, latent_of(tiny, picture), encode, settings, boxed=False)
    assert close(latent["samples"], want, latent_of(tiny, picture))


def test_sdxl_gets_each_branchs_pooled_text(swap, tiny, encode, picture, monkeypatch, forwards):
    model = tiny_sdxl()

    def with_pooled(text):
        seed = sum(map(ord, text))
        pooled = torch.randn(1, 1280, generator=torch.Generator().manual_seed(seed))
        return [[encode(text)[0][0], {"pooled_output": pooled}]]

    monkeypatch.setattr(swap_run, "encode_text", lambda clip, text: with_pooled(text))
    _, latent = swap(model=model)
    assert forwards == [4, 4]
    start = latent_of(tiny, picture)
    assert close(latent["samples"], plain_loop(model, model, start, with_pooled, QUICK), start)
    unpooled = plain_loop(model, model, start, lambda text: [[with_pooled(text)[0][0], with_pooled("")[0][1]]], QUICK)
    assert not close(latent["samples"], unpooled, start)
    # Its pooled text acts beside the phrases.
    forwards.clear()
    swap(replace(QUICK, outside="raw"), model=model)
    assert forwards == [4, 4]


def tiny_sdxl():
    import comfy.model_patcher
    import comfy.supported_models
    from inlay.host import demo_models as build

    class TinySDXL(comfy.supported_models.SDXL):
        unet_config = {}

        def model_type(self, *_):
            return comfy.model_base.ModelType.EPS

    config = {**build.UNET_CONFIG, "in_channels": 4, "adm_in_channels": 1280 + 6 * 256, "num_classes": "sequential"}
    supported = TinySDXL(config)
    supported.set_inference_dtype(torch.float32, None)
    model = supported.get_model({}, "", device=torch.device("cpu"))
    build.initialise(model.diffusion_model, 7)
    return comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))
