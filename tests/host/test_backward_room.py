"""What the host is asked to reserve for a backward pass, where it counts on flash attention and where it does not."""

import dataclasses

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from inlay.host.activations import backward_factor
from inlay.host.contrast import with_backward
from inlay.host.decoders import full_decoder
from inlay.host.gradient_guidance import Guidance, guide
from inlay.host.guidance_memory import guidance_bytes, tell
from inlay.host.style_extractors import vae_extractor
from inlay.host.style_guidance_patch import StyleOptions, guide_by_style

FAST = Guidance("Fast", lambda denoised, *_: denoised.sum((1, 2, 3)), 0.1, None, "fast", 0.0, 1.0, ())
EXACT = dataclasses.replace(FAST, name="Exact", mode="exact")


@pytest.fixture(params=[False, True], ids=["plain", "flash"], autouse=True)
def flash(request, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "xformers_enabled", lambda: False)
    monkeypatch.setattr(comfy.model_management, "pytorch_attention_flash_attention", lambda: request.param)
    return request.param


def asked(model):
    """(rows, whole) that the host is told for 2 rows of latents."""
    wrappers = [one for kept in model.wrappers[WrappersMP.PREPARE_SAMPLING].values() for one in kept]
    told = []
    executor = WrapperExecutor.new_executor(lambda _, shape, conds, **options: told.append((shape, options)), wrappers)
    executor.execute(model, torch.Size((2, 4, 8, 8)), {}, model_options={}, force_full_load=False)
    ((rows, *shape), options), *_ = told
    assert shape == [4, 8, 8]
    return rows, options["force_full_load"]


@pytest.mark.parametrize(
    "guidances, whole",
    [
        ([FAST], False),
        ([FAST, FAST], False),
        ([EXACT, EXACT], True),
        ([EXACT, FAST], True),
        ([FAST, EXACT], True),
    ],
)
def test_guidances_share_one_forward_and_the_room_for_it(tiny, flash, guidances, whole):
    model, rows = tiny.model, (42 if flash else 12) if whole else 6
    for guidance in guidances:
        model = guide(model, guidance)
    assert asked(model) == (rows, whole)


def test_a_batch_of_cds_is_planned_with_its_backward_pass(tiny):
    """Two of a picture's four rows go through it."""
    plain = tiny.model.model.memory_required([2, 4, 8, 8])
    assert 2 * guidance_bytes(with_backward(tiny.model), (4, 8, 8)) == (backward_factor() - 1) * plain
    assert guidance_bytes(tiny.model, (4, 8, 8)) == 0


def test_training_on_a_guided_model_asks_for_the_most(tiny):
    guided = guide(tiny.model, FAST)
    assert asked(with_backward(guided)) == (2 * backward_factor(), True)
    assert asked(guided) == (6, False)


def test_what_a_guidance_tells_is_added_to_the_forward_that_all_share(tiny, flash):
    pair = tiny.model.model.memory_required([2, 4, 8, 8])
    for first, rows in ((FAST, 2 * 8), (EXACT, 2 * (28 if flash else 13))):
        model = guide(tiny.model, first)
        tell(model, lambda shape: 4 * pair, through_unet=first is EXACT)
        model = guide(model, FAST)
        tell(model, lambda shape: 3 * pair, through_unet=False)
        assert asked(model)[0] == rows


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_style_guidance_tells_of_its_decoder_and_features(tiny, flash, mode):
    def guided(strength):
        options = StyleOptions(mode=mode, strength=strength)
        return guide_by_style(tiny.model, tiny.vae, torch.rand(1, 64, 64, 3), None, None, options)

    shape = 4, 8, 8
    unet = (20 if flash else 5) * tiny.model.model.memory_required([2, *shape]) if mode == "exact" else 0
    decoder = full_decoder(tiny.vae, tiny.model.model.latent_format)
    features = vae_extractor(tiny.vae, decoder.patcher, StyleOptions().feature_size).picture_bytes((64, 64))
    assert features > 0
    assert guidance_bytes(guided(0.1), shape) == pytest.approx(decoder.row_bytes(shape) + features + unet)
    assert guidance_bytes(guided(0.0), shape) == 0
