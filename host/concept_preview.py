"""What is shown of a concept while it is learned: the reference, the mask that is used, and a sample."""

from collections.abc import Callable

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.samplers
import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ..attention.overlay import overlay
from ..training.concept import Texts

PREVIEW_STEPS = 12
PREVIEW_CFG = 5.0
PREVIEW_SIDE = 1024


@torch.no_grad()
def draw_sample(
    denoise: Callable[[Texts, Tensor, Tensor], Tensor], given: Texts, empty: Texts, noise: Tensor, sampling: object
) -> Tensor:
    """A latent (1, C, h, w) of the prompt `given`, in the sampler's space. noise: its seed's, of that shape."""

    def guided(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        without = denoise(empty, x, sigma)
        return without + PREVIEW_CFG * (denoise(given, x, sigma) - without)

    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", PREVIEW_STEPS).to(noise.device)
    return comfy.k_diffusion.sampling.sample_euler(guided, noise * sigmas[0], sigmas, disable=True)


def draw_panel(picture: Tensor, mask: Tensor, sample: Tensor | None = None) -> Tensor:
    """(1, H, 2 W or 3 W, 3): a picture (1, H, W, 3), the same under its mask (1, H, W), and a sample (1, H', W', 3)."""
    parts = [picture, overlay(picture, mask, (mask >= 0.5).float())]
    if sample is not None:
        parts.append(interpolate(sample.movedim(-1, 1), picture.shape[1:3], mode="bilinear").movedim(1, -1))
    return torch.cat(parts, 2).clamp(0, 1)


def as_preview(panel: Tensor) -> tuple[str, Image.Image, int]:
    """As the host's progress bar takes it."""
    values = (panel[0].nan_to_num() * 255).round().numpy().astype(numpy.uint8)
    return "JPEG", Image.fromarray(values), PREVIEW_SIDE
