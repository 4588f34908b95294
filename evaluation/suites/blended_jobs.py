"""The jobs that the rows of suite `blended` are made of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...demo.judge import Judge
from ...demo.render import render
from ...demo.tasks import Tasks, draw_tasks
from ...guidance.paste import paste_back
from ...host.blend_reference import paint_with_offset
from ...host.blending import ALGORITHMS
from ...host.clip_guidance_patch import ClipOptions, guide_to_targets
from ...host.clip_pairs import embed_pictures, embed_text
from ...host.demo_world import DemoModels
from ...host.generate import encode_texts
from ...host.painting import PaintSettings, paint
from ...host.pictures import decode_picture, encode_picture
from .. import judging
from ..measures import psnr_outside, seam
from ..study import Study

CFG = 5.0
# The authors' own: 75 of 100 steps are run. The shipped workflows start where each job asks for, 0.5 to 1.
START = 0.75
# The workflows'; and what CLIP gets where it has to do everything alone. Both chosen on 8 to 24 tuning seeds, out of
# strengths and views; the gradient through the UNet did more alone, and nothing more beside the text.
BESIDE_TEXT = ClipOptions(strength=0.2, augmentations=3, view="crop")
ALONE = ClipOptions(strength=0.4, augmentations=8, view="crop", mode="exact")


@dataclass(frozen=True)
class World:
    """What a run has loaded."""

    study: Study
    models: DemoModels
    judge: Judge


@dataclass(frozen=True)
class Batch:
    """Tasks and how they are told: to CLIP as unit embeddings (B, 1, D), to the model as conditioning.

    empty: the places with nothing in them, through the VAE.
    """

    seeds: list[int]
    tasks: Tasks
    words: Tensor
    told: list
    untold: list
    empty: Tensor


@dataclass(frozen=True)
class Edit:
    """One row's edit. told: whether the model knows the text. clip: the guidance, None for none."""

    told: bool
    clip: ClipOptions | None
    algorithm: str = "ddpm"
    steps: int = 20
    denoise: float = START

    def augmented(self, copies: int) -> "Edit":
        return replace(self, clip=replace(self.clip, augmentations=copies))

    def settings(self, seed: int, **others: object) -> PaintSettings:
        background, sampler = ALGORITHMS[self.algorithm]
        cfg = CFG if self.told else 1.0
        given = {"background": background, "sampler": sampler, "paste": "none", **others}
        return PaintSettings(steps=self.steps, denoise=self.denoise, cfg=cfg, seed=seed, **given)


def draw_edits(models: DemoModels, seeds: list[int]) -> Batch:
    """Something new where nothing stands for even seeds, where something else stands for odd ones."""
    fill, other = (draw_tasks(seeds, kind, holding_out=True) for kind in ("fill", "replace"))
    emptied = torch.tensor([seed % 2 == 0 for seed in seeds]).view(-1, 1, 1, 1)
    return as_batch(models, seeds, replace(fill, image=torch.where(emptied, fill.image, other.image)))


def as_batch(models: DemoModels, seeds: list[int], tasks: Tasks) -> Batch:
    words = torch.stack([embed_text(models.clip, models.clip_vision, text) for text in tasks.captions])
    told, untold = encode_texts(models.clip, tasks.captions), encode_texts(models.clip, [""])
    empty = through_vae(models, render(tasks.wanted.emptied()).image)
    return Batch(seeds, tasks, words[:, None], told, untold, empty)


def through_vae(models: DemoModels, image: Tensor) -> Tensor:
    return decode_picture(models.vae, encode_picture(models.vae, image), *image.shape[1:3])


def guided(models: DemoModels, batch: Batch, clip: ClipOptions | None):
    if clip is None:
        return models.model
    image = batch.tasks.image if clip.background_weight > 0 else None
    parts = models.model, models.vae, models.clip_vision
    return guide_to_targets(*parts, batch.words, batch.tasks.mask, image, clip)


def paint_edit(models: DemoModels, batch: Batch, edit: Edit) -> Tensor:
    """Pictures before any paste."""
    texts = (batch.told if edit.told else batch.untold), batch.untold
    job = batch.tasks.image, batch.tasks.mask, edit.settings(batch.seeds[0])
    return paint(guided(models, batch, edit.clip), *texts, models.vae, *job)[0]


def paint_over(models: DemoModels, batch: Batch, edit: Edit, background: str, offset: int, trajectory) -> Tensor:
    """The same over another background, which lags `offset` levels behind."""
    texts = (batch.told if edit.told else batch.untold), batch.untold
    settings = edit.settings(batch.seeds[0], background=background)
    job = batch.tasks.image, batch.tasks.mask, settings, trajectory, offset
    return paint_with_offset(guided(models, batch, edit.clip), *texts, models.vae, *job)


def judged(world: World, batch: Batch, painted: Tensor) -> judging.Values:
    """The judge, the demo's own CLIP on the same crop, and what the place around shows, after an exact paste."""
    tasks = batch.tasks
    pasted = paste_back(tasks.image, painted, tasks.mask)
    crops = judging.crops_of_masks(pasted, tasks.mask)
    values = judging.accuracy(judging.verdicts(world.judge, crops), judging.truth_of(tasks.wanted))
    seen = embed_pictures(world.models.clip_vision, crops.movedim(1, -1))
    columns = {
        "tiny CLIP text": (seen * batch.words[:, 0]).sum(1),
        "background PSNR": psnr_outside(painted, tasks.image, tasks.mask),
        "seam": seam(pasted, tasks.truth.image, tasks.mask),
    }
    for row, one in enumerate(values):
        one.update({name: number(column[row]) for name, column in columns.items()})
    return values


def number(value: Tensor) -> float | None:
    """None for what could not be measured."""
    return float(value) if torch.isfinite(value) else None


def every(seeds: Sequence[int], step: int) -> list[int]:
    """The seeds that a costly part measures."""
    return [seed for seed in seeds if seed % step == 0]


def show_scenes(world: World, batch: Batch) -> None:
    for row, seed in enumerate(batch.seeds):
        world.study.show(seed, "scene", batch.tasks.captions[row], batch.tasks.image[row])
        world.study.show(seed, "mask", "", batch.tasks.mask[row])


def show_pasted(world: World, batch: Batch, column: str, painted: Tensor) -> None:
    pasted = paste_back(batch.tasks.image, painted, batch.tasks.mask)
    for row, seed in enumerate(batch.seeds):
        world.study.show(seed, column, "", pasted[row])
