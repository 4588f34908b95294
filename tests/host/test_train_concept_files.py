"""A learned concept's files: what a stock prompt loads, the same for the same seed, resumed after a cancel."""

import copy
import logging
from pathlib import Path

import comfy.model_management
import comfy.sd1_clip
import comfy.utils
import pytest
import torch
from inlay.host import concept_examples, concept_loop, concept_training
from inlay.host import demo_models as build

from .train_concept_setup import IMAGES, PAIR, fixture_folder, fixture_learn, fixture_short_samples, saved  # noqa: F401


def test_a_stock_prompt_loads_the_file_without_a_word_and_gives_the_conditioning(learn, tiny, folder, caplog):
    learned = learn("my-cat")
    assert learned.prompt == "embedding:my-cat"
    stock = build.build_text_encoder(
        tiny.clip.cond_stage_model.clip_l.transformer.state_dict(), [str(folder / "embeddings")]
    )
    with caplog.at_level(logging.WARNING), torch.no_grad():
        caplog.clear()
        from nodes import CLIPTextEncode

        ((text, extra),) = CLIPTextEncode().encode(stock, learned.prompt)[0]
    assert caplog.records == []
    assert torch.equal(text, learned.conditioning[0][0])
    assert torch.equal(extra["pooled_output"], learned.conditioning[0][1]["pooled_output"])
    loaded = comfy.sd1_clip.load_embed("my-cat", [str(folder / "embeddings")], 128, "clip_l")
    assert torch.equal(loaded, saved(learned)["clip_l"])


def test_the_same_seed_is_the_same_file_and_another_is_not(learn):
    first, again, other = (learn("cat", seed=seed) for seed in (1, 1, 2))
    assert [one.prompt for one in (first, again, other)] == ["embedding:cat", "embedding:cat-2", "embedding:cat-3"]
    assert Path(first.path).read_bytes() == Path(again.path).read_bytes()
    assert Path(first.path).read_bytes() != Path(other.path).read_bytes()


def interrupt_in(monkeypatch, step):
    """Presses Cancel in the first part of that step; the second one is the first to notice."""
    plain = concept_examples.draw_example

    def draw(seed, number, part, *rest):
        if (number, part) == (step, 0):
            comfy.model_management.interrupt_current_processing()
        return plain(seed, number, part, *rest)

    monkeypatch.setattr(concept_examples, "draw_example", draw)
    return lambda: monkeypatch.setattr(concept_examples, "draw_example", plain)


@pytest.mark.parametrize("map_average", [0.0, 0.9])
def test_cancel_keeps_a_checkpoint_from_which_the_result_is_the_uninterrupted_one(
    learn, folder, monkeypatch, map_average
):
    settings = {"steps": 3, "accumulation": 2, "at_once": 1, "images": PAIR, "map_average": map_average}
    whole = learn("whole", **settings)
    release = interrupt_in(monkeypatch, 1)
    shown = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **_: shown.append(args), raising=False)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        learn("half", **settings)
    release()
    (checkpoint,) = (folder / "output" / "inlay").glob("half.????????.checkpoint.safetensors")
    assert checkpoint.is_file() and not list((folder / "embeddings").glob("half*"))
    assert shown and shown[-1][2] is not None
    assert len(comfy.utils.load_torch_file(str(checkpoint))["losses"]) == 1
    resumed = learn("half", **settings)
    assert resumed.losses == whole.losses
    assert torch.equal(saved(resumed)["clip_l"], saved(whole)["clip_l"])
    assert torch.equal(resumed.mask, whole.mask)
    assert not checkpoint.exists()
    assert not list(folder.rglob("*.part"))


def fail_in(monkeypatch, step):
    """The host fails in that step, once."""
    plain, errors = concept_examples.draw_example, [RuntimeError("CUDA error: the card is gone")]

    def draw(seed, number, *rest):
        if number == step and errors:
            raise errors.pop()
        return plain(seed, number, *rest)

    monkeypatch.setattr(concept_examples, "draw_example", draw)


def test_any_failure_keeps_what_was_learned(learn, folder, monkeypatch):
    whole = learn("whole", steps=3)
    fail_in(monkeypatch, 2)
    with pytest.raises(RuntimeError, match="the card is gone"):
        learn("half", steps=3)
    (checkpoint,) = (folder / "output" / "inlay").glob("half.????????.checkpoint.safetensors")
    assert len(comfy.utils.load_torch_file(str(checkpoint))["losses"]) == 2
    resumed = learn("half", steps=3)
    assert resumed.losses == whole.losses
    assert torch.equal(saved(resumed)["clip_l"], saved(whole)["clip_l"])
    assert not checkpoint.exists()


def test_a_file_that_cannot_be_saved_costs_no_training(learn, folder, monkeypatch):
    whole = learn("whole", steps=3)

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(concept_training, "save_embedding", full)
        with pytest.raises(OSError, match="no space left"):
            learn("half", steps=3)
    assert len(list((folder / "output" / "inlay").glob("half.????????.checkpoint.safetensors"))) == 1
    drawn = []
    monkeypatch.setattr(concept_examples, "draw_example", lambda *args: drawn.append(args))
    resumed = learn("half", steps=3)
    assert not drawn and torch.equal(saved(resumed)["clip_l"], saved(whole)["clip_l"])


def test_another_training_under_the_name_leaves_the_cancelled_one_its_checkpoint(learn, folder, monkeypatch):
    whole = learn("whole", steps=3)
    fail_in(monkeypatch, 2)
    with pytest.raises(RuntimeError, match="the card is gone"):
        learn("half", steps=3)
    learn("half", steps=3, images=1 - IMAGES)
    learn("half", steps=3, resume=False, seed=5)
    resumed = learn("half", steps=3)
    assert resumed.losses == whole.losses
    assert torch.equal(saved(resumed)["clip_l"], saved(whole)["clip_l"])


@pytest.mark.parametrize("broken", ["sampling", "decoding"])
def test_a_sample_that_is_not_a_number_costs_the_sample_alone(learn, tiny, monkeypatch, caplog, broken):
    whole = learn("whole")
    if broken == "sampling":
        plain = concept_loop.ConceptLoop._sample
        monkeypatch.setattr(concept_loop.ConceptLoop, "_sample", lambda loop: plain(loop) * float("nan"))
    else:
        monkeypatch.setattr(type(tiny.vae), "decode", lambda *_: torch.full((1, 40, 48, 3), float("nan")))
    learned = learn("cat")
    assert "The sample is left out of the preview." in caplog.text
    assert learned.prompt == "embedding:cat" and learned.losses == whole.losses
    assert torch.equal(saved(learned)["clip_l"], saved(whole)["clip_l"]) and torch.equal(learned.mask, whole.mask)
    assert torch.equal(learned.conditioning[0][0], whole.conditioning[0][0])
    width = PAIR.shape[2]
    assert learned.preview.shape[2] == 2 * width and torch.equal(learned.preview, whole.preview[:, :, : 2 * width])


def test_a_failure_before_the_first_step_keeps_nothing(learn, folder, monkeypatch):
    fail_in(monkeypatch, 0)
    with pytest.raises(RuntimeError, match="the card is gone"):
        learn("half")
    assert not list(folder.rglob("*.safetensors"))


def test_a_run_goes_on_with_less_memory_or_more_precision(learn, monkeypatch, caplog):
    fail_in(monkeypatch, 1)
    with pytest.raises(RuntimeError):
        learn("half", accumulation=2, precision="bf16")
    with caplog.at_level(logging.INFO):
        learn("half", accumulation=2, at_once=1, precision="fp32")
    assert "Going on after step 1" in caplog.text


def test_a_checkpoint_of_another_vae_or_clip_skip_is_not_resumed(learn, tiny, monkeypatch, caplog):
    skipped = tiny.clip.clone()
    skipped.clip_layer(-2)
    fresh = learn("fresh", clip=skipped)
    other = copy.copy(tiny.vae)
    plain = other.encode
    other.encode = lambda pixels: plain(pixels) * 1.1
    for parts in ({"clip": skipped}, {"vae": other}):
        fail_in(monkeypatch, 1)
        with pytest.raises(RuntimeError):
            learn("half")
        with caplog.at_level(logging.INFO):
            caplog.clear()
            learned = learn("half", **parts)
        assert "of other settings, pictures or models. Starting anew" in caplog.text
        if "clip" in parts:
            assert torch.equal(saved(learned)["clip_l"], saved(fresh)["clip_l"])


def under_a_lora(model, strength):
    patched = model.clone()
    patched.add_patches(
        {"diffusion_model.middle_block.1.proj_out.weight": (torch.full((128, 128, 1, 1), 0.1),)}, strength
    )
    return patched


def predicting_v(model, v_model):
    other = model.clone()
    other.add_object_patch("model_sampling", v_model.get_model_object("model_sampling"))
    return other


def test_a_checkpoint_of_another_lora_or_prediction_is_not_resumed(learn, tiny, monkeypatch, caplog):
    started = under_a_lora(tiny.model, 1.0)
    for model in (tiny.model, under_a_lora(tiny.model, 0.5), predicting_v(started, tiny.v_model)):
        fresh = learn("fresh", model=model)
        fail_in(monkeypatch, 1)
        with pytest.raises(RuntimeError):
            learn("half", model=started)
        with caplog.at_level(logging.INFO):
            caplog.clear()
            learned = learn("half", model=model)
        assert "of other settings, pictures or models. Starting anew" in caplog.text
        assert torch.equal(saved(learned)["clip_l"], saved(fresh)["clip_l"])
        with caplog.at_level(logging.INFO):
            learn("half", model=under_a_lora(tiny.model, 1.0))
        assert "Going on after step 1" in caplog.text


def test_a_checkpoint_of_other_settings_is_not_resumed(learn, monkeypatch):
    release = interrupt_in(monkeypatch, 0)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        learn("half", seed=5, accumulation=2, at_once=1)
    release()
    other, fresh = (learn(name, seed=6, accumulation=2) for name in ("half", "fresh"))
    assert torch.equal(saved(other)["clip_l"], saved(fresh)["clip_l"])
