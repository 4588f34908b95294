"""Measures of painted pictures, one value each: (B, H, W, 3) in [0, 1] and masks (B, H, W), 1 = painted, to (B,)."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ..guidance import metrics
from ..guidance.masks import dilate, erode

OBJECT_STEP = 0.14
LEAST_OBJECT = 0.03
CUT_SHARE = 0.1


def psnr_outside(ours: Tensor, original: Tensor, mask: Tensor | None) -> Tensor:
    """dB over the pixels that were not to be painted; over the whole picture where mask is None."""
    weight = None if mask is None else (mask == 0).float()
    return metrics.psnr(ours.movedim(-1, 1), original.movedim(-1, 1), weight)


def exact_outside(ours: Tensor, original: Tensor, mask: Tensor) -> Tensor:
    """1 where every pixel that was not to be painted is the original's, bit for bit, else 0."""
    changed = (ours != original).any(-1) & (mask == 0)
    return (~changed.flatten(1).any(1)).float()


def border_step(picture: Tensor, mask: Tensor) -> Tensor:
    """The mean step, in 255ths, between neighbours of which one is painted and one is not; 0 without any."""
    inside = mask > 0
    total, count = torch.zeros(len(picture)), torch.zeros(len(picture))
    for dim in (1, 2):
        across = inside.diff(dim=dim)
        steps = picture.float().diff(dim=dim).abs().mean(-1)
        total += (steps * across).flatten(1).sum(1)
        count += across.flatten(1).sum(1)
    return 255 * total / count.clamp(min=1)


def seam(picture: Tensor, real: Tensor, mask: Tensor) -> Tensor:
    """The step across the mask's border beyond what a real scene has there: 0 as in real scenes, above 0 a seam."""
    return border_step(picture, mask) - border_step(real, mask)


def find_object(painted: Tensor, empty: Tensor, mask: Tensor) -> Tensor:
    """What differs from the empty place, within the mask: (B, H, W) bool.

    empty: the same place with nothing in it, through the same VAE, so that what the VAE loses does not count.
    """
    difference = (painted - empty).abs().amax(-1)[:, None]
    smooth = avg_pool2d(difference, 5, 1, 2, count_include_pad=False)[:, 0]
    return (smooth > OBJECT_STEP) & (mask > 0)


def cut_share(thing: Tensor, mask: Tensor, reach: int = 2) -> Tensor:
    """The share of the thing's outline that lies along the mask's border: 0 for a whole thing, towards 1 for a cut one.

    thing: (B, H, W) bool. reach: pixels from the border that still count as along it. NaN where there is too little
    of a thing to have an outline. The picture's edge is no border.
    """
    solid = thing.float()
    outline = solid - erode(solid, 1)
    near = dilate((mask == 0).float(), reach) * outline
    share = near.flatten(1).sum(1) / outline.flatten(1).sum(1).clamp(min=1)
    enough = solid.flatten(1).sum(1) >= LEAST_OBJECT * (mask > 0).flatten(1).sum(1)
    return torch.where(enough, share, torch.nan)
