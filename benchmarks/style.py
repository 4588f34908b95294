"""What style guidance costs on a UNet of SD1.5's full width with random weights, beside what its parts have to cost.

On CUDA 64 x 64 latents (512 x 512 pixels), on a CPU 16 x 16; the UNet in bf16 on CUDA, fp32 on a CPU. The counted
floor is the multiplications of a guided step in those of a plain step with CFG, forward and backward, by PyTorch's own
counter: the ratio of a step in which nothing but the networks takes time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..host.decoders import decoder_of_taesd, full_decoder
from ..host.generate import sample_plainly
from ..host.style_extractors import extractor_of_vgg, vae_extractor
from ..host.style_guidance_patch import StyleOptions, guide_through, style_target
from ..tests.full_size import conditioning, sd15, sd_vae, taesd
from .timing import Comparison, compare

TEXT_WIDTH = 768


@dataclass(frozen=True)
class Scale:
    """side: of the latents. depth: as in full_size. dtype: of the UNet. steps: of a sampling run."""

    side: int
    depth: int | None
    dtype: torch.dtype
    steps: int


def scale_here() -> Scale:
    if torch.cuda.is_available():
        return Scale(64, None, torch.bfloat16, 10)
    return Scale(16, None, torch.float32, 1)


def random_vgg19() -> nn.Sequential:
    """torchvision's `features` with weights that keep the scale."""
    torch.manual_seed(0)
    features = torchvision.models.vgg19(weights=None).features
    for layer in features.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return features.requires_grad_(False).eval()


def run(scale: Scale | None = None) -> Iterator[Comparison]:
    scale = scale or scale_here()
    model, vae = sd15(depth=scale.depth, dtype=scale.dtype), sd_vae()
    side, pixels = scale.side, 8 * scale.side
    texts = conditioning(TEXT_WIDTH, seed=1), conditioning(TEXT_WIDTH, seed=2)
    latent = torch.zeros(1, 4, side, side)
    scene = torch.rand(1, pixels, pixels, 3, generator=torch.Generator().manual_seed(3))
    full, small = full_decoder(vae, model.model.latent_format), decoder_of_taesd(taesd())
    vgg = random_vgg19()

    def guided(decoder, extractor, mode: str):
        loss = style_target(extractor, scene, None, "whole")
        return guide_through(model, decoder, extractor, loss, None, StyleOptions(mode=mode))

    def steps(model) -> Callable[[], object]:
        return lambda: sample_plainly(model, *texts, latent, steps=scale.steps, cfg=5.0)

    half = pixels // 2
    rows = {
        "style-fast": (
            guided(small, extractor_of_vgg(vgg, half), "fast"),
            f"TAESD, VGG19 at {half} pixels, gradient at x0",
        ),
        "style-exact": (
            guided(full, extractor_of_vgg(vgg, 0), "exact"),
            f"the VAE's decoder, VGG19 at {pixels} pixels, through the UNet",
        ),
        "style-fast, no small decoder": (
            guided(full, vae_extractor(vae, full.patcher, half), "fast"),
            f"the VAE's decoder, its encoder at {half} pixels, gradient at x0",
        ),
    }
    shape = f"SD1.5 width, {side} x {side} latents, {str(scale.dtype).removeprefix('torch.')}, {scale.steps} steps"
    plain = counted(steps(model))
    for name, (patched, parts) in rows.items():
        floor = counted(steps(patched)) / plain
        yield compare(name, steps(patched), steps(model), note=f"counted floor {floor:.2f}: {parts}; CFG, {shape}")


def counted(job: Callable[[], object]) -> int:
    """Multiplications and additions of the networks in one run."""
    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops()
