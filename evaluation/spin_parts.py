"""Spin's paint job with or without each of its parts; seeds, noise and steps are the same for all of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..demo.judge import Judge, crop_boxes
from ..demo.render import mask_boxes, render
from ..demo.scenes import SIZE, draw_scenes
from ..guidance.paste import paste_back
from ..guidance.trajectory import Trajectory
from ..host.demo_world import DemoModels
from ..host.painting import PaintSettings, paint
from ..host.pictures import decode_picture, encode_picture
from ..host.region_patches import guide_region
from ..host.regions import Region
from ..host.style_guidance_patch import StyleOptions, guide_by_style
from . import judging
from .measures import exact_outside, psnr_outside, seam
from .records import Measured

STEPS = 30
CFG = 5.0
INVERSION_STEPS = 50
# The largest square in a round-cornered mask, in sides of its box: the judge then sees painted pixels alone.
INSIDE_MARGIN = 0.84
AS_RETURNED = "as the node returns it"


@dataclass(frozen=True)
class Parts:
    """background: as in PaintSettings. region: the texts outside it (ARG), None for no region guidance. style: of
    style guidance with the scene as its style, None for none. steps: of the sampler, None for STEPS. repeats: of each.
    """

    background: str = "inverted"
    region: str | None = "zero"
    style: StyleOptions | None = None
    steps: int | None = None
    repeats: int = 1


@dataclass(frozen=True)
class Canvas:
    """Scenes (B, H, W, 3) with places to fill, and what is to stand there. empty: CONDITIONING of the empty text."""

    models: DemoModels
    image: Tensor
    mask: Tensor
    positive: list
    empty: list
    trajectory: Trajectory
    seed: int
    candidates: int = 1

    def paint(self, parts: Parts, paste: str = "none") -> Tensor:
        """(candidates * B, H, W, 3) before the paste unless told otherwise, candidate after candidate."""
        models, model = self.models, self.models.model
        if parts.region is not None:
            model = guide_region(model, [Region(self.mask)], parts.region, self.empty[0][0])
        if parts.style is not None:
            model = guide_by_style(model, models.vae, self.image, self.mask, models.clip_vision, parts.style)
        settings = PaintSettings(
            steps=parts.steps or STEPS,
            cfg=CFG,
            seed=self.seed,
            candidates=self.candidates,
            background=parts.background,
            repeats=parts.repeats,
            paste=paste,
        )
        path = self.trajectory if parts.background == "inverted" else None
        texts = self.positive, self.empty
        return paint(model, *texts, models.vae, self.image, self.mask, settings, path)[0]

    def asking(self, positive: list) -> "Canvas":
        return replace(self, positive=positive)


def through_vae(models: DemoModels, image: Tensor) -> Tensor:
    return decode_picture(models.vae, encode_picture(models.vae, image), SIZE, SIZE)


def judge_trust(models: DemoModels, judge: Judge, seeds: list[int]) -> list[Measured]:
    """judging.trust_rows for suites whose own scenes show what no label names: one named thing a scene."""
    scenes = draw_scenes(seeds, objects=1, holding_out=True)
    shown = render(scenes)
    crops = (
        judging.crops_of_masks(image, shown.masks[:, 0]) for image in (shown.image, through_vae(models, shown.image))
    )
    return judging.trust_rows(judge, *crops, scenes, seeds, (*judging.OBJECT, *judging.PLACE))


def crops_inside(image: Tensor, mask: Tensor) -> Tensor:
    """(B, 3, 64, 64) of nothing but the masks' inside, also of masks that the picture's edge cuts."""
    boxes = mask_boxes(mask)
    sides = boxes[:, 2:].float()
    return crop_boxes(image, boxes, INSIDE_MARGIN * sides.amin(1) / sides.amax(1))


def style_agreement(judge: Judge, painted: Tensor, mask: Tensor, style: Tensor) -> judging.Values:
    """Whether the judge finds the scene's style in the painted pixels alone, and how probable it finds it.

    painted: (B, H, W, 3) before any paste. mask: (B, H, W). style: (B,) of the scenes.
    """
    with torch.no_grad():
        shares = judge(crops_inside(painted, mask))["style"].softmax(1)
    return [
        {"style": float(int(share.argmax()) == wanted), "style probability": float(share[wanted])}
        for share, wanted in zip(shares, style.tolist(), strict=True)
    ]


def keeping(painted: Tensor, image: Tensor, mask: Tensor, real: Tensor) -> tuple[Tensor, judging.Values]:
    """The pictures with the scene's own background, and how well it was kept. real: the scene with the wish fulfilled.

    Background PSNR is taken before the paste and does not exist where nothing changed, the seam after it.
    """
    pasted = paste_back(image, painted, mask)
    columns = {
        "background PSNR": psnr_outside(painted, image, mask),
        "seam": seam(pasted, real, mask),
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return pasted, [
        {name: value if math.isfinite(value) else None for name, value in zip(columns, row, strict=True)}
        for row in rows
    ]


def as_returned(returned: Tensor, image: Tensor, mask: Tensor, seeds: Sequence[int]) -> list[Measured]:
    """What painting itself returns, candidate after candidate, which no other row shows: those are pasted by a suite.

    returned: (candidates * B, H, W, 3). image: (B, H, W, 3). mask: (B, H, W).
    """
    count = len(returned) // len(seeds)
    exact = exact_outside(returned, image.repeat(count, 1, 1, 1), mask.repeat(count, 1, 1))
    worst = exact.unflatten(0, (count, len(seeds))).amin(0).tolist()
    values = [{"background exact": one} for one in worst]
    return judging.rows_of(AS_RETURNED, seeds, values)


def merged(*columns: Sequence[dict[str, float | None]]) -> judging.Values:
    """The values of each picture from all columns."""
    return [{name: value for one in row for name, value in one.items()} for row in zip(*columns, strict=True)]
