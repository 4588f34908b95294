"""A thing taken out of a box and one put into an empty box, as rows of the suite `swap` (InstantSwap, section 4.4)."""

from dataclasses import replace

import torch
from torch import Tensor

from ..demo.render import render
from ..demo.scenes import SIZE
from ..demo.tasks import task_captions
from ..guidance.metrics import psnr
from ..host.swap import swap_picture
from ..host.swap_settings import SwapSettings, SwapTexts
from .measures import LEAST_OBJECT, find_object
from .records import Measured
from .study import Study
from .swap_look import Look, through_vae
from .swap_scenes import Job

NOTHING = "nothing"
REMOVAL, INSERTION = "removal", "insertion"
NULL, TOLD = "null prompt and null region (paper)", "told of nothing in the place"
REMOVALS = (f"{REMOVAL}: {NULL}", f"{REMOVAL}: null region, {TOLD}", f"{REMOVAL}: {TOLD}")
INSERTIONS = (f"{INSERTION}: null region at the source, {TOLD}", f"{INSERTION}: {TOLD}")


def removal_texts(job: Job) -> dict[str, SwapTexts]:
    """By row: what is said of the scene, and of the same without its thing."""
    told, empty = job.texts(), task_captions(job.scene.emptied())[0]
    said = ("", ""), (empty, ""), (empty, job.phrase(NOTHING))
    return {
        name: replace(told, target=target, target_concept=phrase)
        for name, (target, phrase) in zip(REMOVALS, said, strict=True)
    }


def insertion_texts(job: Job) -> dict[str, SwapTexts]:
    told, empty = job.texts(), task_captions(job.scene.emptied())[0]
    return {
        name: replace(told, source=empty, source_concept=phrase)
        for name, phrase in zip(INSERTIONS, ("", job.phrase(NOTHING)), strict=True)
    }


def alone(study: Study, look: Look, job: Job, settings: SwapSettings) -> list[Measured]:
    """One scene's thing is to go, and the wished thing is to come to the same scene without it."""
    settings = replace(settings, seed=job.seed)
    bare = render(job.scene.emptied()).image
    empty = through_vae(look.models, bare)
    measured = []
    pictures = {name: _swapped(look, job, texts, settings) for name, texts in removal_texts(job).items()}
    limits = {f"{REMOVAL}: nothing done": through_vae(look.models, job.image), f"{REMOVAL}: ceiling": empty}
    for name, image in {**pictures, **limits}.items():
        measured.append(Measured(name, job.seed, _left(look, job, image, bare, empty)))
    filled = replace(job, image=bare)
    for name, texts in insertion_texts(filled).items():
        pictures[name] = _swapped(look, filled, texts, settings)
        values = look.values(filled, pictures[name], job.box)
        # There never was an old thing.
        del values["old gone"]
        measured.append(Measured(name, job.seed, values))
    for name, image in pictures.items():
        study.show(job.seed, name, "", image[0])
    return measured


def _swapped(look: Look, job: Job, texts: SwapTexts, settings: SwapSettings) -> Tensor:
    models = look.models
    mask = torch.ones(1, SIZE, SIZE)
    return swap_picture(models.model, None, models.clip, models.vae, job.image, mask, texts, settings, bbox=job.box)[0]


def _left(look: Look, job: Job, image: Tensor, bare: Tensor, empty: Tensor) -> dict[str, float | None]:
    """What of the box is unlike the empty place, and what around it changed."""
    left = float(find_object(image, empty, job.mask).sum() / job.mask.sum())
    return {
        "something left": float(left > LEAST_OBJECT),
        "share of the box unlike the empty place": left,
        "PSNR to the empty place": float(psnr(image.movedim(-1, 1), bare.movedim(-1, 1), job.mask)),
        **look.background(job, image, job.mask),
    }
