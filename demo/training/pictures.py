"""Training pictures: named scenes, and now and then an unnamed thing. Held-out combinations never appear."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..render import Pictures, render
from ..scenes import Scenes, Things, draw_scenes, uniform_draws
from ..subjects import SUITE_SUBJECTS, draw_things
from ..vocabulary import held_out

# First seeds of everybody's pictures, far apart: nobody is judged on what it has seen.
SEEDS = {
    "vae": 10_000_000,
    "decoder": 15_000_000,
    "clip": 20_000_000,
    "vision": 25_000_000,
    "unet": 30_000_000,
    "inpaint": 40_000_000,
    "judge": 52_000_000,
    "tuning": 70_000_000,
    "held-out": 90_000_000,
}


def unseen_in(style: Tensor, scenes: Scenes) -> Tensor:
    """(B,) bool: in that style the first thing's combination is kept from training."""
    first = scenes.shape[:, 0], scenes.colour[:, 0], scenes.surface[:, 0]
    return (first[0] >= 0) & held_out(style, *first)


@dataclass(frozen=True)
class TrainingSet:
    scenes: Scenes
    pictures: Pictures


def training_scenes(seeds: list[int], subject_share: float = 0.15, empty_share: float = 0.05) -> Scenes:
    """Scenes without held-out combinations; a share of them holds an unnamed subject, a share nothing at all."""
    scenes = draw_scenes(seeds, holding_out=False)
    draws = uniform_draws(seeds, 2, 3)
    empty = draws[:, 0] < empty_share
    novel = (draws[:, 0] > 1 - subject_share) & (scenes.count == 1)
    subjects = draw_things([SUITE_SUBJECTS + seed % 1_000_003 for seed in seeds])
    first = scenes.things[0]
    posed = subjects.posed(first.centre, (first.radius * 1.1).clamp(max=42), first.angle, draws[:, 1] > 0.5)
    return _replaced(scenes, posed, novel, empty)


def _replaced(scenes: Scenes, subjects: Things, novel: Tensor, empty: Tensor) -> Scenes:
    def choose(mine: Tensor, other: Tensor) -> Tensor:
        return torch.where(novel.view(-1, *[1] * (mine.ndim - 1)), mine, other)

    first = Things(
        **{
            field.name: choose(getattr(subjects, field.name), getattr(scenes.things[0], field.name))
            for field in fields(Things)
        }
    )
    gone = (~empty).float()
    things = (
        replace(first, radius=first.radius * gone),
        replace(scenes.things[1], radius=scenes.things[1].radius * gone),
    )
    unnamed = (novel | empty)[:, None]
    return replace(
        scenes,
        things=things,
        count=torch.where(empty, 0, scenes.count),
        shape=torch.where(unnamed, -1, scenes.shape),
        colour=torch.where(unnamed, -1, scenes.colour),
        surface=torch.where(unnamed, -1, scenes.surface),
    )


def training_set(seeds: list[int], device: torch.device | str = "cpu", **shares: float) -> TrainingSet:
    scenes = training_scenes(seeds, **shares)
    return TrainingSet(scenes, render(scenes, device))
