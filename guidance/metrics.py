"""Metrics of pictures (B, 3, H, W) in [0, 1], whole or over a region. Each gives one value per picture, (B,)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d

from .region_view import grey_outside

_WINDOW = 11
_DEVIATION = 1.5


def region_weight(mask: Tensor | None, region: str) -> Tensor | None:
    """The share of each pixel that counts. mask: (B, H, W), 1 inside. region: inside, outside or whole (None)."""
    if region == "whole":
        return None
    if mask is None:
        raise ValueError(f"Measuring {region} the mask needs a mask. Connect one, or measure the whole picture.")
    weight = mask if region == "inside" else 1 - mask
    if not weight.flatten(1).any(1).all():
        raise ValueError(f"There is nothing {region} the mask to measure.")
    return weight


def mse(a: Tensor, b: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error over the pixels of the region."""
    return _region_mean((a - b).square().mean(1), weight)


def psnr(a: Tensor, b: Tensor, weight: Tensor | None = None) -> Tensor:
    """Peak signal to noise ratio in dB, infinite for equal pictures."""
    return -10 * mse(a, b, weight).log10()


def ssim(a: Tensor, b: Tensor, weight: Tensor | None = None) -> Tensor:
    """Structural similarity (Wang et al. 2004): 11 x 11 Gaussian windows of deviation 1.5, wholly within the picture.

    A region takes the windows whose centre it holds, and of each the pixels that it holds, by their share: the other
    side does not count. NaN where it holds no centre. Raises ValueError for pictures smaller than a window.
    """
    if min(a.shape[-2:]) < _WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {_WINDOW} x {_WINDOW} pixels.")
    a, b = a.double(), b.double()
    share = torch.ones_like(a[:, :1]) if weight is None else weight[:, None].to(a)
    # Windows that hold nothing have no centre in the region either.
    held = _blur(share).clamp(min=torch.finfo(a.dtype).tiny)

    def mean(values: Tensor) -> Tensor:
        return _blur(values * share) / held

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    values = values / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
    edge = _WINDOW // 2
    centres = None if weight is None else share[:, 0, edge:-edge, edge:-edge]
    return _region_mean(values.mean(1), centres).float()


def lpips(
    stages: Callable[[Tensor], Sequence[Tensor]],
    linear: Sequence[Tensor],
    a: Tensor,
    b: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """LPIPS (Zhang et al. 2018, eq. 1). Differentiable.

    stages: pictures in [0, 1] to feature maps (B, C_l, h_l, w_l). linear: (C_l,) each. In a region both pictures are
    grey outside, as in Blended Diffusion's eq. 7, and each map's mean is over the region's share of its cells.
    """
    if weight is not None:
        a, b = grey_outside(a, weight), grey_outside(b, weight)
    total = a.new_zeros(len(a))
    for of_a, of_b, scale in zip(stages(a), stages(b), linear, strict=True):
        difference = (_unit(of_a) - _unit(of_b)).square()
        distance = torch.einsum("bchw,c->bhw", difference, scale)
        share = None if weight is None else adaptive_avg_pool2d(weight[:, None], distance.shape[-2:])[:, 0]
        total = total + _region_mean(distance, share)
    return total


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of the Gaussians of two feature sets (N, D), (M, D) (Heusel et al. 2017, eq. 6).

    Raises ValueError where either set has too few samples for a covariance of full rank.
    """
    least = a.shape[1] + 1
    if min(len(a), len(b)) < least:
        raise ValueError(
            f"{len(a)} and {len(b)} pictures are too few: the covariance of {a.shape[1]} features "
            f"needs at least {least} on each side."
        )
    a, b = a.double(), b.double()
    covariance_a, covariance_b = torch.cov(a.T), torch.cov(b.T)
    # The trace of (C_a C_b)^(1/2) by the eigenvalues of the symmetric C_a^(1/2) C_b C_a^(1/2).
    values, vectors = torch.linalg.eigh(covariance_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    apart = (a.mean(0) - b.mean(0)).square().sum()
    return float(apart + covariance_a.trace() + covariance_b.trace() - 2 * cross)


def _region_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """values: (B, H, W). weight: (B or 1, H, W)."""
    if weight is None:
        return values.flatten(1).mean(1)
    return (values * weight).flatten(1).sum(1) / weight.expand_as(values).flatten(1).sum(1)


def _blur(x: Tensor) -> Tensor:
    offsets = torch.arange(_WINDOW, device=x.device, dtype=x.dtype) - _WINDOW // 2
    window = (-offsets.square() / (2 * _DEVIATION**2)).exp()
    window = (window / window.sum()).expand(x.shape[1], 1, 1, -1)
    return conv2d(conv2d(x, window, groups=x.shape[1]), window.mT, groups=x.shape[1])


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True) + 1e-8).sqrt()
