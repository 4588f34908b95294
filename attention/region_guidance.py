"""Attention-based Region Guidance: h = SA(f) + CA(SA(f'), v), f' = tokens inside the mask (Spin, eq. 3-4)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

# A text is named by its place in a list; None is the text that a row of the batch brings along.
Text = int | None


def region_tokens(mask: Tensor, height: int, width: int) -> Tensor:
    """The feature-map tokens that belong to the region (eq. 3).

    mask: (H, W) in [0, 1], 1 inside. A token belongs if at least half of its area does; a region too small for any
    such token keeps every token it touches. Returns (n,) int64, row-major over (height, width); none for an empty mask.
    """
    share = adaptive_avg_pool2d(mask[None].float(), (height, width)).flatten()
    inside = share >= 0.5 if (share >= 0.5).any() else share > 0
    return inside.nonzero(as_tuple=True)[0]


@dataclass(frozen=True)
class Part:
    """Tokens (n,) int64 in some rows (r,) int64 of a batch, and the one text that acts on them.

    alone: their queries come from self-attention among themselves. shared: the block's own cross-attention serves them.
    share: (r, n, 1), one over the number of regions that overlap there.
    """

    rows: Tensor
    tokens: Tensor
    text: Text
    alone: bool = True
    shared: bool = False
    share: Tensor | None = None

    @property
    def index(self) -> tuple[Tensor, Tensor]:
        return self.rows[:, None], self.tokens

    def to(self, device: torch.device, dtype: torch.dtype) -> "Part":
        share = None if self.share is None else self.share.to(device, dtype)
        return Part(self.rows.to(device), self.tokens.to(device), self.text, self.alone, self.shared, share)


@dataclass(frozen=True)
class Layout:
    """What acts where in a batch. texts: for each row the text of the block's own cross-attention."""

    parts: tuple[Part, ...]
    texts: tuple[Text, ...]


def lay_out(regions: Iterable[Part], rows: int, tokens: int, outside: Mapping[int, Text]) -> Layout:
    """Divides a batch among its texts.

    regions: rows, tokens, text and alone of each. rows, tokens: the batch's size. outside: the text, by row, for the
    tokens of no region; on a row that is missing nothing acts there. The first text of a row goes through the block's
    own cross-attention; so does the same text again, wherever it does not overlap.
    """
    parts = [part for part in regions if len(part.tokens)]
    regions_at = torch.zeros(rows, tokens)
    for part in parts:
        regions_at[part.index] += 1
    parts += _outside(regions_at == 0, outside)
    first: dict[int, Text] = {}
    served = torch.zeros(rows, tokens, dtype=torch.bool)
    laid = []
    for part in parts:
        shared = all(first.setdefault(row, part.text) == part.text for row in part.rows.tolist())
        shared = shared and not served[part.index].any().item()
        served[part.index] |= shared
        share = 1 / regions_at[part.index].clamp(min=1)[..., None]
        laid.append(Part(part.rows, part.tokens, part.text, part.alone, shared, share))
    return Layout(tuple(laid), tuple(first.get(row) for row in range(rows)))


def _outside(free: Tensor, texts: Mapping[int, Text]) -> list[Part]:
    """The free tokens, (B, N) bool, of each row under its text; like rows are taken together."""
    alike: dict[tuple, list[int]] = {}
    for row, text in texts.items():
        if free[row].any():
            alike.setdefault((text, tuple(free[row].tolist())), []).append(row)
    return [
        Part(torch.tensor(rows), free[rows[0]].nonzero(as_tuple=True)[0], text, alone=False)
        for (text, _), rows in alike.items()
    ]


def attend_alone(
    part: Part,
    x: Tensor,
    attended: Tensor,
    self_attention: Callable[[Tensor, Tensor, Tensor], Tensor],
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """The part's tokens as if they had seen only each other: f' + SA(f'), (r, n, C).

    x: (B, N, C), features after the self-attention residual. attended: (B, N, C), the self-attention of all tokens.
    queries, keys, values: the inputs of self-attention; keys and values may have tokens beyond the N of the picture,
    which stay visible.
    """
    n = x.shape[1]
    visible = [torch.cat([t[part.index], t[part.rows, n:]], 1) for t in (keys, values)]
    return x[part.index] + (self_attention(queries[part.index], *visible) - attended[part.index])


def cross_attend(n: Tensor, parts: Sequence[Part], further: Callable[[int, Part], Tensor]) -> Tensor:
    """The cross-attention of every part, averaged where regions overlap, 0 where no text acts. (B, N, C)

    n: (B, N, C), output of the block's own cross-attention. further: that of a part which it does not serve, (r, n, C).
    """
    out = torch.zeros_like(n)
    for number, part in enumerate(parts):
        out[part.index] += part.share * (n[part.index] if part.shared else further(number, part))
    return out
