"""Swap Concept against a straight reading of the official loop, on one net with random weights and its parts alone.

Told as the official loop is (`raw`: no text acts outside the box), and as the node is by default (`ca`).

On CUDA a UNet of SD2.1's size at 512 x 512 pixels, bf16, the whole 550 iterations; on a CPU the demo world's UNet at
512 x 512 pixels, fp32, two gradients and their updates. The VAE is the demo world's in both.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ..host import demo_models
from ..host.swap import swap_picture
from ..host.swap_settings import SwapSettings, SwapTexts
from ..tests.full_size import conditioning, sd21_v
from .official_swap import OurWay, official_swap
from .timing import Comparison, compare

TEXTS = SwapTexts("a cat on a sofa", "a teapot on a sofa", "cat", "teapot")
PARTS = {
    "one forward for both branches": OurWay(one_forward=True),
    "fused attention": OurWay(fused_attention=True),
    "updates in closed form": OurWay(closed_form=True),
    "no negative where it says the same": OurWay(no_negative=True),
}


class AnyText:
    """A stand-in for the text encoder, which is not what is timed: each text is its own random conditioning."""

    def __init__(self, width: int) -> None:
        self.width = width

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list:
        return conditioning(self.width, seed=sum(map(ord, text)))


@dataclass(frozen=True)
class Scale:
    """model: what is timed. width: of its texts. side: pixels. iterations: of a run."""

    model: Any
    width: int
    side: int
    iterations: int
    note: str


def scale_here() -> Scale:
    if torch.cuda.is_available():
        return Scale(sd21_v(dtype=torch.bfloat16), 1024, 512, 550, "SD2.1's size, bf16")
    model = demo_models.build_model(demo_models.build_unet(4, seed=1).state_dict())
    return Scale(model, 128, 512, 10, "the demo world's UNet, fp32")


def run(scale: Scale | None = None) -> Iterator[Comparison]:
    scale = scale or scale_here()
    clip, side = AnyText(scale.width), scale.side
    vae = demo_models.build_vae(demo_models.build_autoencoder(seed=5).state_dict())
    image = torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(0))
    box = {"x": side // 4, "y": side // 4, "width": side // 2, "height": side // 2}
    as_published = SwapSettings(iterations=scale.iterations, paste="none", outside="raw")
    anchors = -(-as_published.iterations // as_published.skip)
    parts = scale.model, clip, vae, image

    def ours(settings: SwapSettings):
        mask = torch.ones(1, side, side)
        return swap_picture(scale.model, None, clip, vae, image, mask, TEXTS, settings, bbox=box)[0]

    def reference(settings: SwapSettings, way: OurWay = OurWay()):  # noqa: B008
        return official_swap(*parts, box, TEXTS, settings, way)

    shape = f"{scale.note}, {side} x {side} pixels, {as_published.iterations} iterations, {anchors} gradients"
    against = "against two forwards of two rows a gradient, whole attention maps, autograd and SGD for every update"
    for name, outside, said in (("swap", "raw", "as the official loop"), ("swap: ca", "ca", "as the node's default")):
        settings = replace(as_published, outside=outside)
        both = partial(ours, settings), partial(reference, settings)
        yield compare(name, *both, note=f"{said}, outside {outside}; {against}; {shape}")
    for name, way in PARTS.items():
        part, whole = partial(reference, as_published, way), partial(reference, as_published)
        yield compare(f"swap: {name}", part, whole, note=f"this part alone, outside raw; {shape}")
