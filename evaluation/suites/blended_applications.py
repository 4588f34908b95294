"""Scribbles, removal and extrapolation, as rows of suite `blended`."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...demo.judge import crop_boxes
from ...demo.render import render
from ...demo.scenes import SIZE
from ...demo.tasks import draw_tasks, place_masks, task_captions
from ...demo.vocabulary import RGB
from ...guidance.extrapolation import seam_step
from ...guidance.masks import dilate
from ...guidance.metrics import psnr
from ...guidance.paste import paste_back
from ...host.blending import without_the_thing
from ...host.extrapolation import ExtrapolateSettings, extrapolate
from ...host.generate import encode_texts
from ...host.painting import paint
from .. import judging
from ..measures import LEAST_OBJECT, find_object, seam
from ..records import Measured
from .blended_jobs import CFG, START, Edit, World, as_batch, judged, number, paint_edit

SCRIBBLE_LEVELS = (0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
MASK_BEYOND_SCRIBBLE = 4
KEPT, STRIP = 80, 48


@dataclass(frozen=True)
class Removal:
    """filled: whether the surroundings stand in the mask at the start. said: whether the model is told what the place
    shows with nothing in it. avoided: whether it is told to avoid the thing. level: where it starts.
    """

    filled: bool = True
    said: bool = False
    avoided: bool = False
    level: float = START


REMOVALS = {
    "removal: from the thing": Removal(filled=False),
    "removal: from the surroundings": Removal(),
    "removal: from the surroundings, from 0.5": Removal(level=0.5),
    "removal: from the surroundings, the thing negative": Removal(avoided=True),
    "removal: from the surroundings, from 0.5, told of nothing there": Removal(said=True, level=0.5),
    "removal: from the surroundings, told of nothing there": Removal(said=True),
}
GROWTHS = {
    "extrapolation: as shipped": {},
    "extrapolation: colours not matched at the seam": {"match_colour": False},
    "extrapolation: every strip from 0.75": {"first_level": 0.75},
    "extrapolation: no clean-up": {"clean_up": 0.0},
}


def scribble_row(level: float) -> str:
    return f"scribble, from {level:g}"


def scribbles(world: World, seeds: list[int], steps: int) -> list[Measured]:
    """The wanted thing's outline, flat in its colour, in an empty place; the mask is a little larger."""
    tasks = draw_tasks(seeds, "fill", holding_out=True)
    shape = tasks.truth.masks[:, 0]
    paint_of = RGB[tasks.wanted.colour[:, 0]].view(-1, 1, 1, 3)
    drawn = torch.where(shape[..., None] > 0.5, paint_of, tasks.image)
    mask = dilate((shape > 0.5).float(), MASK_BEYOND_SCRIBBLE)
    batch = as_batch(world.models, seeds, replace(tasks, image=drawn, mask=mask))
    for row, seed in enumerate(seeds):
        world.study.show(seed, "scribble", "", drawn[row])
    measured = []
    for level in SCRIBBLE_LEVELS:
        painted = paint_edit(world.models, batch, Edit(True, None, steps=steps, denoise=level))
        values = judged(world, batch, painted)
        overlap = _overlap(find_object(painted, batch.empty, mask), shape > 0.5)
        change = (painted - drawn).abs().mean(-1)
        change = 255 * (change * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)
        for row, one in enumerate(values):
            one.update({"outline kept": float(overlap[row]), "change": float(change[row])})
        name = scribble_row(level)
        measured += judging.rows_of(name, seeds, values)
        _show(world, name, seeds, paste_back(drawn, painted, mask))
    return measured


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, (B,)."""
    both, either = ((a & b).flatten(1).sum(1), (a | b).flatten(1).sum(1))
    return both / either.clamp(min=1)


def removals(world: World, seeds: list[int], steps: int) -> list[Measured]:
    """A thing is to go. The truth, the empty place, is known."""
    tasks = draw_tasks(seeds, "show", holding_out=True)
    mask = place_masks(tasks.wanted, 1.25)
    batch = as_batch(world.models, seeds, replace(tasks, mask=mask))
    bare = render(tasks.wanted.emptied()).image
    things = encode_texts(world.models.clip, task_captions(tasks.wanted, place=False, style=False))
    nothing = encode_texts(world.models.clip, task_captions(tasks.wanted.emptied()))
    for row, seed in enumerate(seeds):
        world.study.show(seed, "to remove", "", tasks.image[row])
    measured = []
    for name, way in REMOVALS.items():
        image = without_the_thing(tasks.image, mask) if way.filled else tasks.image
        settings = Edit(way.said or way.avoided, None, steps=steps, denoise=way.level).settings(seeds[0])
        texts = nothing if way.said else batch.untold, things if way.avoided else batch.untold
        painted = paint(world.models.model, *texts, world.models.vae, image, mask, settings)[0]
        pasted = paste_back(tasks.image, painted, mask)
        left = find_object(painted, batch.empty, mask).float().flatten(1).sum(1) / (mask > 0).flatten(1).sum(1)
        near = psnr(pasted.movedim(-1, 1), bare.movedim(-1, 1), mask)
        beyond = seam(pasted, bare, mask)
        values: judging.Values = [
            {
                "PSNR to the empty place": float(near[row]),
                "something left": float(left[row] > LEAST_OBJECT),
                "share of the mask unlike it": float(left[row]),
                "seam": float(beyond[row]),
            }
            for row in range(len(seeds))
        ]
        measured += judging.rows_of(name, seeds, values)
        _show(world, name, seeds, pasted)
    return measured


def extrapolations(world: World, seeds: list[int], steps: int) -> list[Measured]:
    """An empty scene without its right part grows by that part again; the real scene says what a seam is."""
    measured = []
    for seed in seeds:
        tasks = draw_tasks([seed], "fill")
        real = tasks.image
        prompt = task_captions(tasks.wanted.emptied())[0]
        for name, options in GROWTHS.items():
            settings = ExtrapolateSettings(steps=steps, cfg=CFG, seed=seed, **options)
            widths = {"left": 0, "right": STRIP, "top": 0, "bottom": 0}
            prompts = dict.fromkeys(widths, prompt)
            parts = world.models.model, world.models.clip, world.models.vae
            grown, new = extrapolate(*parts, real[:, :, :KEPT], widths, prompts, settings)
            box = torch.tensor([[KEPT, (SIZE - STRIP) // 2, STRIP, STRIP]])
            found = judging.verdicts(world.judge, crop_boxes(grown, box, 1.0))
            (values,) = judging.accuracy(found, judging.truth_of(tasks.wanted), judging.PLACE)
            values["place"] = values.pop("all")
            values["colour step at the seam"] = number((seam_step(grown, new) - seam_step(real, new))[0])
            measured.append(Measured(name, seed, values))
            _show(world, name, [seed], grown)
    return measured


def _show(world: World, column: str, seeds: list[int], pictures: Tensor) -> None:
    for row, seed in enumerate(seeds):
        world.study.show(seed, column, "", pictures[row])
