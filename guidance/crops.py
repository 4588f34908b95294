"""Square cut-outs of pictures, in whole pixels. What lies beyond the picture repeats its border."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import interpolate, pad

Square = tuple[int, int, int]


def square_around(box: Mapping[str, float], margin: float) -> Square:
    """(left, top, side) of the square around a box's centre, `margin` times the box's longer side."""
    side = max(1, round(max(box["width"], box["height"]) * margin))
    left = round(box["x"] + box["width"] / 2 - side / 2)
    top = round(box["y"] + box["height"] / 2 - side / 2)
    return left, top, side


def crop_square(pictures: Tensor, square: Square, size: int, mode: str = "bicubic") -> Tensor:
    """The square of pictures (B, C, H, W) at size x size. mode: bicubic, or nearest-exact for masks."""
    left, top, side = square
    height, width = pictures.shape[-2:]
    before_x, before_y = max(0, -left), max(0, -top)
    after_x, after_y = max(0, left + side - width), max(0, top + side - height)
    if before_x or before_y or after_x or after_y:
        pictures = pad(pictures, (before_x, after_x, before_y, after_y), mode="replicate")
    left, top = left + before_x, top + before_y
    cut = pictures[..., top : top + side, left : left + side]
    if side == size:
        return cut
    if mode == "bicubic":
        return interpolate(cut, (size, size), mode=mode, antialias=True).clamp(0, 1)
    return interpolate(cut, (size, size), mode=mode)
