"""The background sampler on the real host: exact outside, as the host's own mask, composable."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.k_diffusion import sampling
from inlay.guidance.noise import CandidateNoise
from inlay.host.background_sampler import BACKGROUNDS, background_sampler
from inlay.nodes.sampler import BackgroundSampler

from .background_sampler_setup import fixture_cells, fixture_latent, fixture_mask, fixture_paint, fixture_trajectory  # noqa: F401


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


def test_the_node_takes_the_hosts_latent(paint, latent, mask, trajectory):
    wired = {"samples": latent, "batch_index": [0]}
    with torch.inference_mode():
        sampler = BackgroundSampler.execute("inverted", wired, mask, "ddim", 0.0, 1, trajectory).args[0]
        through = paint(sampler)
    assert torch.equal(through, paint(background_sampler("inverted", latent, mask, trajectory)))
