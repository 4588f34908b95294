"""L_s: a training loss that counts what is salient in full and the rest blurred (Spin, section 3.2)."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

KERNEL = 9
DEVIATION = 1.0


def blur(x: Tensor, kernel: int = KERNEL, deviation: float = DEVIATION) -> Tensor:
    """B: a Gaussian blur per channel of (B, C, h, w), reflected at the edge. A grid smaller than the kernel cuts it."""
    for dim in (2, 3):
        radius = min(kernel // 2, x.shape[dim] - 1)
        offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
        weights = (-0.5 * (offsets / deviation) ** 2).exp()
        shape = [1, 1, 1, 1]
        shape[dim] = -1
        weights = (weights / weights.sum()).reshape(shape)
        edges = [radius, radius, 0, 0] if dim == 3 else [0, 0, radius, radius]
        x = conv2d(pad(x, edges, mode="reflect"), weights.expand(x.shape[1], *weights.shape[1:]), groups=x.shape[1])
    return x


def focus_residual(difference: Tensor, saliency: Tensor) -> Tensor:
    """r = S d + (1 - S) B(d), which is the difference of the two half-blurred latents because B is linear.

    difference: d = z0_hat - z0, (B, C, h, w). saliency: S, (B, 1, h, w) in [0, 1].
    """
    return saliency * difference + (1 - saliency) * blur(difference)


def saliency_focus(
    denoised: Tensor,
    clean: Tensor,
    saliency: Tensor,
    sigma: Tensor | None = None,
    snr_cap: float = 0.0,
    norm: bool = False,
) -> Tensor:
    """L_s per sample, (B,) fp32: mean(r^2), or the unsquared norm of r as the paper prints it.

    denoised, clean: (B, C, h, w) in the sampler's space. saliency: (B, 1, h, w), taken as a constant. sigma: (B,).
    snr_cap: above 0, the loss is multiplied by min(1, snr_cap * SNR), SNR = 1 / sigma^2: otherwise it grows as 1 / SNR
    and the noisiest steps drown the others.
    """
    residual = focus_residual(denoised.float() - clean.float(), saliency.detach().float())
    squares = residual.square()
    loss = squares.sum((1, 2, 3)).sqrt() if norm else squares.mean((1, 2, 3))
    return loss * (snr_cap / sigma.float().square()).clamp(max=1) if snr_cap > 0 else loss
