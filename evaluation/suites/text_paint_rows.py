"""The rows of suite `text-paint`: what paints a batch of its tasks."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ...demo.render import render
from ...demo.scenes import SIZE
from ...demo.tasks import Tasks
from ...guidance.trajectory import Trajectory
from ...host.demo_world import DemoModels
from ...host.generate import encode_texts, inpaint_as_the_host
from ...host.inversion import invert_image
from ...host.painting import PaintSettings, paint
from ...host.pictures import decode_picture, encode_picture
from ...host.region_patches import guide_region
from ...host.regions import Region
from ..paint_tasks import draw

BATCH = 8
STEPS = 30
CFG = 5.0
INVERSION_STEPS = 50
# What the shipped workflows use: on 48 tuning seeds "all" was .125 [.021, .229] higher than with null.
SHIPPED_OUTSIDE = "zero"
# And what text-paint does with 60 forwards: of 20 x 3, 15 x 4, 30 x 2 and 60 x 1, on 48 tuning seeds of suite `style`.
SHIPPED_STEPS, SHIPPED_REPEATS = 20, 3

HOST = "host inpainting (noise mask)"
PLAIN = "inverted, no ARG"
ARG = {outside: f"inverted + ARG, outside {outside}" for outside in ("zero", "null")}
MASKED_OUTPUT = "inverted + masked attention output"
RENOISED, FIXED = "renoised, no ARG", "fixed, no ARG"
FROM_NOISE, FROM_PICTURE = "inverted, no ARG, from noise", "fixed, no ARG, from the picture"
SHIPPED = ARG[SHIPPED_OUTSIDE]
TIMES = f"{SHIPPED_STEPS} steps, each {SHIPPED_REPEATS} times"
AS_MANY_STEPS = f"{SHIPPED_STEPS * SHIPPED_REPEATS} steps"
REPEATED = {name: f"{name}, {TIMES}" for name in (SHIPPED, PLAIN)}
AS_MANY = f"{SHIPPED}, {AS_MANY_STEPS}"
AS_MANY_EVERY = 4
INLAY = (PLAIN, *ARG.values(), MASKED_OUTPUT, RENOISED, FIXED, FROM_NOISE, FROM_PICTURE)


@dataclass(frozen=True)
class Batch:
    """Tasks, what every row needs of them, and the seeds of their noise. traits: each task's words for its kind."""

    seeds: list[int]
    tasks: Tasks
    asked: list[str]
    traits: list[list[str]]
    empty: Tensor
    trajectory: Trajectory
    positive: list
    negative: list
    inversion_seconds: float


def prepare(models: DemoModels, seeds: list[int]) -> Batch:
    tasks, asked, traits = draw(seeds)
    negative = encode_texts(models.clip, [""])
    began = time.perf_counter()
    trajectory, _ = invert_image(models.model, models.vae, tasks.image, positive=negative, steps=INVERSION_STEPS)
    seconds = time.perf_counter() - began
    empty = through_vae(models, render(tasks.wanted.emptied()).image)
    positive = encode_texts(models.clip, asked)
    return Batch(seeds, tasks, asked, traits, empty, trajectory, positive, negative, seconds)


def through_vae(models: DemoModels, image: Tensor) -> Tensor:
    return decode_picture(models.vae, encode_picture(models.vae, image), SIZE, SIZE)


Rows = dict[str, Callable[[], Tensor]]


def paint_rows(models: DemoModels, batch: Batch) -> Rows:
    """What paints the batch's pictures (B, H, W, 3) before the paste, by row of the report."""

    def by_the_host() -> Tensor:
        job = models.vae, batch.tasks.image, batch.tasks.mask, batch.seeds[0], STEPS, CFG
        latent = inpaint_as_the_host(models.model, batch.positive, batch.negative, *job)
        return decode_picture(models.vae, latent, SIZE, SIZE)

    over = partial(_over, models, batch)
    return {
        HOST: by_the_host,
        PLAIN: partial(over, "inverted"),
        ARG["zero"]: partial(over, "inverted", "zero"),
        ARG["null"]: partial(over, "inverted", "null"),
        MASKED_OUTPUT: partial(over, "inverted", "zero", "masked_output"),
        RENOISED: partial(over, "renoised"),
        FIXED: partial(over, "fixed"),
        FROM_NOISE: partial(over, "inverted", start="noise"),
        FROM_PICTURE: partial(over, "fixed", start="picture"),
    }


def repeating_rows(models: DemoModels, batch: Batch) -> Rows:
    over = partial(_over, models, batch, "inverted")
    repeated = {"steps": SHIPPED_STEPS, "repeats": SHIPPED_REPEATS}
    found = {
        REPEATED[SHIPPED]: partial(over, SHIPPED_OUTSIDE, **repeated),
        REPEATED[PLAIN]: partial(over, **repeated),
    }
    if batch.seeds[0] // BATCH % AS_MANY_EVERY == 0:
        found[AS_MANY] = partial(over, SHIPPED_OUTSIDE, steps=SHIPPED_STEPS * SHIPPED_REPEATS)
    return found


def shipped_job(models: DemoModels, batch: Batch) -> Tensor:
    """The pictures as the node returns them, pasted back."""
    options = {"steps": SHIPPED_STEPS, "repeats": SHIPPED_REPEATS, "paste": "exact"}
    return _over(models, batch, "inverted", SHIPPED_OUTSIDE, **options)


def _over(
    models: DemoModels,
    batch: Batch,
    background: str,
    outside: str | None = None,
    form: str = "region",
    **options: str | int,
) -> Tensor:
    """Paints over that background. outside: of the region guidance, None for none."""
    image, mask, model = batch.tasks.image, batch.tasks.mask, models.model
    if outside is not None:
        model = guide_region(model, [Region(mask)], outside, batch.negative[0][0], form=form)
    given = {"steps": STEPS, "cfg": CFG, "seed": batch.seeds[0], "background": background, "paste": "none"}
    trajectory = batch.trajectory if background == "inverted" else None
    texts = batch.positive, batch.negative
    return paint(model, *texts, models.vae, image, mask, PaintSettings(**{**given, **options}), trajectory)[0]
