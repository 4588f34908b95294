"""Windows of latents around a mask: what is far from it need not be decoded for what is looked at inside it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .background import mask_cells

# What normalises over all that it decodes wants to see more of a larger picture.
MARGIN, SHARE = 2, 8


class Window(NamedTuple):
    """A part of a latent, in cells."""

    top: int
    left: int
    height: int
    width: int


def window_around(cells: Tensor) -> Window:
    """The cells (h, w) that are not 0, and on each side, as far as there are any, an eighth of all and MARGIN at least.

    Not all cells may be 0.
    """
    spans = []
    for dim in (1, 0):
        touched, size = (cells > 0).any(dim).nonzero()[:, 0], cells.shape[1 - dim]
        margin = max(MARGIN, size // SHARE)
        first = max(int(touched[0]) - margin, 0)
        spans.append((first, min(int(touched[-1]) + 1 + margin, size) - first))
    (top, height), (left, width) = spans
    return Window(top, left, height, width)


def decode_windows(decode: Callable[[Tensor], Tensor], latent: Tensor, mask: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) of latents (B, C, h, w), decoded around the masks only and 0 elsewhere. Differentiable.

    mask: (M, H, W), nowhere empty, repeated in turn as the rows are; rows of one mask are decoded together, so that no
    row's picture depends on another one's mask. A decoder that normalises over all that it decodes, or sees further
    than MARGIN cells, shows the window a little differently than within the whole.
    """
    height, width = latent.shape[-2:]
    pictures: list[Tensor] = [latent] * len(latent)
    for first, cells in enumerate(mask_cells(mask, height, width)[:, 0]):
        top, left, high, wide = window_around(cells)
        shown = decode(latent[first :: len(mask), :, top : top + high, left : left + wide])
        cell = shown.shape[-1] // wide
        edges = (left, width - wide - left, top, height - high - top)
        pictures[first :: len(mask)] = pad(shown, [cell * edge for edge in edges])
    return torch.stack(pictures)


def window_share(mask: Tensor, height: int, width: int) -> float:
    """The share of a latent's height x width cells that decode_windows decodes, mean of the masks (M, H, W)."""
    windows = [window_around(cells) for cells in mask_cells(mask, height, width)[:, 0]]
    return sum(one.height * one.width for one in windows) / (len(windows) * height * width)
