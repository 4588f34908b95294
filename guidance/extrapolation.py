"""How a picture grows beyond its sides: strip by strip, gently first (Blended Diffusion, section on extrapolation)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

SIDES = ("left", "right", "top", "bottom")
STRIPS = 4
CELL = 8


@dataclass(frozen=True)
class Edit:
    """One edit at a side. Pixels, all counted inwards from the outermost one.

    added: how far the picture grows before it. masked: what it paints. window: what it sees. level: where it starts, 0
    to 1.
    """

    added: int
    masked: int
    window: int
    level: float


def plan_side(extent: int, width: int, first_level: float, last_level: float, clean_up: float) -> Iterator[Edit]:
    """The edits that grow one side by `width` pixels. extent: of the picture across that side, at least 8.

    Each strip is a quarter of the extent and sees three quarters of what is there; the start level rises from
    first_level to last_level over the four strips of an extent. Then these four, or what there is of them, are painted
    over from the low level clean_up (0: not), with one strip of what was there in sight.
    """
    strip = min(max(extent // STRIPS // CELL * CELL, CELL), extent - 1)
    number = fresh = 0
    while width > 0:
        added = min(strip, width)
        rise = number % STRIPS / (STRIPS - 1)
        yield Edit(added, added, max(extent, added + CELL), first_level + (last_level - first_level) * rise)
        number, width, fresh = number + 1, width - added, fresh + added
        if clean_up > 0 and (number % STRIPS == 0 or width == 0):
            yield Edit(0, fresh, fresh + strip, clean_up)
            fresh = 0


def grow(picture: Tensor, side: str, by: int) -> Tensor:
    """The picture (B, H, W, C) with `by` more pixels at a side, mirrored from it. by: less than the extent there."""
    edges = [by if side == name else 0 for name in SIDES]
    return pad(picture.movedim(-1, 1), edges, mode="reflect").movedim(1, -1)


def grow_mask(mask: Tensor, side: str, by: int) -> Tensor:
    """The mask (B, H, W) with `by` more pixels of 1 at a side."""
    return pad(mask, [by if side == name else 0 for name in SIDES], value=1.0)


def outermost(values: Tensor, side: str, count: int) -> Tensor:
    """A view of the `count` outermost pixels at a side. values: (B, H, W, ...)."""
    dim = 2 if side in ("left", "right") else 1
    count = min(count, values.shape[dim])
    return values.narrow(dim, 0 if side in ("left", "top") else values.shape[dim] - count, count)


def place_at(picture: Tensor, side: str, edit: Edit) -> Tensor:
    """The mask (1, H, W) of what the edit paints in its window `picture` (B, H, W, C)."""
    mask = torch.zeros(1, *picture.shape[1:3])
    outermost(mask, side, edit.masked).fill_(1)
    return mask
