"""Where things stand in generated pictures, which come without truth. No network is asked."""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from ..demo.render import render
from ..demo.scenes import SIZE, Scenes, draw_scenes

CELL = 8
EMPTY_SEEDS = range(60_000_000, 60_000_012)
ROWS_APART = 3
LEAST_SHARE = 0.3
SIDES = {1: 84.0, 2: 66.0}


def find_things(image: Tensor, scenes: Scenes, count: int) -> Tensor:
    """Boxes (B, count, 4) x, y, w, h around what looks unlike an empty place of the scenes' style and background.

    image: (B, SIZE, SIZE, 3). count: 1, or 2 for one thing in the left and one in the right half. Boxes have one fixed
    size that suits every thing of such scenes. A picture of another place than asked for misleads it, to its harm.
    """
    strangeness = interpolate(_strangeness(image, scenes)[:, None], (SIZE, SIZE), mode="bilinear")[:, 0]
    width = SIZE // count
    boxes = []
    for half in strangeness.split(width, dim=2):
        strange = (half > LEAST_SHARE * half.amax((1, 2), keepdim=True)).float()
        total = strange.sum((1, 2)).clamp(min=1)
        x = (strange.sum(1) * (torch.arange(width) + 0.5)).sum(1) / total + width * len(boxes)
        y = (strange.sum(2) * (torch.arange(SIZE) + 0.5)).sum(1) / total
        side = torch.full_like(x, SIDES[count])
        boxes.append(torch.stack([x - side / 2, y - side / 2, side, side], 1))
    return torch.stack(boxes, 1)


def _strangeness(image: Tensor, scenes: Scenes) -> Tensor:
    """Of each cell: the distance to the nearest cell of empty places at about the same height, (B, h, w)."""
    cells = _cells(image)
    found = torch.zeros(cells.shape[:3])
    for picture in range(len(image)):
        empty = _empty_cells(int(scenes.style[picture]), int(scenes.background[picture]))
        for row in range(cells.shape[1]):
            near = empty[:, max(0, row - ROWS_APART) : row + ROWS_APART + 1].flatten(0, 2)
            found[picture, row] = torch.cdist(cells[picture, row], near).amin(1)
    return found


def _cells(image: Tensor) -> Tensor:
    """Mean colour and deviation around the middle of each cell, (B, h, w, 4)."""
    pixels = image.movedim(-1, 1)
    mean, square = (avg_pool2d(x, CELL + 1, 1, CELL // 2, count_include_pad=False) for x in (pixels, pixels.square()))
    deviation = (square - mean.square()).clamp(min=0).sqrt().mean(1, keepdim=True)
    return torch.cat([mean, deviation], 1)[..., CELL // 2 :: CELL, CELL // 2 :: CELL].movedim(1, -1)


@cache
def _empty_cells(style: int, background: int) -> Tensor:
    places = draw_scenes(EMPTY_SEEDS, style=style, background=background, objects=0)
    return _cells(render(places).image)
