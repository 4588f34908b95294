"""Sampling loops that put the background back at the level of the new latent, in the space x = z sqrt(1 + sigma^2)."""

from collections.abc import Callable

from torch import Tensor

from .ddim import Denoise, ddim_step
from .noise import CandidateNoise

SAMPLERS = ("ddim", "ddpm", "euler")

Keep = Callable[[Tensor, int], Tensor]


def step(
    name: str, x: Tensor, denoised: Tensor, sigma: float, target: float, eta: float, noise: Tensor | None
) -> Tensor:
    """One step of ddim (with eta), ddpm (the posterior of Ho et al. 2020, which is ddim with eta 1) or euler."""
    if name == "euler":
        return x + (x - denoised) / sigma * (target - sigma)
    return ddim_step(x, denoised, sigma, target, 1.0 if name == "ddpm" else eta, noise)


def sample(
    denoise: Denoise,
    x: Tensor,
    sigmas: list[float],
    keep: Keep,
    noise: CandidateNoise,
    *,
    name: str = "ddim",
    eta: float = 0.0,
    repeats: int = 1,
    on_step: Callable[[int, Tensor, Tensor], None] = lambda index, x, denoised: None,
) -> Tensor:
    """From x at sigmas[0] down to sigmas[-1].

    keep(x, i) puts the background into a latent of level sigmas[i]; it is called at the start, after each step with
    the level just reached, and after each re-noising. repeats: how often each step is done, with the latent brought
    back up one level in between (RePaint): z_t = sqrt(1 - beta) z_s + sqrt(beta) n, beta = 1 - abar_t / abar_s, which
    here is x + sqrt(sigma_t^2 - sigma_s^2) n. Returns x at sigmas[-1].
    """
    random = name == "ddpm" or (name == "ddim" and eta > 0)
    x = keep(x, 0)
    for index in range(len(sigmas) - 1):
        sigma, target = sigmas[index], sigmas[index + 1]
        for repeat in range(repeats):
            draw = index * repeats + repeat
            denoised = denoise(x, sigma)
            on_step(index, x, denoised)
            fresh = noise.draw(x, "step", draw) if random and target > 0 else None
            x = keep(step(name, x, denoised, sigma, target, eta, fresh), index + 1)
            if repeat + 1 < repeats:
                x = keep(x + (sigma**2 - target**2) ** 0.5 * noise.draw(x, "repeat", draw), index)
    return x
