"""DDIM between noise levels and its inversion (Spin, A5), in the sampler's space x = z sqrt(1 + sigma^2)."""

from collections.abc import Callable, Iterator

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]


def ddim_step(
    x: Tensor, denoised: Tensor, sigma: float, target: float, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """One step from level sigma to level target, either way (Song et al. 2021, eq. 12).

    In this space the deviation eta sqrt((1 - abar_s) / (1 - abar_t)) sqrt(1 - abar_t / abar_s) becomes
    eta * target * sqrt(sigma^2 - target^2) / sigma. eta 1 is DDPM with the posterior variance; above 0 it needs noise
    and target < sigma. Level 0 returns `denoised` itself.
    """
    if target == 0:
        return denoised
    fresh = eta * target * max(sigma**2 - target**2, 0.0) ** 0.5 / sigma
    moved = denoised + (x - denoised) * (max(target**2 - fresh**2, 0.0) ** 0.5 / sigma)
    return moved if fresh == 0 else moved + fresh * noise


def invert(denoise: Denoise, clean: Tensor, sigmas: list[float], lowest: float) -> Iterator[tuple[int, Tensor, Tensor]]:
    """DDIM inversion: z_next = a_next x0 + s_next eps(z, t), upwards.

    clean: (B, C, h, w), the level 0, where no model can be asked: its noise is taken from the level `lowest` > 0.
    sigmas: ascending, above 0. Yields (index, x at sigmas[index], the x0 it was made from).
    """
    x, level, asked = clean, 0.0, min(lowest, sigmas[0])
    for index, target in enumerate(sigmas):
        denoised = denoise(x, asked)
        x = x + (x - denoised) * ((target - level) / asked)
        level = asked = target
        yield index, x, denoised


def replay(denoise: Denoise, x: Tensor, sigmas: list[float]) -> Tensor:
    """Deterministic DDIM down the levels. sigmas: descending, the first is the level of x."""
    for sigma, target in zip(sigmas, sigmas[1:], strict=False):
        x = ddim_step(x, denoise(x, sigma), sigma, target)
    return x
