"""Blended Diffusion as one node against the same graph wired by hand, and the decoder fitted to the background."""

import math
from functools import partial

import comfy.model_management
import comfy.samplers
import pytest
import torch
from inlay.host import blending, decoder_tuning, kept_work, painting
from inlay.host.blending import without_the_thing
from inlay.host.decoder_tuning import decode_tuned
from inlay.host.painting import PaintSettings, paint
from inlay.host.pictures import encode_picture
from inlay.nodes.blend import Blend
from inlay.nodes.clip_guidance import ClipGuidance
from inlay.nodes.paint import Paint
from inlay.nodes.rank import Rank

from .blend_setup import IMAGE, MASK, OUTSIDE, TEXT, H, W, defaults, fixture_blend  # noqa: F401
from .decoder_tuning_setup import assert_untouched, weights


@pytest.mark.parametrize(
    "algorithm, condition, progressive, repeats",
    [("ddpm", True, 2, 1), ("ddim", False, 0, 2), ("local", True, 0, 1)],
)
def test_it_is_the_graph_wired_by_hand(tiny, encode, blend, algorithm, condition, progressive, repeats):
    images, scores = blend(algorithm=algorithm, condition=condition, progressive=progressive, repeats=repeats)
    local = algorithm == "local"
    with torch.inference_mode():
        guided = ClipGuidance.execute(
            *(tiny.model, tiny.vae, tiny.clip_vision, MASK),
            **defaults(ClipGuidance, text=TEXT, augmentations=1, background_weight=10.0 if local else 0.0),
            clip=tiny.clip,
            image=IMAGE,
        ).result[0]
        painted = Paint.execute(
            *(guided, encode(TEXT if condition else ""), encode(""), tiny.vae, IMAGE, MASK),
            **defaults(
                Paint, steps=2, seed=3, candidates=2, cfg=5.0 if condition else 1.0, denoise=0.75, paste="exact",
                sampler="ddim" if algorithm == "ddim" else "ddpm", background="none" if local else "renoised",
                progressive=progressive, repeats=repeats,
            ),
        ).result[0]  # fmt: skip
        ranked = Rank.execute(painted, tiny.clip_vision, 0, clip=tiny.clip, text=TEXT, mask=MASK).result
    assert torch.equal(images, ranked[0]) and scores == ranked[1]
    assert scores[0] >= scores[1] and not torch.equal(images[0], images[1])
    assert all(torch.equal(image[OUTSIDE], IMAGE[0][OUTSIDE]) for image in images)


def test_a_guider_paints_and_clip_guides_it(tiny, encode, blend):
    """As Guide by CLIP before the guider, and the guider at Paint; the user's own guider is left as it was."""
    guider = comfy.samplers.CFGGuider(tiny.model)
    guider.set_conds(encode(TEXT), encode(""))
    guider.set_cfg(3.0)
    given = dict(vars(guider))
    images, scores = blend(guider=guider, cfg=9.0)
    wired = blend(cfg=3.0)
    assert torch.equal(images, wired[0]) and scores == wired[1]
    assert vars(guider) == given and guider.model_patcher is tiny.model
    assert torch.equal(blend(guider=guider, text="")[0], blend(positive=encode(TEXT), text="", cfg=3.0)[0])
    assert not torch.equal(images, blend(guider=guider, strength=0.0)[0])


def test_an_empty_text_removes_and_does_not_rank(tiny, encode, blend):
    images, scores = blend(text=" ", strength=50.0)
    settings = PaintSettings(2, 1.0, 3, 2, "renoised", "ddpm", denoise=0.75, paste="exact")
    bare = without_the_thing(IMAGE, MASK)
    want, _ = paint(tiny.model, encode(""), encode(""), tiny.vae, bare, MASK, settings)
    assert torch.equal(images, want) and all(math.isnan(score) for score in scores)
    assert all(torch.equal(image[OUTSIDE], IMAGE[0][OUTSIDE]) for image in images)
    assert len(blend(text="", candidates=50, keep=1)[0]) == 1


def test_a_removal_sees_nothing_of_what_stood_there(blend):
    other = torch.where(MASK[..., None] > 0, 1 - IMAGE, IMAGE)
    inside = without_the_thing(IMAGE, MASK)[0][~OUTSIDE]
    assert torch.equal(without_the_thing(IMAGE, MASK)[0][OUTSIDE], IMAGE[0][OUTSIDE])
    assert inside.amin() >= IMAGE[0][OUTSIDE].amin() and inside.amax() <= IMAGE[0][OUTSIDE].amax()
    assert torch.equal(blend(text="", keep=1)[0], blend(text="", keep=1, image=other)[0])


def test_a_removal_avoids_what_negative_says(tiny, encode, blend):
    images, _ = blend(text="", negative=encode("a green square"), cfg=4.0)
    settings = PaintSettings(2, 4.0, 3, 2, "renoised", "ddpm", denoise=0.75, paste="exact")
    bare = without_the_thing(IMAGE, MASK)
    want, _ = paint(tiny.model, encode(""), encode("a green square"), tiny.vae, bare, MASK, settings)
    assert torch.equal(images, want)


def test_a_removal_may_be_told_what_the_place_shows_without_the_thing(tiny, encode, blend):
    images, scores = blend(text="", positive=encode("nothing in the snow"), cfg=4.0)
    settings = PaintSettings(2, 4.0, 3, 2, "renoised", "ddpm", denoise=0.75, paste="exact")
    bare = without_the_thing(IMAGE, MASK)
    want, _ = paint(tiny.model, encode("nothing in the snow"), encode(""), tiny.vae, bare, MASK, settings)
    assert torch.equal(images, want) and all(math.isnan(score) for score in scores)


def test_a_conditioning_of_the_users_own_is_what_the_model_is_told(encode, blend):
    own = blend(positive=encode("a blue ring"), negative=encode("snow"))[0]
    assert not torch.equal(own, blend()[0])
    assert torch.equal(blend(positive=encode(TEXT), negative=encode(""))[0], blend()[0])


def test_later_widgets_stand_behind_those_that_saved_graphs_hold():
    names = [socket.id for socket in Blend.define_schema().inputs if hasattr(socket, "default")]
    assert names[-3:] == ["progressive", "repeats", "start"]


def test_each_step_is_repeated_as_often_as_asked(blend):
    for algorithm in ("ddpm", "ddim", "local"):
        images = [blend(algorithm=algorithm, repeats=number, candidates=1)[0] for number in (1, 2)]
        assert not torch.equal(*images)


def test_at_the_highest_level_the_picture_may_lie_under_the_noise(blend):
    """Anywhere below there is one anyway, and the start is no question."""
    for denoise, differ in ((1.0, True), (0.75, False)):
        surroundings, picture, default = (
            blend(denoise=denoise, candidates=1, **start)[0]
            for start in ({"start": "surroundings"}, {"start": "picture"}, {})
        )
        assert torch.equal(surroundings, default) and torch.equal(picture, default) != differ


def test_a_batch_keeps_the_best_of_each_picture(blend):
    image = torch.cat([IMAGE, IMAGE.flip(1)])
    mask = torch.cat([MASK, MASK.flip(2)])
    images, scores = blend(image=image, mask=mask, keep=1)
    assert images.shape == (2, H, W, 3) and len(scores) == 2
    for row in range(2):
        outside = mask[row] == 0
        assert torch.equal(images[row][outside], image[row][outside])


def test_more_masks_than_pictures_and_more_pictures_than_masks(blend):
    """As Paint Into Mask takes them: the smaller batch is repeated in turn, with a text and without."""
    masks = torch.cat([MASK, MASK.flip(2)])
    for text in (TEXT, ""):
        images, scores = blend(mask=masks, text=text, candidates=1, keep=1)
        assert images.shape == (2, H, W, 3) and len(scores) == 2
        for row in range(2):
            assert torch.equal(images[row][masks[row] == 0], IMAGE[0][masks[row] == 0])
    pictures = torch.cat([IMAGE, IMAGE.flip(1), IMAGE.flip(2), 1 - IMAGE])
    images, scores = blend(image=pictures, mask=masks, candidates=1, keep=1)
    assert images.shape == (4, H, W, 3) and len(scores) == 4
    for row in range(4):
        outside = masks[row % 2] == 0
        assert torch.equal(images[row][outside], pictures[row][outside])
    with pytest.raises(ValueError, match="do not go together"):
        blend(image=pictures[:3], mask=masks)


def test_what_no_mask_touched_is_the_first_pictures_after_three_edits_in_a_row(blend):
    masks = [MASK, MASK.flip(1), MASK.flip(2)]
    image = IMAGE
    for number, mask in enumerate(masks):
        before = image
        image = blend(image=image, mask=mask, text="" if number == 1 else TEXT, candidates=1, seed=number)[0]
        assert not torch.equal(image, before)
    never = torch.stack(masks).amax((0, 1)) == 0
    assert 0 < never.sum() < never.numel() and torch.equal(image[0][never], IMAGE[0][never])


def test_guided_candidates_do_not_depend_on_how_many_run_at_once(blend):
    together, apart = (blend(mode="place", candidates=3, at_once=number) for number in (3, 1))
    torch.testing.assert_close(apart[0], together[0], rtol=0, atol=2e-3)
    torch.testing.assert_close(torch.tensor(apart[1]), torch.tensor(together[1]), rtol=0, atol=2e-3)


def test_progressive_masks_touch_neither_the_end_nor_the_outside(tiny, encode):
    thin = torch.zeros(1, H, W)
    thin[:, 24:32, 32:40] = 1
    settings = PaintSettings(2, candidates=1, denoise=0.8, paste="exact", inversion_steps=2)
    latent = encode_picture(tiny.vae, IMAGE)
    for background in ("inverted", "renoised", "fixed"):
        ends = []
        for progressive in (0, 2):
            changed = PaintSettings(**{**vars(settings), "background": background, "progressive": progressive})
            images, end = paint(tiny.model, encode(TEXT), encode(""), tiny.vae, IMAGE, thin, changed)
            assert torch.equal(images[0][thin[0] == 0], IMAGE[0][thin[0] == 0])
            cells = torch.ones(8, 9, dtype=torch.bool)
            cells[3, 4] = False
            assert (end["samples"] - latent)[0][:, cells].abs().max() < 1e-5
            ends.append(end["samples"])
        assert not torch.equal(*ends)


def test_the_exact_paste_comes_after_the_tuning(blend, monkeypatch):
    (plain,), changes = blend(candidates=1)[0], []
    for steps in (0, 2):
        monkeypatch.setattr(painting, "decode_tuned", partial(decode_tuned, steps=steps))
        (tuned,) = blend(candidates=1, paste="decoder tuning")[0]
        assert torch.equal(tuned[OUTSIDE], IMAGE[0][OUTSIDE])
        changes.append((tuned - plain).abs().max())
    assert changes[0] < 1e-5 and changes[1] > 1e-3


def test_cancel_while_tuning_keeps_the_pictures_and_the_weights(tiny, blend, monkeypatch):
    before, kept, calls = weights(tiny.vae), [], []

    def press_cancel(*_):
        calls.append(0)
        if len(calls) == 2:
            comfy.model_management.interrupt_current_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()

    monkeypatch.setattr(decoder_tuning, "mse_loss", lambda a, b: press_cancel() or (a - b).square().mean())
    monkeypatch.setattr(painting, "keep_pictures", lambda images, *_: kept.append(images))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        blend(paste="decoder tuning")
    assert_untouched(tiny.vae, before)
    assert len(calls) == 2 and kept[0].shape == (2, H, W, 3)
    assert torch.equal(kept[0][1][OUTSIDE], IMAGE[0][OUTSIDE])


def test_candidates_that_cannot_be_ranked_are_kept(blend, monkeypatch):
    kept = []

    def fails(*_, **__):
        raise comfy.model_management.OOM_EXCEPTION("no")

    monkeypatch.setattr(blending, "score_pictures", fails)
    monkeypatch.setattr(kept_work, "keep_pictures", lambda images, *_: kept.append(images))
    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        blend()
    assert kept[0].shape == (2, H, W, 3)


def test_bad_input_is_one_clear_sentence(tiny, blend):
    for message, given in (
        ("mask is empty", {"mask": torch.zeros(1, H, W)}),
        ("covers the whole picture", {"mask": torch.ones(1, H, W)}),
        ("fills 2 x 77 tokens", {"text": "star " * 90}),
        ("no text encoder", {"clip": None}),
        ("There is no CLIP_VISION", {"clip_vision": None}),
        ("`local` follows a text", {"text": "", "algorithm": "local"}),
    ):
        with pytest.raises(ValueError, match=message):
            blend(**given)
    narrow = type("Narrow", (), {"model_type": "clip_vision_model", "model": torch.nn.Module()})()
    narrow.model.visual_projection = torch.nn.Linear(8, 5)
    with pytest.raises(ValueError, match="no CLIP pair"):
        blend(clip_vision=narrow)
    with pytest.raises(ValueError, match="no decoder that can be tuned"):
        bare = type("Bare", (), {"first_stage_model": torch.nn.Module(), "latent_dim": 2})()
        decode_tuned(bare, torch.zeros(1, 4, 8, 9), IMAGE, MASK)
