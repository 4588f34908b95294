"""Blended Diffusion's losses. Pictures (B, 3, H, W) in [-1, 1], not clamped; each loss is one value a sample, (B,)."""

from collections.abc import Callable

import torch
from torch import Tensor


def mixed_estimate(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """What the losses look at: f x0 + (1 - f) z_t with f = sqrt(1 - abar), the clean estimate early and z_t late.

    denoised, x: (B, ...) in the sampler's space x = z sqrt(1 + sigma^2). sigma: (B,).
    """
    sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
    share = sigma / (1 + sigma**2).sqrt()
    return share * denoised + (1 - share) * x / (1 + sigma**2).sqrt()


def spherical_distance(u: Tensor, v: Tensor) -> Tensor:
    """2 arcsin(|u - v| / 2)^2 of unit vectors (..., D), half the squared angle."""
    # The root's gradient is infinite at 0 and the arc sine's at 1.
    chord = (u - v).square().sum(-1).clamp(min=1e-12).sqrt() / 2
    return 2 * chord.clamp(max=1 - 1e-6).asin().square()


def cosine_distance(u: Tensor, v: Tensor) -> Tensor:
    """1 - u v of unit vectors (..., D) (Blended Diffusion, eq. 6)."""
    return 1 - (u * v).sum(-1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "spherical": spherical_distance,
    "cosine": cosine_distance,
}


def range_loss(pictures: Tensor) -> Tensor:
    """Mean square of what lies beyond [-1, 1]."""
    return (pictures - pictures.clamp(-1, 1)).square().flatten(1).mean(1)


def background_loss(
    pictures: Tensor,
    original: Tensor,
    mask: Tensor,
    perceptual: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Eq. 7 outside the mask (B or 1, H, W), both pictures masked: the MSE, or the mean of it and LPIPS.

    perceptual: LPIPS of two pictures in [0, 1] over a weight (B, H, W), where the user has the net.
    """
    outside = 1 - mask
    error = ((pictures - original) * outside[:, None]).square().flatten(1).mean(1)
    if perceptual is None:
        return error
    weight = outside.expand(len(pictures), -1, -1)
    return (error + perceptual((pictures + 1) / 2, (original + 1) / 2, weight)) / 2


def clip_distance(embeddings: Tensor, targets: Tensor, distance: str) -> Tensor:
    """Mean over copies and targets. distance: a key of DISTANCES.

    embeddings: (N, B, D). targets: (K, D), or (B, K, D) for each sample its own; all unit.
    """
    values = DISTANCES[distance](embeddings[:, :, None], targets)
    return torch.mean(values, (0, 2))
