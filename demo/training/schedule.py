"""The noise schedule of SD1.x, and the loss of a step of eps-prediction."""

import torch
from torch import Tensor

STEPS = 1000
LATENT_SCALE = 0.18215
# Share of timesteps drawn by the weight of their loss; the others are drawn evenly.
FOCUS = 0.75


def alpha_bars() -> Tensor:
    """(1000,) fp32."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def stratified_timesteps(batch: int, generator: torch.Generator, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Timesteps drawn mostly where the loss weighs most, and what each row's loss is to be multiplied with.

    weights: (STEPS,) of the loss. Returns two (batch,), timesteps from equal strata in no order, and weights over
    density: their expected loss is that of evenly drawn timesteps, with less variance.
    """
    density = FOCUS * weights / weights.sum() + (1 - FOCUS) / STEPS
    position = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    timesteps = torch.searchsorted(density.cumsum(0), position).clamp(max=STEPS - 1)
    timesteps = timesteps[torch.randperm(batch, generator=generator)]
    return timesteps, weights[timesteps] / (density[timesteps] * STEPS)


def min_snr_weight(alpha_bar: Tensor, cap: float = 5.0) -> Tensor:
    """Weight of an eps loss: min(SNR, cap) / SNR."""
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=cap) / snr
