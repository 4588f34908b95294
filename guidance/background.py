"""What stands outside the mask at each noise level, in the sampler's space x = z sqrt(1 + sigma^2)."""

from collections.abc import Callable
from math import log2

from torch import Tensor
from torch.nn.functional import pad

from .masks import fit_mask, latent_mask
from .noise import CandidateNoise
from .trajectory import Trajectory

Level = Callable[[float], Tensor]


def inverted(trajectory: Trajectory, like: Tensor) -> Level:
    """Spin: the picture's own inverted path (A5). like: a tensor of the wanted device and dtype."""
    return lambda sigma: trajectory.at(sigma).to(like)


def renoised(clean: Tensor, noise: CandidateNoise) -> Level:
    """Blended Diffusion, algorithm 2: q(x_t | x_0) with fresh noise at every call and for every sample.

    clean: (B, C, h, w), one row per candidate of the noise. Level 0 is the clean latent, bit for bit.
    """
    draws = 0

    def at(sigma: float) -> Tensor:
        nonlocal draws
        if sigma <= 0:
            return clean
        draws += 1
        return clean + sigma * noise.draw(clean, "background", draws)

    return at


def fixed(clean: Tensor, noise: Tensor) -> Level:
    """The host's own inpainting: the same noise at every level. clean, noise: (B, C, h, w)."""
    return lambda sigma: clean + sigma * noise


def blend(x: Tensor, outside: Tensor, mask: Tensor) -> Tensor:
    """mask * x + (1 - mask) * outside. mask: (B or 1, 1, h, w), soft or not; exact where it is 0 or 1."""
    return mask * x + (1 - mask) * outside


def mask_cells(mask: Tensor, height: int, width: int, cover: str = "any") -> Tensor:
    """A picture's mask on latents of height x width cells, (B, 1, height, width).

    mask: (H, W) or (B, H, W), 1 = generate. A size that is no multiple of the cell is padded as Invert Image pads
    pictures, or cut in the middle as the host's VAE Encode cuts them. cover: of latent_mask. Raises ValueError for
    another aspect.
    """
    h, w = mask.shape[-2:]
    mask = fit_mask(mask, h, w)
    cell = 2 ** max(0, round(log2(h / height)))  # every VAE halves
    if (-(-h // cell), -(-w // cell)) == (height, width):
        mask = pad(mask[:, None], (0, width * cell - w, 0, height * cell - h), mode="replicate")[:, 0]
    elif (h // cell, w // cell) == (height, width):
        top, left = h % cell // 2, w % cell // 2
        mask = mask[:, top : top + height * cell, left : left + width * cell]
    else:
        mask = fit_mask(mask, height * cell, width * cell)
    return latent_mask(mask, height, width, cover)
