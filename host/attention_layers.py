"""The transformer layers of a UNet that attention can be read from, and their grids."""

import math

from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel
from comfy.model_patcher import ModelPatcher

from .models import require_timesteps
from .unet_blocks import BlockKey, require_unet, transformer_blocks

Grid = tuple[int, int]

# The side of the latent that the layers' names are of.
NAMED_FOR = 64
LAYERS = ("middle", "8x8", "16x16", "32x32", "64x64", "8x8 decoder", "16x16 decoder", "decoder", "all")


def require_readable(model: ModelPatcher) -> None:
    """Raises ValueError for a model that is no UNet with attention to text, and for flow matching and EDM."""
    require_unet(model, "reading attention maps")
    require_timesteps(model)


def layer_grids(unet: UNetModel, height: int, width: int) -> dict[BlockKey, Grid]:
    """Every transformer layer and the grid (h, w) of its tokens, for a latent of height x width cells."""
    encoder: list[Grid] = []
    grid = (height, width)
    for modules in unet.input_blocks:
        if any(isinstance(module, Downsample) for module in modules):
            grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
        encoder.append(grid)
    # Each decoder block joins the features of one encoder block, from the last to the first.
    grids = {"input": encoder, "middle": [grid], "output": encoder[::-1]}
    return {(part, index, depth): grids[part][index] for part, index, depth in transformer_blocks(unet)}


def choose_layers(grids: dict[BlockKey, Grid], layer: str, latent: Grid) -> list[BlockKey]:
    """The keys that a name of LAYERS stands for, for a latent of (h, w) cells.

    `NxN` is said of a latent of 64 cells a side, SD1.x at 512 pixels, and grows with larger ones, so that it stays the
    same layers: of the encoder and decoder those whose side (square root of h w) is nearest on a log scale. For 16:
    InstantSwap's five layers of SD1.x, SDXL's coarsest at 1024 pixels and the demo world's finest. Below 64 it is N,
    where a quarter of a small latent would show nothing. The middle block stands apart, since it is coarser than what
    it would be counted with.
    """
    if layer == "all":
        return list(grids)
    size, _, decoder = layer.partition(" ")
    if layer == "middle":
        chosen = [key for key in grids if key[0] == "middle"]
    elif layer == "decoder":
        chosen = [key for key in grids if key[0] == "output"]
    else:
        sides = {key: math.sqrt(h * w) for key, (h, w) in grids.items() if key[0] != "middle"}
        larger = max(1.0, math.sqrt(latent[0] * latent[1]) / NAMED_FOR)
        wanted = math.log(int(size.partition("x")[0]) * larger)
        nearest = min(sides.values(), key=lambda side: abs(math.log(side) - wanted), default=0)
        chosen = [key for key, side in sides.items() if side == nearest and (not decoder or key[0] == "output")]
    if not chosen:
        raise ValueError(f'This model has no attention layer of the kind "{layer}". Choose another layer.')
    return chosen
