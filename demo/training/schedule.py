"""The noise schedule of SD1.x, and the loss of a step of eps-prediction."""

import torch
from torch import Tensor

STEPS = 1000
LATENT_SCALE = 0.18215


def alpha_bars() -> Tensor:
    """(1000,) fp32."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def stratified_timesteps(batch: int, generator: torch.Generator) -> Tensor:
    """(batch,) one timestep from each of `batch` equal strata, in no order."""
    position = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch * STEPS
    return position.long().clamp(max=STEPS - 1)[torch.randperm(batch, generator=generator)]


def min_snr_weight(alpha_bar: Tensor, cap: float = 5.0) -> Tensor:
    """Weight of an eps loss: min(SNR, cap) / SNR."""
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=cap) / snr
