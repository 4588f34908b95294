"""Holes larger and rounder than the subject's box, so that a model learns to fill more than it has seen filled.

Paint-by-Example's recipe, which image-guided inpainting takes over: the box grows on each side, half of the holes
are bounded by four quadratic Bezier curves, and a square around the hole is cut out at random.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..guidance.crops import Square

MASKS = ("none", "grown", "bezier", "paper")
GROWTH, INSET = 0.4, 0.6
CURVE_SHARE = 0.5
CURVE_POINTS, CURVE_STEP, JITTER = 18, 0.05, 5


@dataclass(frozen=True)
class Sides:
    """A box by its sides in pixels, half-open."""

    left: int
    top: int
    right: int
    bottom: int


def grow_sides(box: Sides, height: int, width: int, generator: torch.Generator) -> Sides:
    """Each side moved out by a whole number of pixels from 0 to 0.4 of the room that it has."""
    rooms = (box.left, box.top, width - box.right, height - box.bottom)
    left, top, right, bottom = (_below(int(GROWTH * room) + 1, generator) for room in rooms)
    return Sides(box.left - left, box.top - top, box.right + right, box.bottom + bottom)


def curve_points(box: Sides, grown: Sides, generator: torch.Generator, jitter: int = JITTER) -> Tensor:
    """(72, 2) x and y along four Bezier curves between the box's corners, whose controls lie on the grown sides.

    18 points a curve at 0.05, 0.10 ... 0.90, each moved by up to `jitter` pixels along both axes.
    """
    middle_x, middle_y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    corners = [(box.left, box.top), (box.right, box.top), (box.right, box.bottom), (box.left, box.bottom)]
    controls = [(middle_x, grown.top), (grown.right, middle_y), (middle_x, grown.bottom), (grown.left, middle_y)]
    u = (torch.arange(1, CURVE_POINTS + 1) * CURVE_STEP)[:, None]
    curves = []
    for number, control in enumerate(controls):
        start, middle, end = (
            torch.tensor(point, dtype=torch.float32) for point in (corners[number], control, corners[(number + 1) % 4])
        )
        curves.append((1 - u) ** 2 * start + 2 * u * (1 - u) * middle + u**2 * end)
    points = torch.cat(curves)
    return points + torch.randint(-jitter, jitter + 1, points.shape, generator=generator)


def fill_polygon(points: Tensor, height: int, width: int) -> Tensor:
    """(height, width), 1 on pixels whose centres lie inside by the even-odd rule. points: (n, 2) x and y, closed."""
    y = torch.arange(height) + 0.5
    x = torch.arange(width) + 0.5
    inside = torch.zeros(height, width, dtype=torch.bool)
    for (x0, y0), (x1, y1) in zip(points.tolist(), points.roll(-1, 0).tolist(), strict=True):
        crossed = (y0 <= y) != (y1 <= y)
        if crossed.any():
            at = x0 + (y[crossed] - y0) * (x1 - x0) / (y1 - y0)
            inside[crossed] ^= x[None] < at[:, None]
    return inside.float()


def fill_box(box: Sides, height: int, width: int) -> Tensor:
    """(height, width), 1 inside the box."""
    mask = torch.zeros(height, width)
    mask[box.top : box.bottom, box.left : box.right] = 1
    return mask


def draw_hole(box: Sides, height: int, width: int, kind: str, generator: torch.Generator) -> tuple[Tensor, Sides]:
    """The hole (height, width) and the box around it. kind: none, grown, bezier or paper (one of these two, evenly)."""
    if kind == "none":
        return fill_box(box, height, width), box
    grown = grow_sides(box, height, width, generator)
    curved = kind == "bezier" or (kind == "paper" and float(torch.rand((), generator=generator)) < CURVE_SHARE)
    if not curved:
        return fill_box(grown, height, width), grown
    # Five pixels are meant for photos; in a picture of 128 they would uncover the subject.
    jitter = min(JITTER, max(1, min(height, width) // 100))
    return fill_polygon(curve_points(box, grown, generator, jitter), height, width), grown


def draw_square(hole: Sides | None, height: int, width: int, generator: torch.Generator | None) -> Square:
    """(left, top, side) of a square of the picture that holds the hole's box; without a generator centred on it.

    At random it lies anywhere along the picture's longer side and is then inset by up to 0.6 of the least room around
    the box. A box that no square of the picture holds gets a larger one, centred, which reaches beyond the picture.
    Without a box it is the largest of the picture's squares, inset by nothing.
    """
    side = min(height, width)
    if hole is None:
        first = _place(width // 2, width // 2, side, width, generator)
        return first, _place(height // 2, height // 2, side, height, generator), side
    longest = max(hole.right - hole.left, hole.bottom - hole.top)
    if longest > side:
        return (hole.left + hole.right - longest) // 2, (hole.top + hole.bottom - longest) // 2, longest
    left = _place(hole.left, hole.right, side, width, generator)
    top = _place(hole.top, hole.bottom, side, height, generator)
    if generator is None:
        return left, top, side
    room = min(hole.left - left, hole.top - top, left + side - hole.right, top + side - hole.bottom)
    inset = _below(int(INSET * room) + 1, generator)
    return left + inset, top + inset, side - 2 * inset


def _place(start: int, end: int, side: int, size: int, generator: torch.Generator | None) -> int:
    first, last = max(0, end - side), min(start, size - side)
    if generator is None:
        return min(max((start + end - side) // 2, first), last)
    return first + _below(last - first + 1, generator)


def _below(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (), generator=generator))
