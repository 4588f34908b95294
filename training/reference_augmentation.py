"""The subject's crop as other photos might show it: mirrored, turned, out of focus."""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, pad

FLIP_SHARE, TURN_SHARE, BLUR_SHARE = 0.5, 0.5, 0.3
TURN = 20.0
BLURS = (3, 5, 7)


def augment_reference(crop: Tensor, generator: torch.Generator) -> Tensor:
    """One crop (3, S, S) in [0, 1]: mirrored in half of all draws, turned by up to 20 degrees in half of them, and
    blurred over 3, 5 or 7 pixels in three of ten. What turns into view repeats the crop's border.
    """
    flip, turn, blur, angle = torch.rand(4, generator=generator).tolist()
    width = BLURS[int(torch.randint(len(BLURS), (), generator=generator))]
    if flip < FLIP_SHARE:
        crop = crop.flip(-1)
    if turn < TURN_SHARE:
        crop = _turned(crop, math.radians((2 * angle - 1) * TURN))
    if blur < BLUR_SHARE:
        crop = avg_pool2d(pad(crop[None], [width // 2] * 4, mode="reflect"), width, stride=1)[0]
    return crop


def _turned(crop: Tensor, angle: float) -> Tensor:
    cosine, sine = math.cos(angle), math.sin(angle)
    theta = torch.tensor([[[cosine, -sine, 0.0], [sine, cosine, 0.0]]])
    grid = affine_grid(theta, [1, *crop.shape], align_corners=False)
    return grid_sample(crop[None], grid, padding_mode="border", align_corners=False)[0]
