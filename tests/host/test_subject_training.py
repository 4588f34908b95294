"""Training a subject on a tiny inpainting model: what is learned, resumed, repeated, refused."""

import json
import os
from types import SimpleNamespace

import comfy.model_management
import comfy.utils
import folder_paths
import pytest
import torch
from inlay.attention.boxes import box_mask
from inlay.guidance.reference import ReferenceEncoder
from inlay.host import subject_loop, subject_training
from inlay.host.lora_files import read_lora
from inlay.host.subject_loading import load_subject
from inlay.host.subject_telling import Teller
from inlay.host.subject_training import Photos, train_subject
from inlay.training.subject_settings import SubjectSettings
from torch import nn

BOXES = [{"x": 40, "y": 30, "width": 50, "height": 40}], [{"x": 20, "y": 60, "width": 30, "height": 50}]
SMALL = {"preset": "custom", "rank": 2, "steps": 3, "batch": 2, "resolution": 64, "views": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def setup(tiny):
    torch.manual_seed(0)
    projection = nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 128))
    encoder = ReferenceEncoder(projection, torch.randn(1, 1, 128), 128).eval().requires_grad_(False)
    images = [torch.rand(1, 128, 144, 3), torch.rand(1, 150, 100, 3)]
    masks = [box_mask(box, *image.shape[1:3])[None] for box, image in zip(BOXES, images, strict=True)]
    return SimpleNamespace(photos=Photos(images, masks), teller=Teller(encoder, tiny.clip_vision))


def train(tiny, setup, name, photos=None, model=None, teller=None, if_exists="overwrite", **changes):
    settings = SubjectSettings(**{**SMALL, **changes})
    return train_subject(
        model or tiny.inpaint_model,
        tiny.vae,
        photos or setup.photos,
        name,
        settings,
        teller or setup.teller,
        if_exists,
    )


def test_photos_of_any_size_become_a_file_that_changes_the_model_and_leaves_no_trace(tiny, setup, sample, caplog):
    told = {"positive": [[torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(1)), {}]]}
    plain = sample(tiny.inpaint_model, **told)
    with torch.inference_mode(), caplog.at_level("INFO", "inlay"):
        trained = train(tiny, setup, "thing")
    assert torch.equal(sample(tiny.inpaint_model, **told), plain)
    assert "parameters" in caplog.text and "minutes" in caplog.text
    assert len(trained.losses) == 3 and all(0 < loss < 100 for loss in trained.losses)
    assert trained.preview.shape == (4, 64, 192, 3)
    lora = read_lora("thing.safetensors")
    assert {key: value.shape for key, value in lora.items()} == {
        key: value.shape for key, value in trained.lora.items()
    }
    assert lora.metadata["ss_network_dim"] == "2" and json.loads(lora.metadata["inlay.recipe"])["batch"] == 2
    names = {key.rpartition("_attn")[2].partition(".")[0] for key in lora}
    assert names == {"1_to_q", "1_to_k", "1_to_v", "1_to_out_0", "2_to_v", "2_to_out_0"}
    assert all(value.any() for key, value in lora.items())
    changed = sample(load_subject(tiny.inpaint_model, lora, 1.0), **told)
    assert changed.isfinite().all() and not torch.equal(changed, plain)
    assert not any(weight.requires_grad for weight in tiny.inpaint_model.model.parameters())


def test_the_same_seed_gives_the_same_file_and_another_seed_another(tiny, setup):
    first, again = (open(train(tiny, setup, "same", dropout=0.2).path, "rb").read() for _ in range(2))
    assert first == again
    assert open(train(tiny, setup, "same", dropout=0.2, seed=1).path, "rb").read() != first


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


def test_the_loss_falls_where_it_is_trained(tiny, setup):
    many = {"steps": 40, "views": 1, "condition_dropout": 0.0, "learning_rate": 1e-2, "rank": 8}
    losses = train(tiny, setup, "falls", mask_augmentation="none", reference_augmentation=False, **many).losses
    assert sum(losses[-10:]) < 0.97 * sum(losses[:10])


def test_accumulation_and_checkpointing_only_change_the_way(tiny, setup):
    plain = train(tiny, setup, "plain", batch=1, accumulation=2).lora
    saved = train(tiny, setup, "saved", batch=1, accumulation=2, checkpointing=True).lora
    for key, value in plain.items():
        assert torch.allclose(saved[key], value, atol=1e-6), key


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_fp32_weights(tiny, setup, precision):
    half = train(tiny, setup, "half", precision=precision)
    full = train(tiny, setup, "full")
    assert all(value.dtype == torch.float32 for value in half.lora.values())
    assert abs(half.losses[0] / full.losses[0] - 1) < 0.05


def test_bad_input_is_refused_before_the_first_step(tiny, setup):
    images, masks = setup.photos.images, setup.photos.masks
    refused = [
        ({"model": tiny.model}, "9 channels in, and this one has 4"),
        ({"rank": 65}, "Rank 65 is larger than the layer .* 64 x 64. Choose at most 64"),
        ({"photos": Photos(images)}, "where the subject is"),
        ({"photos": Photos([])}, "no photo"),
        ({"photos": Photos(images * 2, masks[:1] * 3)}, "3 masks for 4 photos"),
        ({"photos": Photos(images, [masks[0], masks[1] * 0])}, "Mask 2 of 2 shows no subject"),
        ({"photos": Photos(images, boxes=[BOXES[0]] * 3)}, "boxes for 3 images"),
        ({"photos": Photos(images, boxes=[[BOXES[0], []]])}, "no box for photo 2 of 2"),
        ({"teller": Teller()}, "both clip_vision and reference_encoder"),
        ({"learning_rate": 0.0}, "learning rate is 0"),
    ]
    narrow = ReferenceEncoder(nn.Linear(768, 768), torch.zeros(1, 1, 768), 768)
    refused.append(({"teller": Teller(narrow, tiny.clip_vision)}, "takes 768"))
    wide = ReferenceEncoder(nn.Linear(128, 768), torch.zeros(1, 1, 768), 128).requires_grad_(False)
    refused.append(({"teller": Teller(wide, tiny.clip_vision)}, "768 values a token"))
    for changes, words in refused:
        with pytest.raises(ValueError, match=words):
            train(tiny, setup, "never", **changes)
    assert folder_paths.get_full_path("loras", "never.safetensors") is None


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


def test_one_photo_is_trained_and_said_to_be_few(tiny, setup, caplog):
    trained = train(tiny, setup, "one", photos=Photos(setup.photos.images[:1], boxes=[BOXES[0]]), steps=1)
    assert "one photo only" in caplog.text and len(trained.losses) == 1
