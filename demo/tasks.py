"""Jobs to do in the demo world: a scene, a place in it, and what is wanted there, with the truth about all three."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .captions import Named, caption
from .render import Pictures, render
from .scenes import SIZE, Scenes, draw_scenes, uniform_draws
from .subjects import SUITE_SUBJECTS, scenes_with_subjects

KINDS = ("fill", "replace", "subject", "show", "pair")
_REFERENCE_SEEDS = 1_000_000_007
_NEXT_PHOTO = 100_003


@dataclass(frozen=True)
class Tasks:
    """B jobs. IMAGE tensors (B, H, W, 3), masks (B, H, W) with 1 where to paint.

    wanted: the scenes as they would be with the wish fulfilled; its first object is the wanted one.
    """

    image: Tensor
    mask: Tensor
    reference: Tensor
    reference_mask: Tensor
    captions: list[str]
    wanted: Scenes
    truth: Pictures


def place_masks(wanted: Scenes, grow: float | Tensor) -> Tensor:
    """Boxes with round corners around where the wanted thing would stand, grown by a factor of its radius."""
    thing = wanted.things[0]
    grid = torch.arange(SIZE) + 0.5
    dx = (grid.view(1, 1, -1) - thing.centre[:, 0].view(-1, 1, 1)).abs()
    dy = (grid.view(1, -1, 1) - thing.centre[:, 1].view(-1, 1, 1)).abs()
    half = thing.radius.view(-1, 1, 1) * grow
    corner = half * 0.4
    outside = torch.hypot((dx - half + corner).clamp(min=0), (dy - half + corner).clamp(min=0))
    return (outside <= corner).float()


def task_captions(wanted: Scenes, *, place: bool = True, style: bool = True) -> list[str]:
    """What to ask for; with place and style False only the thing is named."""
    said = Named(style=style, background=place)
    return [caption(wanted, row, said) for row in range(len(wanted))]


def reference_scenes(wanted: Scenes, seeds: Sequence[int]) -> Scenes:
    """The wanted thing in another place, style, pose and hand."""
    elsewhere = draw_scenes([seed + _REFERENCE_SEEDS for seed in seeds], objects=1)
    pose = elsewhere.things[0]
    thing = wanted.things[0].posed(pose.centre, pose.radius.clamp(min=30), pose.angle, pose.mirrored)
    room = torch.stack([thing.radius + 3] * 2, 1)
    thing = replace(thing, centre=torch.minimum(torch.maximum(thing.centre, room), SIZE - room))
    # A reference in pencil would not tell its colour.
    return replace(elsewhere, things=(thing, elsewhere.things[1]), style=elsewhere.style % 3)


def reference_pictures(wanted: Scenes, seeds: Sequence[int]) -> Pictures:
    return render(reference_scenes(wanted, seeds))


def photo_scenes(wanted: Scenes, seed: int, count: int) -> list[Scenes]:
    """Scenes with one scene's wanted thing elsewhere; the first is the task's reference."""
    return [reference_scenes(wanted, [seed + number * _NEXT_PHOTO]) for number in range(count)]


def draw_photos(wanted: Scenes, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Pictures (count, H, W, 3) of `photo_scenes` and the thing's true masks."""
    photos = [render(scene) for scene in photo_scenes(wanted, seed, count)]
    return torch.cat([photo.image for photo in photos]), torch.cat([photo.masks[:, 0] for photo in photos])


def draw_tasks(
    seeds: Sequence[int],
    kind: str,
    *,
    style: int | None = None,
    background: int | None = None,
    grow: float = 1.25,
    holding_out: bool | None = None,
) -> Tasks:
    """The jobs of these seeds.

    kind: fill (an empty place, a named thing wanted), replace (the same where another thing stands), subject (an empty
    place, a thing wanted that only its reference shows), show (a thing and its true mask), pair (two things, the mask
    and reference of the first). grow: size of the mask, in radii of the wanted thing. holding_out: as in draw_scenes.
    Raises ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"There is no task '{kind}'. Choose one of {', '.join(KINDS)}.")
    seeds = [int(seed) for seed in seeds]
    objects = 2 if kind == "pair" else 1
    wanted = draw_scenes(seeds, style=style, background=background, objects=objects, holding_out=holding_out)
    if kind == "subject":
        wanted = scenes_with_subjects(
            [seed % SUITE_SUBJECTS for seed in seeds], seeds, style=style, background=background
        )
    truth = render(wanted)
    if kind in ("show", "pair"):
        image, mask = truth.image, truth.masks[:, 0]
    elif kind == "replace":
        image, mask = render(_with_old_thing(wanted, seeds)).image, place_masks(wanted, grow)
    else:
        image, mask = render(wanted.emptied()).image, place_masks(wanted, grow)
    reference = reference_pictures(wanted, seeds)
    return Tasks(image, mask, reference.image, reference.masks[:, 0], task_captions(wanted), wanted, truth)


def _with_old_thing(wanted: Scenes, seeds: Sequence[int]) -> Scenes:
    """The same scenes with something else where the wanted thing is to go, no larger than that."""
    old = draw_scenes([seed + 7 for seed in seeds], objects=1).things[0]
    place = wanted.things[0]
    shrink = 0.8 + 0.2 * uniform_draws(seeds, 1, 6)[:, 0]
    old = old.posed(place.centre, place.radius * shrink, old.angle, old.mirrored)
    return wanted.with_things((old, wanted.things[1]), wanted.count)
