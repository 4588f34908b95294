"""Does the style loss know a scene's style? It is asked of true scenes, whose thing is drawn in each of the styles."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..demo.render import render
from ..demo.tasks import Tasks
from ..demo.vocabulary import STYLES
from ..guidance.masks import dilate
from ..host.demo_world import DemoModels
from ..host.style_guidance_patch import StyleOptions, style_distances
from .records import Measured
from .spin_parts import through_vae

# A cartoon's outline lies outside the thing's own mask.
OUTLINE = 2
READ = {
    f"what the loss tells: {features}, {region}": StyleOptions(features=features, region=region)
    for features, region in (("vae", "whole"), ("vae", "masked"), ("vae", "inside"), ("clip_vision", "whole"))
}


def drawn_in_each_style(tasks: Tasks) -> Tensor:
    """The wanted scenes with their thing in every style, the rest in the scene's own: (styles, B, H, W, 3)."""
    thing = dilate((tasks.truth.masks[:, 0] > 0).float(), OUTLINE)[..., None] > 0
    own = tasks.wanted.style
    every = [render(replace(tasks.wanted, style=torch.full_like(own, style))).image for style in range(len(STYLES))]
    return torch.stack([torch.where(thing, image, tasks.truth.image) for image in every])


def read_losses(models: DemoModels, tasks: Tasks, seeds: Sequence[int]) -> list[Measured]:
    """right style least: 1 where no other style of the thing has a lower loss. nothing lower still: 1 where the empty
    place has a lower one than the thing in its right style. All pictures through the VAE, as guidance sees them.
    """
    candidates = [through_vae(models, image) for image in (*drawn_in_each_style(tasks), tasks.image)]
    measured = []
    for name, options in READ.items():
        for row, seed in enumerate(seeds):
            seen = torch.stack([image[row] for image in candidates])
            scene, own = slice(row, row + 1), int(tasks.wanted.style[row])
            target = tasks.image[scene], tasks.mask[scene], options
            *by_style, empty = style_distances(models.model, models.vae, models.clip_vision, seen, *target).tolist()
            values = {
                "right style least": float(min(by_style) == by_style[own]),
                "nothing lower still": float(empty < by_style[own]),
            }
            measured += [Measured(name, seed, values), Measured(f"{name}; {STYLES[own]} scene", seed, values)]
    return measured
