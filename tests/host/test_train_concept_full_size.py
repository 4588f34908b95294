"""Concepts learned at the width of SD1.5, SD2.1-v and SDXL, with their text encoders' width, random weights."""

import gc

import comfy.sdxl_clip
import comfy.text_encoders.sd2_clip
import comfy.utils
import pytest
import torch
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer

from ..full_size import sd15, sd21_v, sdxl
from .test_train_concept_families import folder, learn, narrow_clip, same_as_stock, short_samples  # noqa: F401

pytestmark = pytest.mark.full_size

SD2 = comfy.text_encoders.sd2_clip
FAMILIES = {
    "sd15": (sd15, SD1ClipModel, SD1Tokenizer, {"clip_l": 768}),
    "sd21_v": (sd21_v, SD2.SD2ClipModel, SD2.SD2Tokenizer, {"clip_h": 1024}),
    "sdxl": (sdxl, comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer, {"clip_l": 768, "clip_g": 1280}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_concept_of_the_full_width(tiny, folder, caplog, name):  # noqa: F811
    make, model_class, tokenizer, widths = FAMILIES[name]
    model, clip = make(depth=1), narrow_clip(model_class, tokenizer, widths, folder)
    learned = learn(model, clip, tiny.vae, steps=1, accumulation=2, checkpointing=True, learning_rate=0.01)
    vectors = comfy.utils.load_torch_file(learned.path)
    assert {key: tuple(value.shape) for key, value in vectors.items()} == {k: (3, w) for k, w in widths.items()}
    assert torch.tensor(learned.losses).isfinite().all() and 0 < float(learned.mask.mean()) < 1
    same_as_stock(clip, learned, caplog)
    del model, clip
    gc.collect()
