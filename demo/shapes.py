"""Signed distances of the demo world's shapes, all inside the unit circle, negative inside."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .vocabulary import SHAPES


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.92


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.74


def _polygon_edge(x: Tensor, y: Tensor, angle: float, distance: float) -> Tensor:
    return x * math.cos(angle) + y * math.sin(angle) - distance


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    edges = [_polygon_edge(x, y - 0.12, math.pi / 2 + k * 2 * math.pi / 3, 0.5) for k in range(3)]
    return torch.stack(edges).amax(0)


def _star(x: Tensor, y: Tensor) -> Tensor:
    # Five points: fold the plane into one wedge, whose edge runs from tip to notch.
    sector = 2 * math.pi / 5
    angle = torch.atan2(x, -y)
    folded = (torch.remainder(angle + sector / 2, sector) - sector / 2).abs()
    radius = torch.hypot(x, y)
    px, py = radius * torch.cos(folded), radius * torch.sin(folded)
    tip, notch = 1.0, (0.46 * math.cos(sector / 2), 0.46 * math.sin(sector / 2))
    ex, ey = notch[0] - tip, notch[1]
    length = math.hypot(ex, ey)
    return ((px - tip) * ey - py * ex) / length


def _heart(x: Tensor, y: Tensor) -> Tensor:
    # Two lobes and the square on its corner that touches both.
    x, y = x.abs(), y + 0.05
    lobe = torch.hypot(x - 0.40, y + 0.30) - 0.46
    corner = (x + y) / math.sqrt(2) - 0.63
    flank = torch.maximum(corner, (-y - 0.30 + 0.0 * x))
    inner = torch.maximum(flank, x - 0.86)
    return torch.minimum(lobe, inner)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    long, short = torch.maximum(x, y), torch.minimum(x, y)
    return torch.maximum(long - 0.90, short - 0.28)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.68).abs() - 0.24


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    return (x.abs() * 0.96 + y.abs() * 0.62 - 0.60) / math.hypot(0.96, 0.62)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "diamond": _diamond,
}


def signed_distance(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """shape: (B,) indices into SHAPES. x, y: (B, H, W) in the shape's own frame. Returns (B, H, W)."""
    distance = torch.empty_like(x)
    for index, name in enumerate(SHAPES):
        rows = (shape == index).nonzero(as_tuple=True)[0]
        if len(rows):
            distance[rows] = DISTANCES[name](x[rows], y[rows])
    return distance
