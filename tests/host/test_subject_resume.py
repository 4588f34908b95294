"""What stops a training of a subject, what is left of it, and with what it goes on."""

import os
from dataclasses import replace

import comfy.model_management
import folder_paths
import pytest
import torch
from inlay.host import demo_models as build
from inlay.host import subject_job, subject_loop, subject_training
from inlay.host.fingerprints import patcher_id, patches_id, tensors_id
from inlay.host.subject_loading import load_subject
from inlay.host.subject_training import Photos
from inlay.training.subject import NotANumber

from .subject_setup import make_setup, train


@pytest.fixture(scope="module")
def setup(tiny):
    return make_setup(tiny)


def interrupt_after(monkeypatch, steps):
    real, count = subject_loop.batch_loss, iter(range(10**6))

    def counted(*args):
        if next(count) == steps:
            comfy.model_management.interrupt_current_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()
        return real(*args)

    monkeypatch.setattr(subject_loop, "batch_loss", counted)


def test_a_cancelled_run_goes_on_to_the_very_same_file(tiny, setup, monkeypatch):
    whole = open(train(tiny, setup, "cut", dropout=0.1).path, "rb").read()
    os.remove(folder_paths.get_full_path("loras", "cut.safetensors"))
    with monkeypatch.context() as patch, pytest.raises(comfy.model_management.InterruptProcessingException):
        interrupt_after(patch, 2)
        train(tiny, setup, "cut", dropout=0.1)
    assert folder_paths.get_full_path("loras", "cut.safetensors") is None
    with pytest.raises(ValueError, match=r"another recipe \(learning_rate\)"):
        train(tiny, setup, "cut", dropout=0.1, learning_rate=2e-3)
    resumed = train(tiny, setup, "cut", dropout=0.1)
    assert len(resumed.losses) == 3
    assert open(resumed.path, "rb").read() == whole
    with pytest.raises(ValueError, match="already"):
        train(tiny, setup, "cut", if_exists="error")


@pytest.mark.parametrize("broken", ["picture", "checkpoint"])
def test_what_cannot_be_kept_does_not_take_the_cancels_place(tiny, setup, monkeypatch, caplog, broken):
    def fails(*_):
        raise RuntimeError("no space left")

    kept = []
    with monkeypatch.context() as patch, pytest.raises(comfy.model_management.InterruptProcessingException):
        patch.setattr(subject_job, "keep_pictures", lambda *given: kept.append(given))
        if broken == "picture":
            patch.setattr(subject_job, "keep_pictures", fails)
        else:
            patch.setattr(subject_job.SubjectCheckpoint, "save", fails)
        interrupt_after(patch, 2)
        train(tiny, setup, "unkept")
    assert "could not be kept: no space left" in caplog.text
    # What does not fail is kept in any case.
    assert len(kept) == (broken == "checkpoint")
    with monkeypatch.context() as patch:
        fail_after(patch, 1 if broken == "picture" else 3, lambda _: pytest.fail("a step too many"))
        assert len(train(tiny, setup, "unkept").losses) == 3


def test_a_run_that_was_cancelled_before_its_first_step_binds_nobody(tiny, setup, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(comfy.model_management.InterruptProcessingException):
        interrupt_after(patch, 0)
        train(tiny, setup, "soon")
    assert len(train(tiny, setup, "soon", rank=3).losses) == 3


def test_what_a_full_disk_does_not_take_is_not_trained_again(tiny, setup, monkeypatch):
    def full(*_):
        raise ValueError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="No space"):
        patch.setattr(subject_training, "save_lora", full)
        train(tiny, setup, "full-disk")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 0)
        kept = train(tiny, setup, "full-disk")
    wanted = train(tiny, setup, "full-disk")
    assert kept.losses == wanted.losses and all(torch.equal(kept.lora[key], wanted.lora[key]) for key in wanted.lora)


def fail_after(monkeypatch, steps, fail):
    real, count = subject_loop.batch_loss, iter(range(10**6))

    def counted(*args):
        loss = real(*args)
        return fail(loss) if next(count) == steps else loss

    monkeypatch.setattr(subject_loop, "batch_loss", counted)


def out_of_memory(_):
    raise torch.OutOfMemoryError("no room")


def test_whatever_stops_it_leaves_a_checkpoint(tiny, setup, monkeypatch):
    whole = train(tiny, setup, "stops")
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        fail_after(patch, 2, out_of_memory)
        train(tiny, setup, "stops")
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        fail_after(patch, 0, out_of_memory)
        train(tiny, setup, "stops")
    resumed = train(tiny, setup, "stops")
    assert resumed.losses == whole.losses
    assert all(torch.equal(resumed.lora[key], value) for key, value in whole.lora.items())


def test_a_run_that_ended_in_no_number_goes_on_with_another_learning_rate_alone(tiny, setup, monkeypatch):
    whole = train(tiny, setup, "nan")
    with monkeypatch.context() as patch, pytest.raises(NotANumber, match="not a number in step 3"):
        fail_after(patch, 2, lambda loss: loss * float("nan"))
        train(tiny, setup, "nan")
    with pytest.raises(ValueError, match=r"another recipe \(views\)"):
        train(tiny, setup, "nan", views=3)
    other = train(tiny, setup, "nan", learning_rate=1e-4)
    assert other.losses[:2] == whole.losses[:2] and len(other.losses) == 3


def test_long_runs_are_kept_now_and_then(tiny, setup, monkeypatch):
    """What kills the host leaves no time to write."""
    whole = train(tiny, setup, "killed")

    def kill(_):
        raise KeyboardInterrupt

    for every, wanted in ((-1.0, 2), (3600.0, 0)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(subject_job, "KEPT_EVERY", every)
            fail_after(patch, 2, kill)
            train(tiny, setup, "killed")
        with monkeypatch.context() as patch:
            fail_after(patch, 3 - wanted, lambda _: pytest.fail("a step too many"))
            assert train(tiny, setup, "killed").losses == whole.losses


def test_a_step_that_was_cut_in_two_is_not_kept(tiny, setup, monkeypatch):
    steps, real = iter(range(10**6)), torch.optim.AdamW.step

    def cut(self, *args):
        real(self, *args)
        if next(steps) == 1:
            raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(torch.optim.AdamW, "step", cut)
        train(tiny, setup, "amid")
    assert not os.path.exists(os.path.join(folder_paths.get_output_directory(), "inlay", "amid.subject.safetensors"))


def test_more_steps_go_on_to_what_one_run_of_as_many_is(tiny, setup, monkeypatch):
    changes = {"views": 8, "mask_augmentation": "none"}
    whole = train(tiny, setup, "longer", steps=6, **changes)
    with monkeypatch.context() as patch, pytest.raises(comfy.model_management.InterruptProcessingException):
        interrupt_after(patch, 2)
        train(tiny, setup, "longer", steps=3, **changes)
    longer = train(tiny, setup, "longer", steps=6, **changes)
    assert longer.losses == pytest.approx(whole.losses, rel=1e-5)
    # AdamW divides by the gradient's own size, so that rounding shows where there is hardly any.
    assert all(torch.allclose(longer.lora[key], value, atol=1e-4) for key, value in whole.lora.items())


def test_what_else_the_result_depends_on_has_to_be_the_same(tiny, setup, monkeypatch):
    lora = train(tiny, setup, "base", rank=1, steps=1).lora
    with monkeypatch.context() as patch, pytest.raises(comfy.model_management.InterruptProcessingException):
        interrupt_after(patch, 1)
        train(tiny, setup, "strict")
    encoder = setup.teller.encoder
    tuned = type(encoder)(torch.nn.Linear(128, 128), encoder.null, 128).requires_grad_(False)
    images, masks = setup.photos.images, setup.photos.masks
    for words, changes in [
        ("images", {"photos": Photos([images[1], images[1]], [masks[1], masks[1]])}),
        ("masks", {"photos": Photos(images, [mask * 0.5 + mask.roll(3, 1) * 0.5 for mask in masks])}),
        ("reference_encoder", {"teller": replace(setup.teller, encoder=tuned)}),
        ("LoRAs on the model", {"model": load_subject(tiny.inpaint_model, lora, 1.0)}),
        ("LoRAs on the model", {"model": load_subject(tiny.inpaint_model, lora, 1.0, "bypass")}),
    ]:
        with pytest.raises(ValueError, match=rf"another recipe \([^)]*{words}"):
            train(tiny, setup, "strict", **changes)
    with monkeypatch.context() as patch:
        other = build.build_vae(build.build_autoencoder(seed=55).state_dict())
        patch.setattr(tiny, "vae", other)
        with pytest.raises(ValueError, match=r"another recipe \(vae\)"):
            train(tiny, setup, "strict")
    assert len(train(tiny, setup, "strict").losses) == 3


def test_a_fingerprint_is_of_what_is_there_and_not_of_when_it_was_loaded(tiny, setup):
    lora = train(tiny, setup, "told-apart", rank=1, steps=1).lora
    first, again, weak = (load_subject(tiny.inpaint_model, lora, strength) for strength in (1.0, 1.0, 0.5))
    before = patcher_id(first)
    assert patches_id(first) == patches_id(again) != patches_id(weak)
    comfy.model_management.load_models_gpu([first])
    assert patcher_id(first) == patcher_id(again) == before
    first.detach()
    assert tensors_id([torch.ones(2), None]) != tensors_id([None, torch.ones(2)])
