"""Where a word acts: cross-attention to it, spread along self-attention (InstantSwap, eq. 7-8)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .saliency import BUDGET, attention_rows


def word_map(queries: Tensor, keys: Tensor, heads: int, positions: Sequence[int], budget: int = BUDGET) -> Tensor:
    """A_cross of a word: the share of each place's attention that its tokens get, mean over heads and tokens, (B, N).

    queries: (B, N, heads * d), the picture's. keys: (B, L, heads * d), the text's. positions: the word's tokens.
    """
    columns = [weights[..., list(positions)].mean(-1) for _, weights in attention_rows(queries, keys, heads, budget)]
    return torch.cat(columns, 1)


def spread(queries: Tensor, keys: Tensor, heads: int, values: Tensor, budget: int = BUDGET) -> Tensor:
    """A_self V with A_self the mean over heads: attention whose values are the map itself. values: (B, N) -> (B, N)."""
    columns = [(weights @ values[..., None])[..., 0] for _, weights in attention_rows(queries, keys, heads, budget)]
    return torch.cat(columns, 1)


def refined_map(
    self_attention: Sequence[tuple[Tensor, Tensor, int]], cross_maps: Sequence[Tensor], alpha: float
) -> Tensor:
    """A_self (A_cross)^alpha of eq. 8, both the mean over layers of one grid, divided by its greatest value, (B, N).

    self_attention: (queries, keys, heads) per layer; none leaves A_self out. cross_maps: (B, N) per layer.
    """
    powered = torch.stack(list(cross_maps)).mean(0) ** alpha
    # The power may be tiny: at its own scale the products keep their precision.
    powered = powered / powered.amax(1, keepdim=True).clamp_min(torch.finfo(powered.dtype).tiny)
    if self_attention:
        powered = torch.stack([spread(q, k, heads, powered) for q, k, heads in self_attention]).mean(0)
    return powered / powered.amax(1, keepdim=True).clamp_min(torch.finfo(powered.dtype).tiny)
