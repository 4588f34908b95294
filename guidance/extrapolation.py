"""How a picture grows beyond its sides: strip by strip, gently first (Blended Diffusion, section on extrapolation)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

SIDES = ("left", "right", "top", "bottom")
STRIPS = 4
CELL = 8
BAND, SMOOTH = 4, 17
LOOK = 8
LARGEST_MATCH = 0.15


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
    mask = picture.new_zeros(1, *picture.shape[1:3])
    outermost(mask, side, edit.masked).fill_(1)
    return mask


def match_seam(painted: Tensor, window: Tensor, side: str, masked: int) -> Tensor:
    """The painted window with its colours led up to those that the window has just inside the seam.

    painted, window: (B, H, W, C). masked: pixels at the side that are painted. What differs between the BAND pixels on
    both sides of the seam, smoothed along it and at most LARGEST_MATCH, is added at the seam and fades towards the far
    edge. Nothing changes outside the painted pixels.
    """
    old, new = _towards(window, side), _towards(painted, side).clone()
    seam = new.shape[1] - masked
    band = min(BAND, masked, seam)
    jump = _smoothed(old[:, seam - band : seam].mean(1) - new[:, seam : seam + band].mean(1), SMOOTH)
    far = (torch.arange(masked, dtype=new.dtype, device=new.device) + 0.5) / masked
    fade = 1 - far * far * (3 - 2 * far)
    new[:, seam:] += fade[:, None, None] * jump.clamp(-LARGEST_MATCH, LARGEST_MATCH)[:, None]
    return _towards(new, side, back=True).clamp(0, 1)


def seam_step(picture: Tensor, new: Tensor) -> Tensor:
    """How much the colours on the two sides of the seam differ, in 255ths, (B,).

    picture: (B, H, W, C) in [0, 1]. new: (B, H, W), 1 around the original. Compared are mean colours over LOOK pixels
    across and twice that along: a soft edge counts like a hard one, and fine texture does not count.
    """
    top, left = (int((new[0] == 0).any(dim).nonzero()[0]) for dim in (1, 0))
    height, width = (int((new[0] == 0).any(dim).sum()) for dim in (1, 0))
    found, along = picture.new_zeros(len(picture)), 0
    for side in SIDES:
        part = picture[:, top : top + height] if side in ("left", "right") else picture[:, :, left : left + width]
        grown = _towards(part, side)
        size = width if side in ("left", "right") else height
        before = {"left": grown.shape[1] - left, "top": grown.shape[1] - top, "right": left + width}
        seam = before.get(side, top + height)
        look = min(LOOK, size, grown.shape[1] - seam)
        if look > 0:
            bands = grown[:, seam : seam + look], grown[:, seam - look : seam]
            outside, inside = (_smoothed(band.mean(1), 2 * LOOK + 1) for band in bands)
            found = found + (outside - inside).abs().mean(-1).sum(1)
            along += grown.shape[2]
    return 255 * found / max(along, 1)


def _towards(values: Tensor, side: str, back: bool = False) -> Tensor:
    """(B, H, W, C) as (B, across the side, along it, C) with the side at the end; or that way back."""
    across = 2 if side in ("left", "right") else 1
    values = values if back else values.movedim(across, 1)
    values = values.flip(1) if side in ("left", "top") else values
    return values.movedim(1, across) if back else values


def _smoothed(line: Tensor, size: int) -> Tensor:
    """(B, along, C) smoothed along by two running means of `size`, an odd number."""
    for _ in range(2):
        line = avg_pool1d(line.mT, size, 1, size // 2, count_include_pad=False).mT
    return line
