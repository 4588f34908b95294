"""What self-attention finds salient: the attention that each token receives from all (Spin, section 3.2)."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# Attention weights held at a time, all heads together: 64 MB in fp32.
BUDGET = 1 << 24


def attention_rows(queries: Tensor, keys: Tensor, heads: int, budget: int = BUDGET) -> Iterator[tuple[slice, Tensor]]:
    """Rows of softmax(Q K^T / sqrt(d)), averaged over heads, a few queries at a time.

    queries: (B, N, heads * d). keys: (B, M, heads * d). Yields the rows' slice of N and their weights (B, n, M), fp32;
    each row sums to 1. Never holds more than about `budget` weights, and never (heads, N, M) where that is more.
    """
    q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2).float() for t in (queries, keys))
    batch, _, count, width = q.shape
    step = max(1, budget // (batch * heads * k.shape[2]))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        logits = q[:, :, rows] @ k.transpose(-1, -2) * width**-0.5
        yield rows, logits.softmax(-1).mean(1)


def column_sums(queries: Tensor, keys: Tensor, heads: int, budget: int = BUDGET) -> Tensor:
    """O_j = sum_i mean_h A[h, i, j], (B, M): above its mean, N / M, a token receives more than its share.

    Arguments as for attention_rows. For self-attention the mean is exactly 1.
    """
    return sum(weights.sum(1) for _, weights in attention_rows(queries, keys, heads, budget))


def standardised(maps: Tensor) -> Tensor:
    """Maps (B, h, w) in standard deviations from their mean. A flat map is 0 everywhere."""
    centred = maps - maps.mean((1, 2), keepdim=True)
    deviation = centred.square().mean((1, 2), keepdim=True).sqrt()
    return centred / deviation.clamp_min(torch.finfo(maps.dtype).eps)


def oriented(maps: Tensor) -> Tensor:
    """Maps (B, h, w) in standard deviations from their mean, turned so that the picture's border lies below it.

    On some layers objects receive more attention than their surroundings and on others less. An object is what
    touches the border least, so no layer's sign has to be known.
    """
    edge = torch.ones_like(maps[0], dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    maps = standardised(maps)
    return maps * torch.where(maps[:, edge].mean(1) > 0, -1.0, 1.0)[:, None, None]


def mean_map(maps: list[Tensor]) -> Tensor:
    """The average of maps (B, h_i, w_i) on the finest of their grids."""
    finest = max((one.shape[-2:] for one in maps), key=lambda size: size[0] * size[1])
    return torch.stack([resize_map(one, *finest) for one in maps]).mean(0)


def resize_map(maps: Tensor, height: int, width: int, mode: str = "bilinear") -> Tensor:
    """(B, h, w) to (B, height, width). Values keep their level: they are not rescaled by the areas' ratio."""
    if maps.shape[-2:] == (height, width):
        return maps
    return interpolate(maps[:, None], (height, width), mode=mode, align_corners=False)[:, 0]


def soften(maps: Tensor, threshold: float) -> Tensor:
    """Maps of any level in [0, 1]: 0.5 at the threshold (above 0), 1 from twice the threshold, 0 below 0."""
    return (maps / (2 * threshold)).clamp(0, 1)
