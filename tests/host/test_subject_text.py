"""Subjects told by a prompt: rows keep their own captions, class pictures are kept, refusals."""

from dataclasses import replace

import pytest
import torch
from inlay.attention.boxes import box_mask
from inlay.host import subject_loop
from inlay.host.lora_files import read_lora
from inlay.host.subject_telling import Teller
from inlay.host.subject_training import Photos, train_subject
from inlay.training.subject_settings import SubjectSettings

SMALL = {
    "mode": "text",
    "preset": "custom",
    "rank": 2,
    "steps": 2,
    "batch": 3,
    "resolution": 64,
    "views": 2,
    "learning_rate": 1e-3,
    "condition_dropout": 0.0,
}
PROMPTS = "a photo of sks star\na drawing of sks star"


@pytest.fixture(scope="module")
def images():
    return [torch.rand(1, 128, 144, 3), torch.rand(1, 100, 90, 3)]


def train(tiny, images, model=None, clip=True, photos=None, **changes):
    settings = SubjectSettings(**{**SMALL, "prompt": PROMPTS, **changes})
    teller = Teller(clip=tiny.clip if clip else None)
    photos = photos or Photos(images)
    return train_subject(model or tiny.model, tiny.vae, photos, "told", settings, teller, "overwrite")


def watched(model):
    """A clone that keeps what each forward is given."""
    seen, clone = [], model.clone()

    def keep(apply, given):
        seen.append(given["c"]["c_crossattn"].detach().clone())
        return apply(given["input"], given["timestep"], **given["c"])

    clone.set_model_unet_function_wrapper(keep)
    return clone, seen


def test_every_row_is_told_its_own_caption_in_one_forward(tiny, images, encode):
    model, seen = watched(tiny.model)
    with torch.inference_mode():
        trained = train(tiny, images, model)
    own = [encode(prompt)[0][0][0] for prompt in PROMPTS.splitlines()]
    # First one row alone, to see what it keeps.
    assert [len(context) for context in seen] == [1, 3, 3, 3]
    assert all(context.shape[1:] == (77, 128) for context in seen)
    rows = [[[torch.allclose(row, one, atol=1e-5) for one in own] for row in context] for context in seen[1:]]
    assert all(sum(told) == 1 for context in rows for told in context)
    assert any(told[0] for context in rows for told in context) and any(told[1] for context in rows for told in context)
    assert any("attn2_to_k" in key for key in trained.lora)
    assert read_lora("told.safetensors").metadata["inlay.prompt"] == "a photo of sks star"


def test_left_out_captions_are_the_empty_prompt(tiny, images, encode):
    model, seen = watched(tiny.model)
    train(tiny, images, model, condition_dropout=1.0, steps=1)
    assert torch.allclose(seen[-1], encode("")[0][0].expand(3, -1, -1), atol=1e-5)


def test_class_pictures_stand_in_the_same_batch_under_their_own_prompt(tiny, images, encode):
    model, seen = watched(tiny.model)
    photos = Photos(images, class_images=[torch.rand(3, 64, 64, 3)])
    kept = train(tiny, images, model, photos=photos, class_prompt="a star")
    assert seen[-1].shape[0] == 6
    assert torch.allclose(seen[-1][3:], encode("a star")[0][0].expand(3, -1, -1), atol=1e-5)
    lost = train(tiny, images, photos=photos, class_prompt="a star", prior_weight=0.0)
    assert kept.losses[0] > 1.2 * lost.losses[0]


def test_class_pictures_and_their_prompt_need_each_other(tiny, images, caplog):
    photos = Photos(images, class_images=[torch.rand(3, 64, 64, 3)])
    with pytest.raises(ValueError, match="There is no class_prompt. Say what the class images show without the rare"):
        train(tiny, images, photos=photos)
    with pytest.raises(ValueError, match="There are 2 class prompts for 3 class images"):
        train(tiny, images, photos=photos, class_prompt="a star\na box")
    with caplog.at_level("INFO", "inlay"):
        train(tiny, images, class_prompt="a star", steps=1)
    assert "class_prompt does nothing without class_images" in caplog.text


def test_a_v_model_and_a_masked_loss(tiny, images):
    boxes = [[{"x": 10, "y": 20, "width": 40, "height": 30}]] * 2
    masks = [box_mask(box, *image.shape[1:3])[None] for box, image in zip(boxes, images, strict=True)]
    everywhere = train(tiny, images, tiny.v_model, steps=1).losses[0]
    inside = train(tiny, images, tiny.v_model, steps=1, photos=Photos(images, masks), masked_loss=True).losses[0]
    assert 0 < inside < 100 and 0 < everywhere < 100 and inside != everywhere


def test_an_inpainting_model_is_told_by_text_too(tiny, images):
    boxes = [{"x": 10, "y": 20, "width": 40, "height": 30}]
    trained = train(tiny, images, tiny.inpaint_model, steps=1, photos=Photos(images, boxes=boxes))
    assert trained.preview.shape[2] == 128


def masked(images):
    boxes = [[{"x": 10, "y": 20, "width": 40, "height": 30}]] * 2
    return Photos(images, [box_mask(box, *image.shape[1:3])[None] for box, image in zip(boxes, images, strict=True)])


def test_the_saliency_focus_is_added_row_by_row_by_its_weight(tiny, images, monkeypatch):
    seen, real = [], subject_loop.saliency_focus

    def kept(denoised, clean, saliency, *more):
        seen.append((saliency.detach().clone(), real(denoised, clean, saliency, *more).detach().mean()))
        return real(denoised, clean, saliency, *more)

    monkeypatch.setattr(subject_loop, "saliency_focus", kept)
    plain = train(tiny, images, steps=1).losses[0]
    focused = train(tiny, images, steps=1, loss="saliency focus", focus_weight=0.5).losses[0]
    (saliency, term), *more = seen
    assert not more and saliency.shape == (3, 1, 8, 8) and set(saliency.unique().tolist()) == {0.0, 1.0}
    assert focused == pytest.approx(plain + 0.5 * float(term), rel=1e-4)
    # Of each row its own, and the masks where there are some.
    assert any(not torch.equal(saliency[0], other) for other in saliency[1:])
    train(tiny, images, steps=1, loss="saliency focus", photos=masked(images))
    assert not torch.equal(seen[-1][0], saliency)


def test_pictures_without_a_mask_take_the_models_own_saliency_beside_those_with_one(tiny, images, monkeypatch):
    seen, real = [], subject_loop.saliency_focus

    def kept(denoised, clean, saliency, *more):
        seen.append(saliency.detach().clone())
        return real(denoised, clean, saliency, *more)

    monkeypatch.setattr(subject_loop, "saliency_focus", kept)
    focus = {"steps": 1, "loss": "saliency focus", "class_prompt": "a star"}
    others = [torch.rand(3, 64, 64, 3)]
    own = masked(images)
    for photos in (own, replace(own, class_images=others), Photos(images, class_images=others)):
        train(tiny, images, photos=photos, **focus)
    masks, mixed, model = seen
    # The same rows are drawn each time, those of the class last.
    assert masks.shape == (3, 1, 8, 8) and mixed.shape == model.shape == (6, 1, 8, 8)
    assert torch.equal(mixed[:3], masks) and not torch.equal(mixed[:3], model[:3])
    assert torch.equal(mixed[3:], model[3:])
    assert all(0 < float(row.mean()) < 1 for row in mixed[3:])


def test_bad_input_is_refused(tiny, images):
    several = Photos(images, class_images=[torch.rand(1, 64, 64, 3)])
    refused = [
        ({"clip": False}, "needs a text encoder"),
        ({"prompt": " "}, "no prompt"),
        ({"prompt": "a\nb\nc"}, "3 prompts for 2 photos"),
        ({"photos": several}, "no class_prompt"),
        ({"masked_loss": True}, "where the subject is"),
        ({"model": tiny.inpaint_model}, "where the subject is"),
        ({"projection": "trained"}, "projection is of references"),
    ]
    for changes, words in refused:
        with pytest.raises(ValueError, match=words):
            train(tiny, images, **changes)
