"""How well do boxes out of the model's own attention fit the things that words name (InstantSwap, section 4.5)?

Every seed is one scene with one thing and one with two, of which one is looked for, by all its words. The
shipped workflows draw a box around the salient part that the words tell most of, the paper around where they act. Each
option of both is varied alone, of the shipped box on one seed in four; for one seed in eight all maps of a grid are
judged at several thresholds, to choose from on tuning seeds.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from ...attention.boxes import Box, box_mask, find_box
from ...attention.overlay import overlay
from ...demo.judge import load_judge
from ...demo.scenes import SIZE
from ...demo.weights import load_part, weights_path
from ...host.demo_world import DemoModels, load_demo_models
from ...host.find_box import concept_maps, find_boxes
from ..claims import Claim, Floor
from ..records import Measured
from ..spin_parts import judge_trust
from ..study import TEXTS, Study, Suite
from .boxes_options import (
    AROUND,
    BY_WORDS,
    CUT,
    GRID,
    GRID_THRESHOLDS,
    OURS,
    PAPER,
    PAPERS,
    SHIPPED,
    WORDS,
    Options,
    named,
    variants,
)
from .boxes_views import View, views

BATCH = 4
TRUST = 16
AROUND_EVERY, GRID_EVERY = 4, 8
COUNTS = {1: "one object", 2: "two objects"}

WHOLE, CHANCE, BY_SHAPE = "the whole picture", "another scene's box", "named by its shape's word"


def run(study: Study) -> None:
    load_part("unet")
    models, judge = load_demo_models("text"), load_judge(weights_path("judge"))
    study.measure("judge", TRUST, partial(judge_trust, models, judge))
    study.measure("boxes", BATCH, partial(_measure, study, models))
    study.measure("around", BATCH, partial(_around, study, models))
    study.measure("grid", BATCH, partial(_grid, study, models))


def overlap(found: Box, truth: Box) -> dict[str, float]:
    """iou; covers: 1 where the truth lies wholly within the box; share covered: of the truth's area."""
    ours, real = (box_mask([box], SIZE, SIZE).bool() for box in (found, truth))
    both = float((ours & real).sum())
    covered = both / float(real.sum())
    return {"iou": both / float((ours | real).sum()), "covers": float(covered == 1), "share covered": covered}


def _maps(models: DemoModels, view: View, options: Options, words: str) -> Tensor:
    how = {name: value for name, value in options.items() if name not in CUT}
    return next(concept_maps(models.model, models.clip, models.vae, view.image, view.prompt, words, **how))


def _looker(models: DemoModels, view: View) -> Callable[[Options, str], tuple[Tensor, float | None]]:
    """The maps (passes, H, W) of some options, and the seconds that they took: None where they were known already."""
    known: dict[tuple, Tensor] = {}

    def look(options: Options, words: str) -> tuple[Tensor, float | None]:
        key = words, *(value for name, value in options.items() if name not in CUT)
        if key in known:
            return known[key], None
        began = time.perf_counter()
        known[key] = _maps(models, view, options, words)
        return known[key], time.perf_counter() - began

    return look


def _measure(study: Study, models: DemoModels, seeds: list[int]) -> list[Measured]:
    measured = []
    for count, kind in COUNTS.items():
        seen = views(seeds, count)
        there = [view for view in seen if view is not None]
        for seed, view in zip(seeds, seen, strict=True):
            if view is None:
                continue
            other = there[(there.index(view) + 1) % len(there)] if len(there) > 1 else view
            whole = {"x": 0, "y": 0, "width": SIZE, "height": SIZE}
            measured.append(Measured(f"{kind}: {WHOLE}", seed, overlap(whole, view.truth)))
            if other is not view:
                measured.append(Measured(f"{kind}: {CHANCE}", seed, overlap(other.truth, view.truth)))
            look = _looker(models, view)
            for name, words, options in _asked(view):
                box, soft, seconds = _found(models, view, look, words, options)
                values = {**overlap(box, view.truth), "seconds": seconds}
                measured.append(Measured(f"{kind}: {name}", seed, values))
                if name == OURS:
                    measured.append(Measured(f"{kind}: {name}; {view.style}", seed, values))
                if name in (OURS, PAPERS):
                    _show(study, seed, f"{kind}, {name}", view, soft, box)
    return measured


def _found(
    models: DemoModels, view: View, look: Callable, words: str, options: Options
) -> tuple[Box, Tensor, float | None]:
    """The box, the map (1, H, W) behind it, and the seconds, None where the maps were known already."""
    if options["outline"] == PAPER["outline"]:
        maps, seconds = look(options, words)
        return find_box(maps, options["threshold"], options["margin"]), maps.mean(0, keepdim=True), seconds
    began = time.perf_counter()
    found = find_boxes(models.model, models.clip, models.vae, view.image, view.prompt, words, **options)
    return found.boxes[0], found.soft, time.perf_counter() - began


def _asked(view: View) -> Iterator[tuple[str, str, Options]]:
    for name, options in variants().items():
        yield name, view.phrase, options
    yield f"{OURS}, {BY_SHAPE}", view.shape, SHIPPED


def _show(study: Study, seed: int, column: str, view: View, soft: Tensor, box: Box) -> None:
    label = f"'{view.phrase}' in: {view.prompt}"
    study.show(seed, column, label, overlay(view.image, soft.clamp(0, 1), box_mask([box], SIZE, SIZE)[None])[0])


def _around(study: Study, models: DemoModels, seeds: list[int]) -> list[Measured]:
    """The shipped box with each of its options changed in turn."""
    rows = {f"{named(name, value)}": {name: value} for name, values in AROUND.items() for value in values}
    measured = []
    for seed in seeds:
        if (seed - study.seeds[0]) % AROUND_EVERY:
            continue
        for count, kind in COUNTS.items():
            for view in views([seed], count):
                if view is None:
                    continue
                told = models.model, models.clip, models.vae, view.image, view.prompt, view.phrase
                for row, changed in {"as it is": {}, **rows}.items():
                    try:
                        values = overlap(find_boxes(*told, **SHIPPED | changed).boxes[0], view.truth)
                    except ValueError:  # Nothing stands out so far.
                        values = dict.fromkeys(("iou", "covers", "share covered"), 0.0)
                    measured.append(Measured(f"{kind}: around {OURS}, {row}", seed, values))
    return measured


def _grid(study: Study, models: DemoModels, seeds: list[int]) -> list[Measured]:
    """Every map of the grid at every threshold; a seed's value is the mean of its two scenes."""
    measured = []
    for seed in seeds:
        if (seed - study.seeds[0]) % GRID_EVERY:
            continue
        seen = [view for count in COUNTS for view in views([seed], count) if view is not None]
        for values in itertools.product(*GRID.values()):
            options = {**WORDS, **dict(zip(GRID, values, strict=True))}
            columns: dict[str, float] = {}
            for view in seen:
                maps = _maps(models, view, options, view.phrase)
                for threshold in GRID_THRESHOLDS:
                    found = overlap(find_box(maps, threshold, WORDS["margin"]), view.truth)
                    for metric in ("iou", "covers"):
                        key = f"{metric} at {threshold:g}"
                        columns[key] = columns.get(key, 0.0) + found[metric] / len(seen)
            row = ", ".join(named(name, value) for name, value in zip(GRID, values, strict=True))
            measured.append(Measured(f"grid: {row}", seed, columns))
    return measured


BOTH = tuple(f"{kind}: {OURS}" for kind in COUNTS.values())
CLAIMS: tuple[Claim, ...] = (
    Floor(
        "covers",
        "With the shipped options the box holds the whole of the true one in at least 90 % of scenes, "
        "of one and of two objects",
        BOTH,
        ("covers",),
        0.9,
    ),
    Floor(
        "iou",
        "With the shipped options the box's mean IoU with the true one is at least 0.5, of one and of two objects",
        BOTH,
        ("iou",),
        0.5,
    ),
)
OTHERS = (PAPERS, BY_WORDS, f"{OURS}, {BY_SHAPE}")
CONTRASTS = tuple((f"{kind}: {OURS}", f"{kind}: {other}") for kind in COUNTS.values() for other in OTHERS)

SUITE = Suite(
    "boxes",
    seeds=64,
    # Of these enough show two things of different shapes for a claim.
    full_seeds=160,
    run=run,
    claims=CLAIMS,
    contrasts=CONTRASTS,
    columns=tuple(f"{kind}, {name}" for kind in COUNTS.values() for name in (OURS, PAPERS)),
    parts=("vae", TEXTS, "judge", "unet"),
)
