"""Does region guidance raise what a mask shows of its prompt above background replacement alone (Spin, table 3)?

Every seed is one task: a thing that no training picture shows in that style is asked for in a place of a scene. Masks
smaller than the thing, its size and larger, prompts with and without words for style and place, and empty places and
such where another thing stands, take turns by seed. All rows share seeds, noise and steps.

Inlay's rows start from the surroundings continued into the mask, as Paint Into Mask does by default; two rows start
from noise alone, as Spin's formula reads, and from the old picture, as the host does. `fixed` from the old picture is
the host's way but for the cells on the mask's border, which Inlay paints whole at first and by their share at the end.

The shipped workflow takes fewer steps and does each several times, with noise in between (RePaint). Its rows stand
beside as many forwards without repeats.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ...demo.judge import Judge, load_judge
from ...demo.weights import load_part, weights_path
from ...guidance.paste import paste_back
from ...host.clip_pairs import embed_pictures, embed_text
from ...host.demo_world import DemoModels, load_demo_models
from .. import judging
from ..claims import Above, Claim, Floor
from ..measures import CUT_SHARE, cut_share, find_object, psnr_outside, seam
from ..paint_tasks import SIZES
from ..records import Measured
from ..spin_parts import AS_RETURNED, as_returned
from ..study import Study, Suite
from .text_paint_rows import (
    ARG,
    AS_MANY,
    AS_MANY_STEPS,
    BATCH,
    FIXED,
    FROM_NOISE,
    FROM_PICTURE,
    HOST,
    INLAY,
    MASKED_OUTPUT,
    PLAIN,
    RENOISED,
    REPEATED,
    SHIPPED,
    SHIPPED_OUTSIDE,
    TIMES,
    Batch,
    Rows,
    paint_rows,
    prepare,
    repeating_rows,
    shipped_job,
    through_vae,
)

# Pixels, the default of Paint Into Mask.
FEATHER = 4
RETURNED_EVERY = 4
DIVIDED = (PLAIN, *ARG.values())


def run(study: Study) -> None:
    load_part("unet")
    models, judge = load_demo_models("text"), load_judge(weights_path("judge"))
    study.measure("painting", BATCH, partial(_measure, study, models, judge, paint_rows))
    study.measure("repeating", BATCH, partial(_measure, study, models, judge, repeating_rows))
    study.measure("exact paste", BATCH, partial(_returned, models))


def _measure(
    study: Study,
    models: DemoModels,
    judge: Judge,
    rows_of: Callable[[DemoModels, Batch], Rows],
    seeds: list[int],
) -> list[Measured]:
    batch = prepare(models, seeds)
    tasks = batch.tasks
    words = torch.stack([embed_text(models.clip, models.clip_vision, text) for text in tasks.captions])
    for row, seed in enumerate(seeds):
        label = f"{batch.asked[row]} ({', '.join(batch.traits[row])})"
        study.show(seed, "scene", label, tasks.image[row])
        study.show(seed, "mask", "", tasks.mask[row])

    def values_of(painted: Tensor, original: Tensor, seconds: float | None) -> judging.Values:
        pasted = paste_back(original, painted, tasks.mask)
        crops = judging.crops_of_masks(pasted, tasks.mask)
        values = judging.accuracy(judging.verdicts(judge, crops), judging.truth_of(tasks.wanted))
        score = (embed_pictures(models.clip_vision, crops.movedim(1, -1)) * words).sum(1)
        cut = cut_share(find_object(painted, batch.empty, tasks.mask), tasks.mask)
        columns = {
            "tiny CLIP text": score,
            "background PSNR": psnr_outside(painted, original, tasks.mask),
            "seam": seam(pasted, tasks.truth.image, tasks.mask),
            "seam feathered": seam(paste_back(original, painted, tasks.mask, FEATHER), tasks.truth.image, tasks.mask),
            "cut": cut,
        }
        for row, one in enumerate(values):
            one.update({name: _number(column[row]) for name, column in columns.items()})
            one["seconds"] = seconds
        return values

    measured = []
    for name, paint_row in rows_of(models, batch).items():
        began = time.perf_counter()
        painted = paint_row()
        seconds = time.perf_counter() - began + (batch.inversion_seconds if name.startswith("inverted") else 0)
        values = values_of(painted, tasks.image, seconds / len(seeds))
        measured += judging.rows_of(name, seeds, values)
        if name in DIVIDED:
            measured += _divided(name, batch, values)
        pasted = paste_back(tasks.image, painted, tasks.mask)
        for row, seed in enumerate(seeds):
            study.show(seed, name, "", pasted[row])
    if rows_of is not paint_rows:
        return measured
    round_trip = through_vae(models, tasks.truth.image)
    ceiling = values_of(round_trip, tasks.truth.image, None)
    measured += judging.rows_of("ceiling: the wanted scene through the VAE", seeds, ceiling)
    crops = (judging.crops_of_masks(image, tasks.mask) for image in (tasks.truth.image, round_trip))
    return measured + judging.trust_rows(judge, *crops, tasks.wanted, seeds)


def _returned(models: DemoModels, seeds: list[int]) -> list[Measured]:
    if seeds[0] // BATCH % RETURNED_EVERY:
        return []
    batch = prepare(models, seeds)
    return as_returned(shipped_job(models, batch), batch.tasks.image, batch.tasks.mask, seeds)


def _number(value: Tensor) -> float | None:
    """None for what could not be measured, such as the outline of a thing that is not there."""
    return float(value) if torch.isfinite(value) else None


def _divided(name: str, batch: Batch, values: judging.Values) -> list[Measured]:
    """The same values under the row's name with each trait of their task, and by whether the thing is cut."""
    rows = []
    for seed, traits, one in zip(batch.seeds, batch.traits, values, strict=True):
        cut = one["cut"]
        told = [] if cut is None else ["things cut" if cut > CUT_SHARE else "things whole"]
        rows += [Measured(f"{name}; {trait}", seed, one) for trait in [*traits, *told]]
    return rows


CLAIMS: tuple[Claim, ...] = (
    Floor(
        "background-exact",
        "In what Paint Into Mask returns every pixel outside the mask is the original's, bit for bit",
        (AS_RETURNED,),
        ("background exact",),
        1.0,
        needed=32,
    ),
    Above(
        "arg-over-background",
        f"Judge, all attributes in the mask: ARG (outside {SHIPPED_OUTSIDE}) above background replacement alone",
        SHIPPED,
        PLAIN,
        "all",
    ),
    Above(
        "arg-over-masked-output",
        f"Judge, all attributes in the mask: ARG (outside {SHIPPED_OUTSIDE}) above masking attention's output only",
        SHIPPED,
        MASKED_OUTPUT,
        "all",
    ),
    Above(
        "repeats-raise-agreement",
        f"Judge, all attributes in the mask: {TIMES} above {AS_MANY_STEPS} of as many forwards, with ARG",
        REPEATED[SHIPPED],
        AS_MANY,
        "all",
        needed=64,
    ),
)
TRAITS = (*(f"mask {size}" for size in SIZES), "prompt with place", "prompt without place")
CONTRASTS = (
    (ARG["zero"], PLAIN),
    (ARG["null"], PLAIN),
    (ARG["null"], ARG["zero"]),
    (SHIPPED, MASKED_OUTPUT),
    (PLAIN, HOST),
    (FROM_PICTURE, HOST),
    (FIXED, FROM_PICTURE),
    (PLAIN, FROM_NOISE),
    (PLAIN, RENOISED),
    (PLAIN, FIXED),
    (REPEATED[SHIPPED], SHIPPED),
    (REPEATED[PLAIN], PLAIN),
    (REPEATED[SHIPPED], REPEATED[PLAIN]),
    (REPEATED[SHIPPED], AS_MANY),
    (AS_MANY, SHIPPED),
    *((f"{SHIPPED}; {trait}", f"{PLAIN}; {trait}") for trait in TRAITS),
)

SUITE = Suite(
    "text-paint",
    seeds=96,
    full_seeds=256,
    run=run,
    claims=CLAIMS,
    contrasts=CONTRASTS,
    columns=("scene", "mask", HOST, *INLAY, *REPEATED.values(), AS_MANY),
    parts=("vae", "clip", "judge", "unet"),
)
