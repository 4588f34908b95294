"""What the blend node tells a model: one that clip is not the text encoder of, and one that is to remove something."""

import logging

import pytest
import torch
from inlay.host import demo_models as build
from inlay.host.blending import SAY_WHAT_IS_THERE_INSTEAD
from inlay.host.text_width import context_width, reads, require_width

from .blend_setup import fixture_blend  # noqa: F401

WIDTH = 96
REFUSED = f"texts are 128 wide and the model takes {WIDTH}. Connect positive and negative"


@pytest.fixture(name="foreign")
def fixture_foreign(monkeypatch):
    """A model that reads narrower texts than clip writes."""
    monkeypatch.setitem(build.UNET_CONFIG, "context_dim", WIDTH)
    return build.build_model(build.build_unet(4, seed=1).state_dict())


def words(seed, width=WIDTH):
    return [[torch.randn(1, 77, width, generator=torch.Generator().manual_seed(seed)), {}]]


def test_a_model_that_clip_is_not_the_text_encoder_of_asks_for_its_own_texts(blend, foreign):
    positive, negative = words(0), words(1)
    for given in (
        {},
        {"positive": positive},
        {"negative": negative},
        {"positive": words(0, 128), "negative": negative},
        {"condition": False},
        {"condition": False, "positive": positive},
        {"text": ""},
        {"text": "", "positive": positive},
        # What a removal is to avoid is not what the model is told to paint.
        {"text": "", "negative": negative},
    ):
        with pytest.raises(ValueError, match=REFUSED):
            blend(model=foreign, **given)


def test_such_a_model_paints_and_removes_with_its_own_texts(blend, foreign):
    positive, negative = words(0), words(1)
    for text in ("a red star", ""):
        image = blend(model=foreign, text=text, positive=positive, negative=negative)[0]
        assert not torch.equal(image, blend(model=foreign, text=text, positive=words(2), negative=negative)[0])


def test_with_condition_off_such_a_model_is_told_what_negative_says(blend, foreign):
    empty = words(1)
    untold = blend(model=foreign, condition=False, negative=empty, positive=words(0))[0]
    assert torch.equal(untold, blend(model=foreign, positive=empty, negative=empty, cfg=1.0)[0])


def test_with_condition_off_clips_own_model_is_told_the_empty_prompt(encode, blend):
    negative = encode("a green square")
    untold = blend(condition=False, negative=negative, cfg=4.0)[0]
    assert torch.equal(untold, blend(positive=encode(""), negative=negative, cfg=4.0)[0])


def test_a_removal_of_which_the_model_is_not_told_anything_is_advised_once(encode, blend, caplog):
    caplog.set_level(logging.INFO, "inlay")
    for advised, given in (
        (1, {"text": " "}),
        (1, {"text": "", "negative": encode("a green square")}),
        (1, {"text": "", "positive": encode("nothing"), "condition": False}),
        (0, {"text": "", "positive": encode("nothing")}),
        (0, {"condition": False}),
    ):
        caplog.clear()
        blend(**given)
        assert caplog.text.count(SAY_WHAT_IS_THERE_INSTEAD) == advised


def test_pixart_says_how_wide_its_texts_are():
    from .test_region_pixart import build as build_pixart

    pixart = build_pixart()
    assert context_width(pixart) == 40 and reads(pixart, torch.zeros(1, 20, 40)) and not reads(pixart, words(0)[0][0])
    with pytest.raises(ValueError, match="The texts are 96 wide and the model takes 40. Connect the CLIP that"):
        require_width(pixart, words(0)[0][0])
