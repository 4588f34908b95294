"""What region guidance, reading attention and inversion cost on a UNet of SD1.5's full width with random weights.

On CUDA 64 x 64 latents (512 x 512 pixels), on a CPU 16 x 16; bf16 on CUDA, fp32 on a CPU, where few have fast bf16.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..host.attention_capture import Seen, watch_attention
from ..host.attention_layers import layer_grids
from ..host.generate import sample_plainly
from ..host.inversion import invert_latent
from ..host.region_patches import guide_region
from ..host.regions import Region
from ..tests.full_size import conditioning, sd15
from .timing import Comparison, compare

TEXT_WIDTH = 768


@dataclass(frozen=True)
class Scale:
    """side: of the latents. depth: as in full_size. steps: of a sampling run."""

    side: int
    depth: int | None
    dtype: torch.dtype
    steps: int
    inversion_steps: int


def scale_here() -> Scale:
    if torch.cuda.is_available():
        return Scale(64, None, torch.bfloat16, 20, 50)
    return Scale(16, None, torch.float32, 1, 3)


def run(scale: Scale | None = None) -> Iterator[Comparison]:
    scale = scale or scale_here()
    model = sd15(depth=scale.depth, dtype=scale.dtype)
    side, pixels = scale.side, 8 * scale.side
    positive, negative = conditioning(TEXT_WIDTH, seed=1), conditioning(TEXT_WIDTH, seed=2)
    latent = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(1, pixels, pixels)
    mask[:, pixels // 4 : 3 * pixels // 4, pixels // 4 : 3 * pixels // 4] = 1
    shape = f"SD1.5 width, {side} x {side} latents, {str(scale.dtype).removeprefix('torch.')}"

    def steps(model, count=scale.steps, cfg=5.0):
        return sample_plainly(model, positive, negative, latent, steps=count, cfg=cfg)

    guidance = {outside: guide_region(model, [Region(mask)], outside, negative[0][0]) for outside in ("zero", "null")}
    note = f"CFG, a quarter of the picture masked; {shape}, {scale.steps} steps"
    yield compare("arg-step", lambda: steps(guidance["zero"]), lambda: steps(model), note=note)
    yield compare("arg-step, outside null", lambda: steps(guidance["null"]), lambda: steps(model), note=note)

    layers = list(layer_grids(model.get_model_object("diffusion_model"), side, side))
    seen: list[Seen] = []
    watched = watch_attention(model, layers, seen.append)

    def capture():
        seen.clear()
        return steps(watched)

    note = f"queries and keys of all {len(layers)} layers, self and cross; {shape}, {scale.steps} steps"
    yield compare("capture", capture, lambda: steps(model), note=note)
    seen.clear()

    count = scale.inversion_steps
    note = f"{count} steps without CFG against as many plain steps; {shape}"
    yield compare(
        "inversion",
        lambda: invert_latent(model, latent, pixels, pixels, positive, steps=count),
        lambda: steps(model, count, 1.0),
        note=note,
    )
