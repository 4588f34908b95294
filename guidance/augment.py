"""Blended Diffusion's extending augmentations: guidance that holds for every view is less able to cheat CLIP."""

import math

import torch
from torch import Tensor

DEGREES = 15.0
TRANSLATION = 0.1
DISTORTION = 0.7
PROBABILITY = 0.7

_CORNERS = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def random_warps(count: int, generator: torch.Generator) -> Tensor:
    """Homographies (count, 3, 3) in coordinates from -1 to 1: rotation and translation, then a projection.

    Each of the two parts happens with its own probability, as in the official code. The projection moves every corner
    inwards by up to DISTORTION / 2 of the side. The generator is a CPU one; the global random state stays untouched.
    """
    from kornia.geometry.transform import get_perspective_transform

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    angle = (uniform() * 2 - 1) * math.radians(DEGREES)
    shift = (uniform(2) * 2 - 1) * TRANSLATION * 2
    affine = torch.eye(3).repeat(count, 1, 1)
    affine[:, 0, 0] = affine[:, 1, 1] = angle.cos()
    affine[:, 1, 0] = angle.sin()
    affine[:, 0, 1] = -affine[:, 1, 0]
    affine[:, :2, 2] = shift
    corners = _CORNERS.expand(count, -1, -1)
    projection = get_perspective_transform(corners, corners - corners.sign() * uniform(4, 2) * DISTORTION)
    chosen = (uniform(2) < PROBABILITY)[:, :, None, None]
    identity = torch.eye(3).expand(count, 3, 3)
    return torch.where(chosen[:, 1], projection, identity) @ torch.where(chosen[:, 0], affine, identity)


def warp_copies(pictures: Tensor, warps: Tensor) -> Tensor:
    """The pictures as they are and one copy per warp, (N + 1, B, C, H, W). Differentiable; the border is continued.

    pictures: (B, C, H, W), with whatever has to be warped alike as further channels. warps: (N, 3, 3).
    """
    from kornia.geometry.transform import homography_warp

    count = len(warps)
    if count == 0:
        return pictures[None]
    # The warp looks up where each target pixel comes from.
    inverse = torch.linalg.inv(warps).to(pictures)
    batch, *shape = pictures.shape
    copies = homography_warp(
        pictures.repeat(count, 1, 1, 1),
        inverse.repeat_interleave(batch, 0),
        tuple(shape[-2:]),
        padding_mode="border",
        align_corners=True,
    )
    return torch.cat([pictures[None], copies.reshape(count, batch, *shape)])
