"""Pictures of any size through the VAE of the real host."""

import copy
from types import SimpleNamespace

import pytest
import torch
from inlay.host.pictures import decode_picture, encode_picture, pad_mask, scaled_down


@pytest.mark.parametrize("size", [(128, 144), (131, 97), (9, 15), (8, 8)])
def test_a_picture_comes_back_in_its_own_size(tiny, size):
    latent = encode_picture(tiny.vae, torch.rand(1, *size, 3))
    assert latent.shape[-2:] == tuple(-(-n // 8) for n in size)
    assert decode_picture(tiny.vae, latent, *size).shape == (1, *size, 3)


def test_a_fitting_picture_is_encoded_as_the_host_does(tiny):
    image = torch.rand(2, 64, 72, 3)
    assert torch.equal(encode_picture(tiny.vae, image), tiny.vae.encode(image))


def test_padding_is_reflection_right_and_below(tiny):
    image = torch.rand(1, 61, 66, 3)
    padded = torch.cat([image, image[:, [59, 58, 57]]], 1)
    padded = torch.cat([padded, padded[:, :, [64, 63, 62, 61, 60, 59]]], 2)
    assert torch.equal(encode_picture(tiny.vae, image), tiny.vae.encode(padded))
    assert torch.equal(pad_mask(image[..., 0], tiny.vae), padded[..., 0])


def test_an_alpha_channel_is_left_out(tiny):
    image = torch.rand(1, 64, 64, 4)
    assert torch.equal(encode_picture(tiny.vae, image), encode_picture(tiny.vae, image[..., :3]))


def half_vae(vae, factor):
    """The VAE in fp16; a factor on the decoder's first layer makes it overflow before its norms."""
    vae = copy.copy(vae)
    vae.vae_dtype = torch.float16
    vae.first_stage_model = copy.deepcopy(vae.first_stage_model).half()
    vae.patcher = vae.patcher.clone()
    vae.patcher.model = vae.first_stage_model
    with torch.no_grad():
        vae.first_stage_model.decoder.conv_in.weight.mul_(factor)
    return vae


def test_a_decoder_that_overflows_in_half_precision_is_refused(tiny):
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert decode_picture(half_vae(tiny.vae, 1.0), latent, 60, 64).shape == (1, 60, 64, 3)
    with pytest.raises(ValueError, match="decoded the result to values that are not numbers. Run the VAE in higher"):
        decode_picture(half_vae(tiny.vae, 6e4), latent, 60, 64)


def test_larger_pictures_are_scaled_down_and_others_left_alone():
    pictures = torch.rand(2, 60, 90, 3)
    for longest in (0, 90, 512):
        assert scaled_down(pictures, longest) is pictures
    small = scaled_down(pictures, 32)
    assert small.shape == (2, 21, 32, 3) and 0 <= small.min() and small.max() <= 1
    assert (small.mean((1, 2)) - pictures.mean((1, 2))).abs().max() < 0.02
    assert scaled_down(torch.rand(1, 900, 2, 1), 100).shape == (1, 100, 1, 1)


def test_refusals(tiny):
    with pytest.raises(ValueError, match="9 x 7 pixels, too small"):
        encode_picture(tiny.vae, torch.rand(1, 7, 9, 3))
    with pytest.raises(ValueError, match="no VAE"):
        encode_picture(None, torch.rand(1, 8, 8, 3))
    with pytest.raises(ValueError, match="no VAE"):
        decode_picture(None, torch.rand(1, 4, 8, 8), 64, 64)
    with pytest.raises(ValueError, match="not numbers"):
        decode_picture(tiny.vae, torch.full((1, 4, 8, 8), torch.nan), 64, 64)
    broken = SimpleNamespace(spacial_compression_encode=lambda: 8, encode=lambda x: torch.full((1, 4, 1, 1), torch.inf))
    with pytest.raises(ValueError, match="VAE turned the picture"):
        encode_picture(broken, torch.rand(1, 8, 8, 3))
