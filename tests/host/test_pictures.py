"""Pictures of any size through the VAE of the real host."""

from types import SimpleNamespace

import pytest
import torch
from inlay.host.pictures import decode_picture, encode_picture, pad_mask


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
