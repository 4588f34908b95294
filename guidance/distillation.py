"""Score distillation of a latent from a source text to a target text: InstantSwap's loop (eq. 9-19).

Latents are in the sampler's space: x = z + sigma * noise is sqrt(1 + sigma^2) times the paper's z_t, noise is the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# The published loss is 2000 / (64 * 64) * sum(z * g) under SGD at 0.1. The constant stays at other resolutions, so that
# every cell moves as in the paper.
CELLS = 64 * 64
SCALE = 2000 / CELLS
LEARNING_RATE = 0.1


@dataclass(frozen=True)
class Method:
    """What a method's gradient is made of."""

    source: bool  # subtracts the source branch's noise (DDS, eq. 5), else the true noise (SDS, eq. 2)
    masked: bool  # BGM, eq. 11
    regions: bool  # SECR, eq. 12-13
    contrast: bool  # CDS's PatchNCE through the UNet


METHODS = {
    "instantswap": Method(source=True, masked=True, regions=True, contrast=False),
    "dds": Method(source=True, masked=False, regions=False, contrast=False),
    "sds": Method(source=False, masked=False, regions=False, contrast=False),
    "cds": Method(source=True, masked=False, regions=False, contrast=True),
}


def draw_timesteps(count: int, low: int, high: int, order: str, seed: int) -> Tensor:
    """One timestep of low..high (both included) per iteration, (count,) int64.

    order: `random` draws, sorted descending; `ladder` descends evenly; `unsorted` draws. Raises ValueError for a range
    outside 0..999 or upside down.
    """
    if not 0 <= low <= high <= 999:
        raise ValueError(
            f"The timesteps {low} to {high} are no range. Give a low and a high one with 0 <= low <= high <= 999."
        )
    if order == "ladder":
        return torch.linspace(high, low, count, dtype=torch.float64).round().long()
    draws = torch.randint(low, high + 1, (count,), generator=torch.Generator().manual_seed(seed))
    return draws.sort(descending=True).values if order == "random" else draws


def noise_estimate(x: Tensor, denoised: Tensor, sigma: Tensor | float) -> Tensor:
    """The noise that an estimate of x0 implies, the same for eps and v models, before or after guidance."""
    return (x - denoised) / sigma


def distil(
    clean: Tensor,
    gradient: Callable[[Tensor, int], Tensor],
    iterations: int,
    skip: int = 1,
    inside: Tensor | None = None,
    momentum: float = 0.0,
    on_anchor: Callable[[int, Tensor], None] | None = None,
    learning_rate: float = LEARNING_RATE,
) -> Tensor:
    """The latent after that many updates z <- z - learning_rate * SCALE * g, each g reused for `skip` of them
    (SSGU, eq. 14-19).

    clean: (B, C, h, w), the source latent. gradient(z, i): g of the anchor at iteration i = 0, skip, 2 * skip, ...
    inside: (B or 1, 1, h, w) of 0 and 1, where g acts (BGM, eq. 11); elsewhere the latent stays the very same.
    momentum: in [0, 1), of the replaced SGD. on_anchor(done, z): after each anchor. Raises ValueError where g is not
    finite.
    """
    z, velocity = clean, torch.zeros_like(clean)
    for start in range(0, iterations, skip):
        g = gradient(z, start)
        if not torch.isfinite(g).all():
            raise ValueError(
                f"The model's prediction holds values that are not numbers (update {start + 1} of {iterations}). "
                "Lower guidance, or run the model in higher precision."
            )
        if inside is not None:
            g = g * inside
        z, velocity = _descend(z, velocity, g, min(skip, iterations - start), momentum, learning_rate * SCALE)
        if on_anchor is not None:
            on_anchor(min(start + skip, iterations), z)
    return z


def _descend(z: Tensor, velocity: Tensor, g: Tensor, times: int, momentum: float, rate: float) -> tuple[Tensor, Tensor]:
    """`times` steps v <- momentum * v + g, z <- z - rate * v at once, by the geometric series."""
    decay = momentum**times
    old = momentum * (1 - decay) / (1 - momentum)
    new = (times - old) / (1 - momentum)
    return z - rate * (old * velocity + new * g), decay * velocity + (1 - decay) / (1 - momentum) * g
