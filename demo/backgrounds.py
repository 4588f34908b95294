"""The places of the demo world, before any style."""

import torch
from torch import Tensor

from .vocabulary import BACKGROUNDS


def mix(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """share of the second in the first, broadcasting."""
    return first + (second - first) * share


def smooth_step(low: float, high: float, value: Tensor) -> Tensor:
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _rgb(like: Tensor, *values: float) -> Tensor:
    return torch.tensor(values, device=like.device).view(1, 3, 1, 1)


def _land(x: Tensor, y: Tensor, layout: Tensor, noise: Tensor, amount: float) -> Tensor:
    """How far a pixel lies below a wavy horizon, in pictures' heights."""
    horizon = 0.30 + 0.25 * layout[:, 0]
    wave = 0.03 * torch.sin(2 * torch.pi * (x * (1 + layout[:, 1]) + layout[:, 2]))
    return y - horizon - amount * (wave + 0.05 * noise[:, 0:1])


def _meadow(x: Tensor, y: Tensor, layout: Tensor, noise: Tensor) -> Tensor:
    sky = mix(_rgb(x, 0.45, 0.70, 0.95), _rgb(x, 0.80, 0.90, 0.98), y * 1.8)
    grass = mix(_rgb(x, 0.30, 0.58, 0.20), _rgb(x, 0.48, 0.72, 0.26), 0.5 + 0.5 * noise[:, 1:2])
    return mix(sky, grass, smooth_step(-0.01, 0.01, _land(x, y, layout, noise, 1.0)))


def _beach(x: Tensor, y: Tensor, layout: Tensor, noise: Tensor) -> Tensor:
    sky = mix(_rgb(x, 0.62, 0.84, 0.95), _rgb(x, 0.90, 0.95, 0.95), y * 2.5)
    swell = torch.sin(2 * torch.pi * (7 * y + 0.5 * noise[:, 1:2] + layout[:, 3]))
    sea = mix(_rgb(x, 0.10, 0.50, 0.62), _rgb(x, 0.22, 0.66, 0.74), 0.5 + 0.5 * swell)
    sand = mix(_rgb(x, 0.86, 0.74, 0.50), _rgb(x, 0.94, 0.85, 0.64), 0.5 + 0.5 * noise[:, 2:3])
    depth = _land(x, y, layout, noise, 0.0)
    shore = 0.16 + 0.12 * layout[:, 4] + 0.04 * noise[:, 0:1]
    return mix(mix(sky, sea, smooth_step(-0.01, 0.01, depth)), sand, smooth_step(-0.012, 0.012, depth - shore))


def _night(x: Tensor, y: Tensor, layout: Tensor, noise: Tensor) -> Tensor:
    sky = mix(_rgb(x, 0.03, 0.04, 0.16), _rgb(x, 0.14, 0.12, 0.34), y + 0.15 * noise[:, 0:1])
    stars = torch.zeros_like(y)
    for star in range(6):
        sx, sy = layout[:, star], layout[:, star + 6]
        stars = stars + torch.exp(-((x - sx) ** 2 + (y - sy) ** 2) / (2 * 0.012**2))
    return mix(sky, _rgb(x, 1.0, 0.97, 0.80), stars.clamp(0, 1))


def _bricks(x: Tensor, y: Tensor, layout: Tensor, noise: Tensor) -> Tensor:
    rows = y * 6 + layout[:, 0]
    row = torch.floor(rows)
    columns = x * 3.2 + 0.5 * torch.remainder(row, 2) + layout[:, 1]
    away = torch.minimum((rows - row - 0.5).abs() * -1 + 0.5, (torch.remainder(columns, 1) - 0.5).abs() * -1 + 0.5)
    tone = 0.5 + 0.5 * torch.sin(12.9 * row + 78.2 * torch.floor(columns))
    brick = mix(_rgb(x, 0.55, 0.24, 0.18), _rgb(x, 0.70, 0.36, 0.26), 0.7 * tone + 0.15 + 0.15 * noise[:, 0:1])
    mortar = _rgb(x, 0.76, 0.72, 0.66) + torch.zeros_like(brick)
    return mix(mortar, brick, smooth_step(0.05, 0.13, away))


def _snow(x: Tensor, y: Tensor, layout: Tensor, noise: Tensor) -> Tensor:
    sky = mix(_rgb(x, 0.58, 0.64, 0.74), _rgb(x, 0.78, 0.82, 0.88), y * 2)
    snow = mix(_rgb(x, 0.80, 0.86, 0.94), _rgb(x, 0.97, 0.98, 1.00), 0.5 + 0.5 * noise[:, 1:2])
    hills = smooth_step(-0.01, 0.01, _land(x, y, layout, noise, 2.0))
    flakes = torch.zeros_like(y)
    for flake in range(6):
        fx, fy = layout[:, flake], layout[:, flake + 6]
        flakes = flakes + torch.exp(-((x - fx) ** 2 + (y - fy) ** 2) / (2 * 0.014**2))
    return mix(mix(sky, snow, hills), _rgb(x, 1.0, 1.0, 1.0), flakes.clamp(0, 1))


def _wood(x: Tensor, y: Tensor, layout: Tensor, noise: Tensor) -> Tensor:
    planks = y * 4 + layout[:, 0]
    plank = torch.floor(planks)
    tone = 0.5 + 0.5 * torch.sin(41.3 * plank + 6.3 * layout[:, 1])
    grain = torch.sin(2 * torch.pi * (2.0 * planks + 0.9 * noise[:, 0:1] + 1.5 * x))
    board = mix(_rgb(x, 0.50, 0.33, 0.17), _rgb(x, 0.68, 0.48, 0.28), 0.55 * tone + 0.25 + 0.2 * grain)
    gap = 0.5 - (planks - plank - 0.5).abs()
    return mix(_rgb(x, 0.25, 0.15, 0.08) + torch.zeros_like(board), board, smooth_step(0.02, 0.09, gap))


_PAINTERS = {
    "meadow": _meadow,
    "beach": _beach,
    "night": _night,
    "bricks": _bricks,
    "snow": _snow,
    "wood": _wood,
}


def paint_backgrounds(background: Tensor, layout: Tensor, noise: Tensor) -> Tensor:
    """background: (B,) indices. layout: (B, 16) in [0, 1]. noise: (B, 3, H, W) in [-1, 1]. Returns (B, 3, H, W)."""
    height, width = noise.shape[-2:]
    y = ((torch.arange(height, device=noise.device) + 0.5) / height).view(1, 1, -1, 1)
    x = ((torch.arange(width, device=noise.device) + 0.5) / width).view(1, 1, 1, -1)
    picture = torch.empty_like(noise)
    choices = layout.view(*layout.shape, 1, 1, 1)
    for index, name in enumerate(BACKGROUNDS):
        rows = (background == index).nonzero(as_tuple=True)[0]
        if len(rows):
            # One row a scene in every tensor, so that all painters broadcast alike.
            grid = (len(rows), 1, height, width)
            picture[rows] = _PAINTERS[name](x.expand(grid), y.expand(grid), choices[rows], noise[rows])
    return picture
