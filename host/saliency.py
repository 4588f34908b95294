"""Maps of a picture from the attention of a model that looks at it."""

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..attention.cross_maps import refined_map, word_map
from ..attention.saliency import mean_map, resize_map
from ..attention.salient_sources import RECEIVED, joined_map, layer_map
from .attention_capture import Seen, watch_attention
from .attention_layers import choose_layers, layer_grids, require_readable
from .attention_pass import clean_forwards, draw_noises
from .unet_blocks import BlockKey

BLIND = (
    "No attention of the chosen layers could be read: a patch on the model merges their tokens or adds to them. "
    "Remove that patch, or choose another layer."
)
BROKEN = "The model's attention holds values that are not numbers. Run the model in higher precision (bf16 or fp32)."


def chosen_layers(model: ModelPatcher, latent: Tensor, layer: str) -> list[BlockKey]:
    """The layers that a name of LAYERS stands for with this model and latent, as require_readable allows."""
    require_readable(model)
    size = tuple(latent.shape[-2:])
    return choose_layers(layer_grids(model.get_model_object("diffusion_model"), *size), layer, size)


def self_attention_map(
    model: ModelPatcher,
    conditioning: list,
    latent: Tensor,
    layers: list[BlockKey],
    timesteps: list[float],
    draws: int = 1,
    seed: int = 0,
    reading: str = RECEIVED,
) -> Tensor:
    """O of one picture (Spin's saliency before its threshold), (1, h, w) on the finest of the layers' grids, fp32.

    latent: (1, C, h, w). reading: of READINGS, as joined_map has them. The mean over timesteps and noise draws, and
    then over layers; with RECEIVED its own mean is 1 where the layers share one grid.
    """
    seen = self_attention_layers(model, conditioning, latent, layers, timesteps, draws, seed, reading)
    return joined_map(reading, seen)


def self_attention_layers(
    model: ModelPatcher,
    conditioning: list,
    latent: Tensor,
    layers: list[BlockKey],
    timesteps: list[float],
    draws: int = 1,
    seed: int = 0,
    reading: str = RECEIVED,
) -> list[Tensor]:
    """The same before the layers are joined: of each layer layer_map's (1, h_i, w_i)."""
    sums: dict[BlockKey, Tensor] = {}
    passes = 0

    def report(seen: Seen) -> None:
        found = layer_map(reading, seen.queries, seen.keys, seen.heads, seen.grid)
        sums[seen.layer] = sums.get(seen.layer, 0) + found.cpu()

    noises = iter(draw_noises(seed, latent, draws * len(timesteps)))
    with clean_forwards(watch_attention(model, layers, report, "self"), conditioning, latent) as forward:
        for timestep in timesteps:
            for _ in range(draws):
                forward(timestep, next(noises))
                passes += 1
    if not sums:
        raise ValueError(BLIND)
    return [require_numbers(total / passes) for total in sums.values()]


def word_maps(
    model: ModelPatcher,
    conditioning: list,
    latent: Tensor,
    positions: list[int],
    layers: list[BlockKey],
    timesteps: list[float],
    draws: int = 1,
    seed: int = 0,
    alpha: float = 2.0,
    self_attention: bool = True,
    stretch: bool = False,
) -> Tensor:
    """A_self (A_cross)^alpha of a word in one picture, one map per timestep: (T, h, w) fp32, greatest value 1.

    positions: the word's tokens in the conditioning. Layers of several grids are refined grid by grid and averaged on
    the finest; draws are averaged per timestep. self_attention: False leaves A_self out. stretch: the least value of
    each map becomes 0.
    """
    own: dict[BlockKey, Seen] = {}
    words: dict[BlockKey, tuple[tuple[int, int], Tensor]] = {}

    def report(seen: Seen) -> None:
        if seen.kind == "self":
            own[seen.layer] = seen
        elif seen.keys.shape[1] > positions[-1]:
            words[seen.layer] = seen.grid, word_map(seen.queries, seen.keys, seen.heads, positions)

    def one_pass() -> Tensor:
        maps = []
        for grid in dict.fromkeys(grid for grid, _ in words.values()):
            queries_keys = [(s.queries, s.keys, s.heads) for s in own.values() if s.grid == grid]
            refined = refined_map(queries_keys, [one for g, one in words.values() if g == grid], alpha)
            maps.append(refined.unflatten(1, grid).cpu())
        return mean_map(maps)

    kinds = "self cross" if self_attention else "cross"
    noises = iter(draw_noises(seed, latent, draws * len(timesteps)))
    result = []
    with clean_forwards(watch_attention(model, layers, report, kinds), conditioning, latent) as forward:
        for timestep in timesteps:
            drawn = []
            for _ in range(draws):
                own.clear()
                words.clear()
                forward(timestep, next(noises))
                if not words or (self_attention and not own):
                    raise ValueError(BLIND)
                drawn.append(require_numbers(one_pass()))
            total = torch.stack(drawn).mean(0)
            total = total - total.amin() if stretch else total
            result.append(total / total.amax().clamp_min(torch.finfo(total.dtype).tiny))
    return torch.cat(result)


def require_numbers(found: Tensor) -> Tensor:
    """The map itself. Raises ValueError where the model's attention overflowed."""
    if not found.isfinite().all():
        raise ValueError(BROKEN)
    return found


def on_picture(maps: Tensor, height: int, width: int, multiple: int, mode: str = "bilinear") -> Tensor:
    """Maps of a picture that was padded right and below to the VAE's multiple, at the picture's own pixels."""
    padded = resize_map(maps, height + -height % multiple, width + -width % multiple, mode)
    return padded[:, :height, :width]
