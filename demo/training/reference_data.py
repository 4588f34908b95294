"""Scenes with their holes, and what the vision tower sees of their things, in their own and in another picture."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..judge import crop_boxes
from ..render import render
from ..scenes import Scenes
from ..tasks import place_masks, reference_scenes
from .parts import Parts
from .pictures import SEEDS, training_scenes, unseen_in
from .schedule import LATENT_SCALE

SUBJECT_SHARE = 0.5
GREY = 0.5


def _kept(path: Path, count: int, rows_of: Callable[[Scenes], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What rows_of makes of each 256 scenes, one after another, from the file if it is there."""
    if path.exists():
        return torch.load(path, weights_only=True)
    groups = [rows_of(scenes_of(first, min(first + 256, count))) for first in range(0, count, 256)]
    data = {name: torch.cat([group[name] for group in groups]) for name in groups[0]}
    torch.save(data, path)
    return data


def scenes_of(first: int, end: int) -> Scenes:
    seeds = list(range(SEEDS["inpaint"] + first, SEEDS["inpaint"] + end))
    return training_scenes(seeds, subject_share=SUBJECT_SHARE, empty_share=0.0)


def holes(parts: Parts, device: str, scenes: Scenes) -> dict[str, Tensor]:
    """Latent, latent of the picture with its hole, mask at latent size."""
    image = render(scenes, device).image
    grow = 1.0 + 0.5 * torch.rand(len(scenes), generator=torch.Generator().manual_seed(scenes.seed[0]))
    mask = place_masks(scenes, grow.view(-1, 1, 1)).to(device)
    holed = torch.where(mask[..., None] > 0.5, GREY, image)
    return {
        "latent": parts.encode(image) * LATENT_SCALE,
        "masked": parts.encode(holed) * LATENT_SCALE,
        "mask": interpolate(mask[:, None], (16, 16), mode="bilinear").round().cpu(),
    }


def references(parts: Parts, device: str, scenes: Scenes) -> dict[str, Tensor]:
    """Pooled states of the thing in its own picture and in another one, unless it is kept from that one's style."""
    elsewhere = reference_scenes(scenes, scenes.seed)
    states = []
    for shown in (render(scenes, device), render(elsewhere, device)):
        crops = crop_boxes(shown.image, shown.boxes[:, 0], 1.15)
        states.append(parts.picture_states(crops.permute(0, 2, 3, 1)).cpu())
    own, other = states
    return {"own": own, "other": torch.where(unseen_in(elsewhere.style, scenes)[:, None], own, other)}


def reference_data(parts: Parts, folder: Path, count: int, device: str) -> dict[str, Tensor]:
    """`holes` and `references` of so many scenes, kept beside the checkpoints."""
    made_of = {f"holes-{count}-{parts.latents_hash[:12]}": holes}
    made_of[f"references-{count}-{parts.vision_hash[:12]}"] = references
    data: dict[str, Tensor] = {}
    for name, rows_of in made_of.items():
        data |= _kept(folder / f"{name}.pt", count, partial(rows_of, parts, device))
    return data
