"""What CLIP is shown of a masked picture: the place alone, on grey (Blended Diffusion's x * m, 0 being mid-grey)."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

GREY = 0.5


def grey_outside(pictures: Tensor, mask: Tensor) -> Tensor:
    """pictures: (B, 3, H, W) in [0, 1]. mask: (B or 1, H, W), 1 inside."""
    return GREY + (pictures - GREY) * mask[:, None]


def square_box(mask: Tensor, margin: float = 0.1) -> tuple[int, int, int]:
    """(top, left, side) of the square around what the mask (H, W) touches, its longer side grown by the margin.

    It may reach beyond the picture. The mask must not be empty.
    """
    rows, columns = (mask.any(dim).nonzero()[:, 0] for dim in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
    side = round(max(height, width) * (1 + margin)) or 1
    return top - (side - height) // 2, left - (side - width) // 2, side


def cut_square(picture: Tensor, box: tuple[int, int, int], fill: float) -> Tensor:
    """(C, side, side) of a picture (C, H, W); what lies beyond it has the value `fill`. Differentiable."""
    top, left, side = box
    height, width = picture.shape[-2:]
    inside = picture[:, max(top, 0) : top + side, max(left, 0) : left + side]
    edges = (max(-left, 0), max(left + side - width, 0), max(-top, 0), max(top + side - height, 0))
    return pad(inside, edges, value=fill)


def cut_out(pictures: Tensor, mask: Tensor, size: int, outside: str = "grey") -> Tensor:
    """The square around each mask at one size, (B, 3, size, size). Differentiable.

    pictures: (B, 3, H, W) in [0, 1]. mask: (B or 1, H, W), nowhere empty. outside: `grey` shows the place alone, `keep`
    what surrounds it within the square too.
    """
    mask = mask.expand(len(pictures), -1, -1)
    shown = grey_outside(pictures, mask) if outside == "grey" else pictures
    parts = [
        interpolate(cut_square(one, square_box(its), GREY)[None], (size, size), mode="bicubic", antialias=True)
        for one, its in zip(shown, mask, strict=True)
    ]
    return torch.cat(parts)


def masked_view(pictures: Tensor, mask: Tensor, size: int, view: str) -> Tensor:
    """The picture and its mask as fourth channel, (B, 4, size, size), for warping both alike. Differentiable.

    pictures: (B, 3, H, W) in [0, 1]. mask: (B or 1, H, W). view: `masked` squeezes the whole picture into the square,
    `crop` takes the square around the mask, where a small place fills CLIP's input.
    """
    mask = mask.expand(len(pictures), -1, -1)
    if view == "masked":
        return torch.cat([_resized(pictures, size, "bicubic"), _resized(mask[:, None], size, "bilinear")], 1)
    parts = []
    for one, its in zip(pictures, mask, strict=True):
        box = square_box(its)
        picture = _resized(cut_square(one, box, GREY)[None], size, "bicubic")
        parts.append(torch.cat([picture, _resized(cut_square(its[None], box, 0.0)[None], size, "bilinear")], 1))
    return torch.cat(parts)


def _resized(x: Tensor, size: int, mode: str) -> Tensor:
    return interpolate(x, (size, size), mode=mode, antialias=True)
