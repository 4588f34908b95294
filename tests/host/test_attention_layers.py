"""Names of layers on the real networks' shapes; noise, timesteps and pixels of a look at a picture."""

import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel
import comfy.ops
import pytest
import torch
from inlay.host.attention_layers import choose_layers, layer_grids
from inlay.host.attention_pass import draw_noises, parse_timesteps
from inlay.host.saliency import on_picture

FULL = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=320, use_spatial_transformer=True, legacy=False
)
SD15 = dict(
    **FULL, num_res_blocks=[2] * 4, channel_mult=[1, 2, 4, 4], transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
    transformer_depth_output=[1] * 9 + [0] * 3, transformer_depth_middle=1, num_heads=8, context_dim=768,
)  # fmt: skip
SDXL = dict(
    **FULL, num_res_blocks=[2] * 3, channel_mult=[1, 2, 4], transformer_depth=[0, 0, 2, 2, 10, 10],
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], transformer_depth_middle=10, num_head_channels=64,
    context_dim=2048, use_linear_in_transformer=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "size", "layer", "places"),
    [
        (SD15, (64, 64), "16x16", ["input 7", "input 8", "output 3", "output 4", "output 5"]),
        (SD15, (128, 128), "16x16", ["input 7", "input 8", "output 3", "output 4", "output 5"]),
        (SD15, (64, 64), "16x16 decoder", ["output 3", "output 4", "output 5"]),
        (SD15, (96, 96), "16x16", ["input 7", "input 8", "output 3", "output 4", "output 5"]),
        (SD15, (128, 96), "64x64", ["input 1", "input 2", "output 9", "output 10", "output 11"]),
        (SD15, (32, 32), "16x16", ["input 4", "input 5", "output 6", "output 7", "output 8"]),
        (SD15, (64, 96), "64x64", ["input 1", "input 2", "output 9", "output 10", "output 11"]),
        (SD15, (64, 64), "middle", ["middle 0"]),
        (SDXL, (128, 128), "16x16", ["input 7", "input 8", "output 0", "output 1", "output 2"]),
        (SDXL, (104, 152), "64x64", ["input 4", "input 5", "output 3", "output 4", "output 5"]),
    ],
)
def test_names_of_layers_on_real_networks(config, size, layer, places):
    config = {key: list(value) if isinstance(value, list) else value for key, value in config.items()}
    unet = openaimodel.UNetModel(**config, device="meta", operations=comfy.ops.disable_weight_init)
    grids = layer_grids(unet, *size)
    assert list(dict.fromkeys(f"{part} {index}" for part, index, _ in choose_layers(grids, layer, size))) == places
    assert len(choose_layers(grids, "all", size)) == (16 if config["context_dim"] == 768 else 70)


def test_noise_is_seeded_and_the_same_everywhere():
    latent = torch.zeros(1, 4, 16, 18)
    one, two = draw_noises(3, latent, 2)
    assert torch.equal(one, draw_noises(3, latent, 1)[0]) and not torch.equal(one, two)
    state = torch.get_rng_state()
    draw_noises(3, latent, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_timesteps_are_read_or_refused():
    assert parse_timesteps("500, 300 100") == [500, 300, 100]
    for text in ("", "soon", "1000", "-1", "nan", "300; 200"):
        with pytest.raises(ValueError, match="are no list of numbers from 0 to 999"):
            parse_timesteps(text)


def test_padded_pictures_get_their_own_pixels():
    maps = torch.arange(12.0).view(1, 3, 4)
    ours = on_picture(maps, 20, 31, 8)
    want = torch.nn.functional.interpolate(maps[None], scale_factor=8, mode="bilinear")[0, :, :20, :31]
    assert torch.allclose(ours, want)
