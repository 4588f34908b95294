"""What the judge makes of pictures, and how far it can be trusted."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..demo.captions import PENCIL
from ..demo.judge import Judge, crop_boxes
from ..demo.render import mask_boxes
from ..demo.scenes import SIZE, Scenes
from .finding import find_things
from .records import Measured

OBJECT = ("shape", "colour", "surface")
PLACE = ("background", "style")
# Crops that the judge was trained on are 1.1 to 2 times as long as the object; masks are 0.85 to 1.6 times.
MASK_MARGIN = 1.25
OBJECT_MARGIN = 1.4

Values = list[dict[str, float | None]]


@torch.no_grad()
def verdicts(judge: Judge, crops: Tensor) -> dict[str, Tensor]:
    """The judge's choice for each attribute, (B,) class numbers. crops: (B, 3, 64, 64)."""
    return {name: logits.argmax(1) for name, logits in judge(crops).items()}


def crops_of_masks(image: Tensor, mask: Tensor, margin: float = MASK_MARGIN) -> Tensor:
    """The square around each mask's box. image: (B, H, W, 3). mask: (B, H, W), nowhere empty."""
    return crop_boxes(image, mask_boxes(mask), margin)


@torch.no_grad()
def likeness(judge: Judge, crops: Tensor, others: Tensor) -> Tensor:
    """Cosine of the judge's features, (B,). crops, others: (B or 1, 3, 64, 64)."""
    return torch.nn.functional.cosine_similarity(judge.features(crops), judge.features(others), dim=1)


def truth_of(scenes: Scenes, index: int = 0) -> dict[str, Tensor]:
    """Class numbers (B,) of each scene's object `index` and of its place; -1 for the colour of a pencil drawing."""
    truth = {name: getattr(scenes, name)[:, index] for name in OBJECT}
    truth["colour"] = torch.where(scenes.style == PENCIL, -1, truth["colour"])
    return {**truth, "background": scenes.background, "style": scenes.style}


def accuracy(found: dict[str, Tensor], truth: dict[str, Tensor], names: Sequence[str] = OBJECT) -> Values:
    """1 or 0 for each attribute of each picture, None where there is no truth, and `all`: every one that has one."""
    rows: Values = []
    for row in range(len(truth[names[0]])):
        values: dict[str, float | None] = {}
        for name in names:
            wanted = int(truth[name][row])
            values[name] = None if wanted < 0 else float(int(found[name][row]) == wanted)
        told = [value for value in values.values() if value is not None]
        rows.append({**values, "all": min(told)})
    return rows


def shuffled(truth: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The same labels dealt out to other pictures, none to its own: what a judge that saw nothing would score."""
    shift = 1 + seed % (len(truth["style"]) - 1)
    return {name: values.roll(shift) for name, values in truth.items()}


def rows_of(name: str, seeds: Sequence[int], values: Values) -> list[Measured]:
    return [Measured(name, seed, one) for seed, one in zip(seeds, values, strict=True)]


def trust_rows(
    judge: Judge, real: Tensor, round_trip: Tensor, scenes: Scenes, seeds: Sequence[int], names: Sequence[str] = OBJECT
) -> list[Measured]:
    """The judge on crops (B, 3, 64, 64) of real scenes, of the same through the VAE, and with the labels shuffled
    where there are several.

    The round trip is the ceiling of everything that is painted.
    """
    truth = truth_of(scenes)
    found = verdicts(judge, real)
    rows = [
        *rows_of("judge: real crops", seeds, accuracy(found, truth, names)),
        *rows_of("judge: real crops through the VAE", seeds, accuracy(verdicts(judge, round_trip), truth, names)),
    ]
    if len(seeds) > 1:
        rows += rows_of("judge: labels shuffled", seeds, accuracy(found, shuffled(truth, seeds[0]), names))
    return rows


def judge_one(judge: Judge, image: Tensor, scenes: Scenes) -> Values:
    """Pictures of one thing: its place is judged by the whole picture, itself by the box in which it is found."""
    whole = torch.tensor([[0, 0, SIZE, SIZE]]).expand(len(image), -1)
    place = verdicts(judge, crop_boxes(image, whole, 1.0))
    thing = verdicts(judge, crop_boxes(image, find_things(image, scenes, 1)[:, 0], 1.0))
    found = {name: (place if name in PLACE else thing)[name] for name in (*PLACE, *OBJECT)}
    return accuracy(found, truth_of(scenes), (*PLACE, *OBJECT))


def judge_two(judge: Judge, image: Tensor, scenes: Scenes) -> Values:
    """Pictures of two things, the first named on the left, as every such scene has them.

    Both shapes and both colours are right if each half's are; `bound`: both at once. Pencil drawings have no colours.
    """
    boxes = find_things(image, scenes, 2)
    rows: Values = [{"both shapes": 1.0, "both colours": 1.0, "bound": 1.0} for _ in range(len(scenes))]
    for side in range(2):
        found = accuracy(verdicts(judge, crop_boxes(image, boxes[:, side], 1.0)), truth_of(scenes, side))
        for row, one in zip(rows, found, strict=True):
            row["both shapes"] *= one["shape"]
            told = one["colour"] is not None
            row["both colours"] = row["both colours"] * one["colour"] if told else None
            row["bound"] = row["bound"] * one["shape"] * one["colour"] if told else None
    return rows
