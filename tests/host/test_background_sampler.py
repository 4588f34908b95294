"""The background sampler on the real host: exact outside, at the right level, composable."""

from dataclasses import replace

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.k_diffusion import sampling
from inlay.guidance.noise import CandidateNoise
from inlay.host.background_sampler import BACKGROUNDS, background_sampler
from inlay.host.inversion import invert_latent
from inlay.nodes.sampler import BackgroundSampler

LEVELS = torch.tensor([14.6146, 3.0, 0.8, 0.0])
SIZE = (16, 18)


@pytest.fixture(scope="module")
def latent():
    return 5 * torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def mask():
    mask = torch.zeros(1, 128, 144)
    mask[:, 32:96, 40:104] = 1
    return mask


@pytest.fixture(scope="module")
def cells(mask):
    return mask[:, None, ::8, ::8]


@pytest.fixture(scope="module")
def trajectory(tiny, encode, latent):
    # Other levels than those sampled: matched by sigma, never by index.
    return invert_latent(tiny.model, latent, 128, 144, positive=encode(""), steps=5)[0]


@pytest.fixture
def paint(tiny, encode, latent):
    def run(sampler, model=None, batch=1, levels=LEVELS, noise=None, noise_mask=None, seed=0, start=latent, cfg=3.0):
        start = start.expand(batch, -1, -1, -1).clone()
        noise = comfy.sample.prepare_noise(start, seed) if noise is None else noise
        texts = encode("a red star on a beach"), encode("")
        options = {"noise_mask": noise_mask, "disable_pbar": True, "seed": seed}
        return comfy.sample.sample_custom(model or tiny.model, noise, cfg, sampler, levels, *texts, start, **options)

    return run


def recorded(model, seen):
    """The model's inputs by level, as seen by another pack's wrapper."""

    def wrapper(apply, args):
        seen.append((float(args["timestep"][0]), args["input"][: len(args["input"]) // len(args["cond_or_uncond"])]))
        return apply(args["input"], args["timestep"], **args["c"])

    spied = model.clone()
    spied.set_model_unet_function_wrapper(wrapper)
    return spied


@pytest.mark.parametrize("background", ["inverted", "renoised", "fixed"])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "host euler", "host dpmpp_2m", "host uni_pc"])
def test_the_background_comes_back(paint, latent, mask, cells, trajectory, background, name):
    sampler = comfy.samplers.sampler_object(name[5:]) if name.startswith("host") else None
    method = "ddim" if sampler else name
    ours = paint(background_sampler(background, latent, mask, trajectory, sampler, method))
    outside = (cells == 0).expand_as(ours)
    if background == "fixed":
        # UniPC ends a little above level 0, with the host's mask as well.
        torch.testing.assert_close(ours[outside], latent[outside], rtol=1e-4, atol=0.03 if "uni_pc" in name else 1e-4)
    else:
        scale = 0.18215
        assert torch.equal(ours[outside], (latent * scale / scale)[outside])
    assert (ours - latent)[~outside].abs().mean() > 0.1


@pytest.mark.parametrize("background", ["inverted", "renoised"])
def test_an_empty_mask_gives_the_latent_back_bit_for_bit(paint, latent, trajectory, background):
    ours = paint(background_sampler(background, latent, torch.zeros(1, 128, 144), trajectory))
    assert torch.equal(ours, latent * 0.18215 / 0.18215)


def test_a_full_mask_is_the_stock_sampler(paint, latent, trajectory):
    stock = paint(comfy.samplers.sampler_object("euler"))
    for background in BACKGROUNDS:
        ours = paint(background_sampler(background, latent, torch.ones(1, 128, 144), trajectory, method="euler"))
        assert torch.equal(ours, stock)
        ddim = paint(background_sampler(background, latent, torch.ones(1, 128, 144), trajectory))
        assert (ddim - stock).norm() < 2e-5 * stock.norm()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("method", ["euler", "dpmpp_2m"])
def test_fixed_is_the_stock_mask(paint, latent, mask, cells, soft, method):
    """Euler and any host sampler, bit for bit on the CPU, with the mask given to the host on the latent's cells."""
    weight = 0.4 if soft else 1.0
    stock = paint(comfy.samplers.sampler_object(method), noise_mask=weight * cells)
    host = comfy.samplers.sampler_object(method) if method != "euler" else None
    ours = paint(background_sampler("fixed", latent, weight * mask, sampler=host, method="euler"))
    assert torch.equal(ours, stock)
    # The same mask twice, in the latent and here, is one mask.
    sampler = background_sampler("fixed", latent, weight * mask, sampler=host, method="euler")
    assert torch.equal(paint(sampler, noise_mask=weight * cells), stock)


def test_fixed_works_where_the_sampler_adds_no_noise(tiny, paint, latent, mask, cells):
    seen = []
    sampler = background_sampler("fixed", latent, mask)
    paint(sampler, model=recorded(tiny.model, seen), noise=torch.zeros_like(latent))
    outside = (cells == 0).expand_as(latent)
    noise = (seen[0][1] - latent * 0.18215)[outside] / LEVELS[0]
    assert 0.9 < noise.std() < 1.1


def test_the_model_sees_the_background_of_its_own_level(tiny, paint, latent, mask, cells, trajectory):
    outside = (cells == 0).expand_as(latent)
    for host in (None, comfy.samplers.sampler_object("heun")):
        seen = []
        paint(background_sampler("inverted", latent, mask, trajectory, host), model=recorded(tiny.model, seen))
        assert len(seen) == (3 if host is None else 5)
        for sigma, x in seen:
            assert torch.equal(x[outside], trajectory.at(sigma)[outside])


def test_the_official_off_by_one_can_be_had_for_comparison(tiny, paint, latent, mask, cells, trajectory):
    outside, seen = (cells == 0).expand_as(latent), []
    sampler = background_sampler("inverted", latent, mask, trajectory, level_offset=1)
    ours = paint(sampler, model=recorded(tiny.model, seen))
    for (_, x), late in zip(seen[1:], LEVELS.tolist(), strict=False):
        assert torch.equal(x[outside], trajectory.at(late)[outside])
    assert torch.equal(ours[outside], (latent * 0.18215 / 0.18215)[outside])
    # The fixed background has one noise, at whichever level.
    seen = []
    paint(background_sampler("fixed", latent, mask, level_offset=1), model=recorded(tiny.model, seen))
    clean = latent * 0.18215
    noises = [((x - clean) / late)[outside] for (_, x), late in zip(seen[1:], LEVELS.tolist(), strict=False)]
    assert noises[0].std() > 0.5
    torch.testing.assert_close(noises[0], noises[1], rtol=1e-3, atol=1e-3)


def test_partial_denoise_starts_in_the_middle_of_the_path(tiny, paint, latent, mask, cells, trajectory):
    outside, seen = (cells == 0).expand_as(latent), []
    paint(background_sampler("inverted", latent, mask, trajectory), recorded(tiny.model, seen), levels=LEVELS[1:])
    assert torch.equal(seen[0][1][outside], trajectory.at(3.0)[outside])
    inside = latent * 0.18215 + 3.0 * comfy.sample.prepare_noise(latent, 0)
    torch.testing.assert_close(seen[0][1][~outside], inside[~outside])


def test_a_run_that_stops_early_holds_the_background_of_its_last_level(paint, latent, mask, cells, trajectory):
    outside = (cells == 0).expand_as(latent)
    ours = paint(background_sampler("inverted", latent, mask, trajectory), levels=LEVELS[:3])
    torch.testing.assert_close(ours[outside] * 0.18215, trajectory.at(0.8)[outside])


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_candidates_do_not_depend_on_their_batch(tiny, encode, paint, latent, mask, method):
    whole = comfy.sample.prepare_noise(latent.expand(3, -1, -1, -1), 5)

    def run(rows):
        sampler = background_sampler("renoised", latent, mask, method=method, repeats=2, candidates=rows)
        return paint(sampler, batch=len(rows), noise=whole[rows], seed=5)

    together, apart = run([0, 1, 2]), torch.cat([run([0]), run([1, 2])])
    assert (together - apart).norm() < 1e-4 * together.norm()
    assert (together[0] - together[1]).norm() > 0.1 * together[0].norm()


def test_repeats_change_the_picture_and_keep_the_background(paint, latent, mask, cells, trajectory):
    outside = (cells == 0).expand_as(latent)
    plain = paint(background_sampler("inverted", latent, mask, trajectory))
    repeated = paint(background_sampler("inverted", latent, mask, trajectory, repeats=3))
    assert torch.equal(plain[outside], repeated[outside])
    assert (plain - repeated).norm() > 0.01 * plain.norm()


def test_the_host_ddpm_has_the_same_step(paint, latent, monkeypatch):
    """Without noise in either, ours follows the host's DDPM."""
    monkeypatch.setattr(sampling, "default_noise_sampler", lambda x, seed=None: lambda *levels: torch.zeros_like(x))
    monkeypatch.setattr(CandidateNoise, "draw", lambda self, like, purpose, draw: torch.zeros_like(like))
    stock = paint(comfy.samplers.sampler_object("ddpm"))
    ours = paint(background_sampler("none", latent, torch.ones(1, 128, 144), method="ddpm"))
    assert (ours - stock).norm() < 1e-4 * stock.norm()


def test_none_leaves_the_hosts_own_mask_alone(paint, latent, mask, cells):
    stock = paint(comfy.samplers.sampler_object("euler"), noise_mask=cells)
    assert torch.equal(paint(background_sampler("none", latent, mask, method="euler"), noise_mask=cells), stock)


def test_the_latents_own_mask_narrows_ours(paint, latent, mask, cells, trajectory):
    half = cells.clone()
    half[..., 9:] = 0
    ours = paint(background_sampler("inverted", latent, mask, trajectory), noise_mask=half)
    outside = (half == 0).expand_as(latent)
    assert torch.equal(ours[outside], (latent * 0.18215 / 0.18215)[outside])


def test_another_packs_mask_function_is_followed(tiny, paint, latent, mask, trajectory):
    """Differential diffusion asks for a mask by level."""
    seen, asked = [], []

    def halve(sigma, denoise_mask, extra_options):
        asked.append(float(sigma[0]))
        assert extra_options["sigmas"] is not None and extra_options["model"].inner_model is not None
        return (denoise_mask >= 0.5).to(denoise_mask)

    model = recorded(tiny.model, seen)
    model.set_model_denoise_mask_function(halve)
    paint(background_sampler("inverted", latent, torch.full((1, 128, 144), 0.4), trajectory), model=model)
    for sigma, x in seen:
        assert torch.equal(x, trajectory.at(sigma))
    assert asked == pytest.approx([14.6146, 3.0, 0.8, 0.8])


def test_nine_channels_keep_their_own_picture_and_mask(tiny, encode, paint, latent, mask, cells):
    seen = []

    def wrapper(apply, args):
        seen.append(args["c"]["c_concat"][:1])
        return apply(args["input"], args["timestep"], **args["c"])

    model = tiny.inpaint_model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    ours = paint(background_sampler("renoised", latent, mask), model=model, noise_mask=cells)
    assert torch.equal(seen[0][:, :1], cells) and seen[0].shape[1] == 5
    outside = (cells == 0).expand_as(latent)
    assert torch.equal(ours[outside], (latent * 0.18215 / 0.18215)[outside])


def test_the_next_plain_run_is_bit_identical(tiny, sample, paint, latent, mask, trajectory):
    before = sample(tiny.model)
    paint(background_sampler("inverted", latent, mask, trajectory))
    assert torch.equal(sample(tiny.model), before)


def test_cancel_in_the_middle_leaves_the_model_as_it_was(tiny, sample, paint, latent, mask, trajectory, monkeypatch):
    before, calls = sample(tiny.model), []
    check = comfy.model_management.throw_exception_if_processing_interrupted

    def cancel_later():
        calls.append(1)
        if len(calls) == 2:
            comfy.model_management.interrupt_current_processing(True)
        check()

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", cancel_later)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        paint(background_sampler("inverted", latent, mask, trajectory))
    monkeypatch.undo()
    assert torch.equal(sample(tiny.model), before)


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


def test_the_node_takes_the_hosts_latent(paint, latent, mask, trajectory):
    wired = {"samples": latent, "batch_index": [0]}
    with torch.inference_mode():
        sampler = BackgroundSampler.execute("inverted", wired, mask, "ddim", 0.0, 1, trajectory).args[0]
        through = paint(sampler)
    assert torch.equal(through, paint(background_sampler("inverted", latent, mask, trajectory)))
