"""Semantic-enhanced concept representation: in its box, the cross-attention of a concept (InstantSwap, eq. 12-13)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .boxes import Box, bounding_box, box_mask, boxes_per_image

# top, left, height, width in latent cells
Area = tuple[int, int, int, int]


def mask_boxes(mask: Tensor) -> list[Box]:
    """The box around each mask (B, H, W), inside where >= 0.5. Raises ValueError for an empty one."""
    return [bounding_box(one >= 0.5) for one in mask]


def single_boxes(boxes: Box | Sequence, count: int, height: int, width: int) -> list[Box]:
    """The one box of each of `count` pictures, in whole pixels and cut at the picture's edge.

    boxes: whatever a BOUNDING_BOX socket carries. Raises ValueError for a box outside the picture and for any other
    number of boxes than one.
    """
    lists = boxes_per_image(boxes, count)
    for number, one in enumerate(lists, 1):
        if not one:
            raise ValueError(f"There is no box for picture {number} of {count}. Draw one, or connect a mask alone.")
        if len(one) != 1:
            raise ValueError(
                f"There are {len(one)} boxes for one picture where one is needed. "
                "Choose one of them, or work on them one after another."
            )
    return [bounding_box(box_mask(one, height, width) > 0) for one in lists]


def cell_mask(
    boxes: Sequence[Box], size: tuple[int, int], grid: tuple[int, int], latent: tuple[int, int], area: Area
) -> Tensor:
    """(len(boxes), h, w) bool, True on the cells of the grid (h, w) that a box touches.

    boxes: in pixels of a picture of size (H, W). latent: (h, w) of the whole latent. area: the part of it that the grid
    covers. Starts round down and ends up, so that a box inside the area has at least one cell.
    """
    rows, columns = (
        [
            _span(box[start], box[length], size[axis], grid[axis], latent[axis], area[axis], area[axis + 2])
            for box in boxes
        ]
        for axis, (start, length) in enumerate((("y", "height"), ("x", "width")))
    )
    mask = torch.zeros(len(boxes), *grid, dtype=torch.bool)
    for one, row, column in zip(mask, rows, columns, strict=True):
        one[row, column] = True
    return mask


def _span(start: int, length: int, pixels: int, cells: int, latent: int, offset: int, extent: int) -> slice:
    """One side of a box, in integers: start and end on an axis of `cells` that covers offset..offset + extent."""
    ends = [(edge * latent - offset * pixels) * cells for edge in (start, start + length)]
    unit = pixels * extent
    return slice(max(0, ends[0] // unit), max(0, -(-ends[1] // unit)))


def insert_concept(attended: Tensor, concept: Tensor, tokens: Tensor, inside: Tensor) -> Tensor:
    """The block's cross-attention output with the concept's in place of it inside the box.

    attended: (R, N, C). concept: (R, n, C), the output for the queries `tokens`, (n,) int64. inside: (R, N) bool.
    """
    return attended.index_copy(1, tokens, torch.where(inside[:, tokens, None], concept, attended[:, tokens]))
