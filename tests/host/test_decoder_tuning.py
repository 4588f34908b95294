"""A decoder fitted to one picture's background."""

import comfy.model_management
import pytest
import torch
from inlay.host import decoder_tuning
from inlay.host.decoder_tuning import decode_tuned
from inlay.host.pictures import decode_picture, encode_picture

from .decoder_tuning_setup import assert_untouched, weights

H, W = 64, 72
IMAGE = torch.rand(1, H, W, 3, generator=torch.Generator().manual_seed(0))
MASK = torch.zeros(1, H, W)
MASK[:, 16:35, 24:50] = 1


@pytest.mark.parametrize("size", [(H, W), (61, 67)])
def test_a_tuned_decoder_shows_the_background_better_and_leaves_the_vae_alone(tiny, monkeypatch, size):
    monkeypatch.setattr(decoder_tuning, "LEARNING_RATE", 1e-3)
    height, width = size
    image, mask = IMAGE[:, :height, :width], MASK[:, :height, :width]
    sample = encode_picture(tiny.vae, image.flip(2))
    before = weights(tiny.vae)
    plain = decode_picture(tiny.vae, sample, height, width)
    with torch.inference_mode():
        tuned = decode_tuned(tiny.vae, sample, image, mask, steps=4)
        again = decode_tuned(
            tiny.vae, sample.repeat(2, 1, 1, 1), *(it.repeat(2, *[1] * (it.ndim - 1)) for it in (image, mask)), steps=4
        )
    outside = mask[0] == 0
    assert tuned.shape == image.shape
    assert (tuned - image)[0][outside].square().mean() < 0.9 * (plain - image)[0][outside].square().mean()
    assert torch.equal(again[1], tuned[0])
    assert (decode_tuned(tiny.vae, sample, image, mask, steps=0) - plain).abs().max() < 1e-5
    assert_untouched(tiny.vae, before)
    assert torch.equal(decode_picture(tiny.vae, sample, height, width), plain)


OUT_OF_MEMORY = [comfy.model_management.OOM_EXCEPTION("no")]
if hasattr(comfy.model_management, "is_oom"):
    # Hosts from 0.24 know it of work that a device reports on later, too.
    OUT_OF_MEMORY.append(comfy.model_management.ACCELERATOR_ERROR("CUDA error: out of memory"))


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_picture_that_does_not_fit_into_memory_is_decoded_plainly(tiny, monkeypatch, caplog, error):
    """The second of three: the others are tuned, nothing is lost, and the warning says which."""
    images, masks = torch.cat([IMAGE, IMAGE.flip(1), IMAGE.flip(2)]), MASK.repeat(3, 1, 1)
    samples = encode_picture(tiny.vae, images.flip(1))
    before, real, calls = weights(tiny.vae), decoder_tuning._tuned, []

    def scarce(*job):
        calls.append(job)
        if len(calls) == 2:
            raise error
        return real(*job)

    want = decode_tuned(tiny.vae, samples, images, masks, steps=2)
    monkeypatch.setattr(decoder_tuning, "_tuned", scarce)
    with torch.inference_mode():
        got = decode_tuned(tiny.vae, samples, images, masks, steps=2)
    assert len(calls) == 3 and torch.equal(got[0], want[0]) and torch.equal(got[2], want[2])
    assert torch.equal(got[1], decode_picture(tiny.vae, samples[1:2], H, W)[0]) and not torch.equal(got[1], want[1])
    assert "picture 2 of 3" in caplog.text
    assert_untouched(tiny.vae, before)


def test_another_error_while_tuning_goes_on(tiny, monkeypatch):
    def fails(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(decoder_tuning, "_tuned", fails)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        decode_tuned(tiny.vae, encode_picture(tiny.vae, IMAGE), IMAGE, MASK, steps=1)
