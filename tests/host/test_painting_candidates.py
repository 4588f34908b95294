"""Several candidates of one paint job: how they are batched, shown and cut short."""

import os
from dataclasses import replace
from functools import partial

import comfy.cli_args
import comfy.model_management
import comfy.utils
import folder_paths
import pytest
import torch
from inlay.host import candidates, kept_work, painting
from inlay.host.candidate_run import CandidateRun
from inlay.host.kept_work import keep_pictures
from inlay.host.region_patches import guide_region
from inlay.host.regions import Region

from .painting_scene import FEW, H, W, box, scene


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler_ancestral", "dpmpp_2m", "heun"])
def test_candidates_do_not_depend_on_how_they_are_batched(job, sampler):
    settings = replace(FEW, candidates=3, background="renoised", sampler=sampler)
    _, one = job(replace(settings, at_once=1))
    _, two = job(replace(settings, at_once=2))
    _, alone = job(replace(settings, candidates=1))
    scale = one["samples"].abs().max()
    assert (one["samples"] - two["samples"]).abs().max() < 2e-4 * scale
    assert torch.equal(one["samples"][:1], alone["samples"])
    assert (one["samples"][0] - one["samples"][1]).abs().max() > 0.1 * scale


def test_candidates_are_the_hosts_batch(job, sample, tiny):
    settings = replace(FEW, candidates=3, sampler="euler", background="none", at_once=2)
    _, latent = job(settings, mask=torch.ones(1, H, W))
    want = sample(tiny.model, steps=2, batch=3, seed=7, size=(8, 9))
    assert (latent["samples"] - want).norm() < 1e-5 * want.norm()
    assert latent["batch_index"] == [0, 1, 2]


OUT_OF_MEMORY = [comfy.model_management.OOM_EXCEPTION("no")]
if hasattr(comfy.model_management, "is_oom"):
    # Hosts from 0.24 know it of work that a device reports on later, too.
    OUT_OF_MEMORY.append(comfy.model_management.ACCELERATOR_ERROR("CUDA error: out of memory"))


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_too_little_memory_means_smaller_parts(job, monkeypatch, caplog, error):
    settings = replace(FEW, candidates=4)
    want = job(settings)[1]["samples"]
    sizes = []
    sample = CandidateRun._sample

    def scarce(self, noise, first, last):
        sizes.append(last - first)
        if last - first > 1:
            raise error
        return sample(self, noise, first, last)

    monkeypatch.setattr(CandidateRun, "_sample", scarce)
    got = job(settings)[1]["samples"]
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    assert "2 candidates at a time" in caplog.text


def test_another_error_of_several_candidates_is_not_tried_again(job, monkeypatch):
    calls = []

    def fails(*_):
        calls.append(0)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(CandidateRun, "_sample", fails)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        job(replace(FEW, candidates=4))
    assert len(calls) == 1


def test_the_estimate_splits_evenly(tiny, monkeypatch):
    latent = torch.zeros(1, 4, 8, 9)
    monkeypatch.setattr(tiny.model.model, "memory_required", lambda shape: shape[0] * 100)
    monkeypatch.setattr(tiny.model, "model_size", lambda: 0)
    for free, want in ((10, 1), (300, 1), (1500, 4), (2100, 4), (10**9, 8)):
        monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, free=free: free)
        assert candidates.candidates_that_fit(tiny.model, latent, 8) == want


@pytest.mark.parametrize("kind", ["model", "inpaint_model"])
def test_a_batch_of_pictures_with_candidates(job, tiny, kind):
    job = partial(job, model=getattr(tiny, kind))
    image, mask = scene(batch=2), torch.cat([box(), box().flip(2)])
    settings = replace(FEW, candidates=2)
    images, _ = job(settings, image=image, mask=mask)
    assert images.shape == (4, H, W, 3)
    for row in range(4):
        outside = mask[row % 2] == 0
        assert torch.equal(images[row][outside], image[row % 2][outside])
    one_by_one, _ = job(replace(settings, at_once=1), image=image, mask=mask)
    assert (images - one_by_one).abs().max() < 1e-4


def test_a_batch_of_pictures_with_candidates_and_regions_of_their_own(job, tiny, encode):
    masks = torch.cat([box(), box().flip(2)])
    texts = torch.cat([encode("a red star")[0][0], encode("a blue robot")[0][0]])
    guided = guide_region(tiny.model, [Region(masks, texts)])
    settings = replace(FEW, candidates=2)
    together, _ = job(replace(settings, at_once=2), model=guided, image=scene(batch=2), mask=masks)
    one_by_one, _ = job(replace(settings, at_once=1), model=guided, image=scene(batch=2), mask=masks)
    assert (together - one_by_one).abs().max() < 1e-4


@pytest.mark.parametrize("broken", ["decoder", "folder"])
def test_what_cannot_be_kept_does_not_take_the_cancels_place(job, tiny, monkeypatch, caplog, broken):
    calls = []

    def press_cancel(apply, asked):
        calls.append(0)
        if len(calls) == 4:
            comfy.model_management.interrupt_current_processing()
        return apply(asked["input"], asked["timestep"], **asked["c"])

    def fails(*_, **__):
        raise OSError("no space left")

    model = tiny.model.clone()
    model.set_model_unet_function_wrapper(press_cancel)
    monkeypatch.setattr(painting, {"decoder": "decode_picture", "folder": "keep_pictures"}[broken], fails)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        job(replace(FEW, steps=5, cfg=1.0, background="none"), model=model)
    assert "could not be kept: no space left" in caplog.text


def test_patches_learn_which_candidates_they_see(job, tiny):
    seen = []
    model = tiny.model.clone()
    model.set_model_unet_function_wrapper(
        lambda apply, call: (
            seen.append(call["c"]["transformer_options"]["inlay_candidates"])
            or apply(call["input"], call["timestep"], **call["c"])
        )
    )
    job(replace(FEW, candidates=3, at_once=2, background="none"), model=model)
    assert seen[0] == [0, 1] and seen[-1] == [2]


def test_progress_counts_every_candidates_steps_and_shows_them(job, monkeypatch):
    shown = []
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda step, total, preview, **_: shown.append((step, total, preview))
    )
    job(replace(FEW, steps=3, candidates=3, at_once=2, background="none"))
    assert [(step, total) for step, total, _ in shown] == [(2, 9), (4, 9), (6, 9), (7, 9), (8, 9), (9, 9)]
    assert all(preview[1].size == (W // 8, H // 8) for _, _, preview in shown)


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("failure, sentence", [(torch.nan, "Sampling ended in values"), (None, "no such layer")])
def test_a_failure_keeps_the_finished_candidates_and_goes_on(
    job, tiny, monkeypatch, caplog, failure, sentence, writable
):
    calls, shown, kept = [], [], []

    def breaks_down(apply, asked):
        calls.append(0)
        if len(calls) <= 4:
            return apply(asked["input"], asked["timestep"], **asked["c"])
        if failure is None:
            raise RuntimeError("no such layer")
        return asked["input"] * failure

    def keep(images, *rest):
        kept.append(images)
        if not writable:
            raise OSError("no space left")
        return keep_pictures(images, *rest)

    model = tiny.model.clone()
    model.set_model_unet_function_wrapper(breaks_down)
    monkeypatch.setattr(kept_work, "keep_pictures", keep)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda step, total, preview, **_: shown.append(preview))
    settings = replace(FEW, cfg=1.0, background="none", candidates=3, at_once=1)
    before = kept_files("inlay_failed")
    with pytest.raises((ValueError, RuntimeError), match=sentence):
        job(settings, model=model)
    assert len(kept_files("inlay_failed") - before) == (2 if writable else 0)
    if writable:
        assert shown[-1][1].size == (W, H)
    else:
        assert "The run failed. What was there could not be kept: no space left" in caplog.text
    assert torch.equal(kept[0], job(replace(settings, candidates=2))[0])


def test_a_failure_of_the_first_candidate_has_nothing_to_keep(job, tiny):
    model = tiny.model.clone()
    model.set_model_unet_function_wrapper(lambda _, asked: asked["input"] * torch.nan)
    before = kept_files("inlay_")
    with pytest.raises(ValueError, match="Sampling ended in values"):
        job(replace(FEW, background="none"), model=model)
    assert kept_files("inlay_") == before


@pytest.mark.parametrize("call, pictures", [(0, 0), (3, 1), (5, 1), (8, 2)])
def test_cancel_keeps_what_there_is_and_goes_on(job, tiny, monkeypatch, call, pictures):
    calls, shown = [], []
    model = tiny.model.clone()

    def press_cancel(apply, asked):
        calls.append(0)
        if len(calls) - 1 == call:
            comfy.model_management.interrupt_current_processing()
        return apply(asked["input"], asked["timestep"], **asked["c"])

    model.set_model_unet_function_wrapper(press_cancel)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda step, total, preview, **_: shown.append(preview))
    settings = replace(FEW, steps=5, cfg=1.0, background="none", candidates=2, at_once=1)
    before = kept_files()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        job(settings, model=model)
    assert len(calls) == call + 1
    new = kept_files() - before
    assert len(new) == pictures and all(name.endswith("_.png") for name in new)
    if pictures:
        assert shown[-1][1].size == (W, H)


def kept_files(word="cancelled"):
    folder = folder_paths.get_temp_directory()
    return {name for name in os.listdir(folder) if word in name} if os.path.isdir(folder) else set()


def test_a_candidate_that_fails_does_not_take_its_neighbours_along(job, tiny, monkeypatch):
    """Of three that are sampled at once the second is not a number."""
    kept = []

    def spoil(apply, asked):
        noise = apply(asked["input"], asked["timestep"], **asked["c"])
        noise[1::3] = torch.nan
        return noise

    model = tiny.model.clone()
    model.set_model_unet_function_wrapper(spoil)
    monkeypatch.setattr(kept_work, "keep_pictures", lambda images, *_: kept.append(images))
    settings = replace(FEW, cfg=1.0, background="none", candidates=3, at_once=3)
    with pytest.raises(ValueError, match="Sampling ended in values"):
        job(settings, model=model)
    # A decoder that sees one picture rounds otherwise than one that sees three.
    torch.testing.assert_close(kept[0], job(settings)[0][::2], atol=1e-4, rtol=0)
