"""How far a gradient moves the clean estimate, x0 + move, in the sampler's space x = z sqrt(1 + sigma^2)."""

import torch
from torch import Tensor


def finite_samples(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient with every sample that is not finite set to 0, and which samples were kept, (B,) bool."""
    kept = torch.isfinite(gradient).flatten(1).all(1)
    return torch.where(_column(kept, gradient), gradient, torch.zeros_like(gradient)), kept


def normalised_move(x: Tensor, denoised: Tensor, gradient: Tensor, strength: float) -> Tensor:
    """Spin, eq. 6 with the strength as a share of the noise, per sample: eps + s g |eps| / (|g| + 1e-8).

    x, denoised, gradient = dL/dx: (B, ...). In x0 = x - sigma eps the sigma cancels.
    """
    return -strength * gradient * _norm(x - denoised) / (_norm(gradient) + 1e-8)


def score_move(gradient: Tensor, sigma: Tensor, strength: float) -> Tensor:
    """Blended Diffusion, algorithm 3: eps + s sqrt(1 - abar) dL/dz, so -s sigma^2 dL/dx. sigma: (B,)."""
    return -strength * _column(sigma, gradient) ** 2 * gradient


def noise_move(gradient: Tensor, sigma: Tensor, strength: float) -> Tensor:
    """Spin, eq. 6 as printed: eps + s dL/dz, so -s sigma sqrt(1 + sigma^2) dL/dx. sigma: (B,)."""
    sigma = _column(sigma, gradient)
    return -strength * sigma * (1 + sigma**2).sqrt() * gradient


def _norm(x: Tensor) -> Tensor:
    return _column(torch.linalg.vector_norm(x.flatten(1), dim=1), x)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))
