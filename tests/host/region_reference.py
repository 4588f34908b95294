"""A transformer block under region guidance, in float64 and from the formula: explicit softmax, one row at a time."""

import copy
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, layer_norm

# (tokens inside (N,) bool, text (L, C)) of each region, and the text of the rest, None for nothing.
Wanted = tuple[list[tuple[Tensor, Tensor]], Tensor | None]


def inside(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """mask: (H, W) of the very picture. Returns (N,) bool."""
    share = interpolate(mask[None, None], grid, mode="area").flatten()
    return share >= 0.5 if (share >= 0.5).any() else share > 0


def attend(layer: nn.Module, x: Tensor, context: Tensor) -> Tensor:
    def project(linear: nn.Module, t: Tensor) -> Tensor:
        return (t @ linear.weight.double().T).unflatten(-1, (layer.heads, -1)).transpose(0, 1)

    q, k, v = project(layer.to_q, x), project(layer.to_k, context), project(layer.to_v, context)
    weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1)
    out = (weights @ v).transpose(0, 1).flatten(1)
    return out @ layer.to_out[0].weight.double().T + layer.to_out[0].bias.double()


def norm(layer: nn.Module, x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], layer.weight.double(), layer.bias.double(), layer.eps)


def block_output(block: nn.Module, x: Tensor, wanted: Wanted, masked_output: bool = False) -> Tensor:
    """x: (N, C) float64."""
    regions, outside = wanted
    normed = norm(block.norm1, x)
    y = x + attend(block.attn1, normed, normed)
    crossed, count = torch.zeros_like(x), torch.zeros(len(x), 1, dtype=torch.float64)
    for tokens, text in regions:
        alone = y[tokens] if masked_output else x[tokens] + attend(block.attn1, normed[tokens], normed[tokens])
        crossed[tokens] += attend(block.attn2, norm(block.norm2, alone), text.double())
        count[tokens] += 1
    crossed /= count.clamp(min=1)
    free = count[:, 0] == 0
    if outside is not None and free.any():
        crossed[free] = attend(block.attn2, norm(block.norm2, y[free]), outside.double())
    y = y + crossed
    return y + copy.deepcopy(block.ff).double()(norm(block.norm3, y))


@contextmanager
def recorded(model):
    """A list that fills with (block, x, context, options, output) for every block that runs."""
    calls: list[tuple] = []

    def record(block, args, kwargs, output):
        calls.append((block, args[0], kwargs["context"], dict(kwargs["transformer_options"]), output))

    blocks = [m for m in model.model.diffusion_model.modules() if type(m).__name__ == "BasicTransformerBlock"]
    handles = [block.register_forward_hook(record, with_kwargs=True) for block in blocks]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def largest_error(calls: list[tuple], wanted: Callable[..., Wanted | None], masked_output: bool = False) -> float:
    """Over every row of every call, relative. wanted(index in cond_or_uncond, picture, grid, own text) or None."""
    worst = 0.0
    for block, x, context, options, output in calls:
        grid = tuple(options["activations_shape"][2:])
        indices = options["cond_or_uncond"]
        pictures = len(x) // len(indices)
        for row in range(len(x)):
            asked = wanted(indices[row // pictures], row % pictures, grid, context[row])
            if asked is None:
                continue
            with torch.no_grad():
                want = block_output(block, x[row].double(), asked, masked_output)
            worst = max(worst, ((output[row] - want).norm() / want.norm()).item())
    return worst
