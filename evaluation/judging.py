"""What the judge makes of pictures, and how far it can be trusted."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..demo.captions import PENCIL
from ..demo.judge import Judge, crop_boxes
from ..demo.render import mask_boxes
from ..demo.scenes import Scenes
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
    """The same labels dealt out to other pictures: what a judge that saw nothing would score."""
    order = torch.randperm(len(truth["style"]), generator=torch.Generator().manual_seed(seed))
    return {name: values[order] for name, values in truth.items()}


def rows_of(name: str, seeds: Sequence[int], values: Values) -> list[Measured]:
    return [Measured(name, seed, one) for seed, one in zip(seeds, values, strict=True)]


def trust_rows(
    judge: Judge, real: Tensor, round_trip: Tensor, scenes: Scenes, seeds: Sequence[int], names: Sequence[str] = OBJECT
) -> list[Measured]:
    """The judge on crops (B, 3, 64, 64) of real scenes, of the same through the VAE, and with the labels shuffled.

    The round trip is the ceiling of everything that is painted.
    """
    truth = truth_of(scenes)
    found = verdicts(judge, real)
    return [
        *rows_of("judge: real crops", seeds, accuracy(found, truth, names)),
        *rows_of("judge: real crops through the VAE", seeds, accuracy(verdicts(judge, round_trip), truth, names)),
        *rows_of("judge: labels shuffled", seeds, accuracy(found, shuffled(truth, seeds[0]), names)),
    ]


@torch.no_grad()
def judge_two(judge: Judge, image: Tensor, scenes: Scenes) -> Values:
    """Pictures of two things, the first named on the left, as every such scene has them.

    Where each stands up and down is not known: of crops along its half, the one that the judge is surest of counts.
    Both shapes and both colours are right if each half's are; `bound`: both at once. Pencil drawings have no colours.
    """
    chosen = [_surest(judge, image, centre) for centre in (32, 96)]
    rows: Values = []
    for row in range(len(scenes)):
        right = {
            name: float(
                all(int(found[name][row]) == int(getattr(scenes, name)[row, side]) for side, found in enumerate(chosen))
            )
            for name in ("shape", "colour")
        }
        told = int(scenes.style[row]) != PENCIL
        colours = right["colour"] if told else None
        bound = right["shape"] * right["colour"] if told else None
        rows.append({"both shapes": right["shape"], "both colours": colours, "bound": bound})
    return rows


def _surest(judge: Judge, image: Tensor, centre: int, side: int = 64) -> dict[str, Tensor]:
    """Verdicts (B,) on the crop, of those centred at x = `centre` pixels, with the most certain shape and colour."""
    heights = range(24, 105, 8)
    sure, found = [], []
    for y in heights:
        box = torch.tensor([[centre - side / 2, y - side / 2, side, side]]).expand(len(image), -1)
        logits = judge(crop_boxes(image, box, 1.0))
        certainty = [logits[name].log_softmax(1).amax(1) for name in ("shape", "colour")]
        sure.append(sum(certainty))
        found.append({name: logits[name].argmax(1) for name in ("shape", "colour")})
    best = torch.stack(sure).argmax(0)
    rows = torch.arange(len(image))
    return {name: torch.stack([one[name] for one in found])[best, rows] for name in ("shape", "colour")}
