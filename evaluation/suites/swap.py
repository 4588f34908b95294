"""Does InstantSwap put another thing in a box better than the older methods, and keep what is around it (its tables 1
to 5)?

Every seed is one scene with one thing and one of ten target concepts, told by words or learned (see swap_scenes). The
older methods get the same texts, and neither box nor phrases. Background measures are taken before any paste, on what
lies outside the true box, or the one that was found where the row says so. One seed in eight has its thing removed
too, and the new one inserted where nothing stands. PhotoSwap, PnPInv+P2P and CoSD of the paper's tables are out of
scope.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...attention.boxes import Box
from ...attention.overlay import overlay
from ...demo.judge import Judge, load_judge
from ...demo.render import render
from ...demo.scenes import SIZE, draw_scenes
from ...demo.weights import file_hash, load_part, weights_path
from ...host.concept_training import learn_concept
from ...host.demo_world import DemoModels, load_demo_models
from ...host.embeddings_folder import embeddings_in
from ...host.find_box import find_boxes
from ...host.swap import swap_picture
from ...host.swap_settings import SwapSettings
from ...training.concept import ConceptSettings
from .. import judging
from ..claims import Above
from ..non_inferiority import NotBelow
from ..records import Measured
from ..study import Study, Suite
from ..swap_alone import INSERTIONS, REMOVALS, alone
from ..swap_look import Look, through_vae
from ..swap_rows import (
    ALL_ROWS,
    AUTHORS,
    CDS,
    CDS_WEAKER,
    DDS,
    EVERY_STEP,
    NO_BGM,
    NO_SECR,
    OUR_BOX,
    OUR_BOX_BY_OURS,
    OURS,
    PAPERS,
    SDS,
    TRUE_BOX_BY_OURS,
    Row,
    gradients,
    swap_rows,
)
from ..swap_scenes import BY_WORDS, CONCEPTS, Job, concept_name, draw_job, learning_pictures
from .boxes import SHIPPED as BOX_OPTIONS

# Of how many seeds one measures lambda 1, which takes as long as five others; what no claim needs; and CDS, as long as
# four others, as well as removal and insertion, together as long as five.
HALVED, SPARSE, RARE = 2, 4, 8
TRUST = 16
# As the shipped workflow learns.
LEARNING = ConceptSettings(init_word="thing", learning_rate=0.005, preview_every=0, resume=False)
DIVIDED = (OURS, DDS)


def run(study: Study) -> None:
    load_part("unet")
    judge = load_judge(weights_path("judge"))
    folder = embeddings_folder(study)
    with embeddings_in(folder):
        models = load_demo_models("text")
        learn(models, folder)
        rows = swap_rows(HALVED, SPARSE, RARE)
        study.measure("swaps", 1, partial(_measure, study, models, judge, rows))
        study.measure("alone", 1, partial(_alone, study, Look(models, judge), rows[OURS]))
        study.measure("judge", TRUST, partial(_trust, models, judge))


def embeddings_folder(study: Study) -> Path:
    """Where a run's learned concepts lie: other weights learn others."""
    learned_on = (file_hash(weights_path(part))[:8] for part in ("vae", "clip", "unet"))
    return study.folder / "embeddings" / "-".join(learned_on)


def learn(models: DemoModels, folder: Path) -> None:
    """The concepts that have no words, once."""
    for concept in range(BY_WORDS, CONCEPTS):
        if (folder / f"{concept_name(concept)}.safetensors").exists():
            continue
        photos, masks, template = learning_pictures(concept)
        parts = models.model, models.clip, models.vae
        settings = replace(LEARNING, template=template)
        learn_concept(*parts, photos, concept_name(concept), settings, "overwrite", masks)


def _measure(study: Study, models: DemoModels, judge: Judge, rows: dict[str, Row], seeds: list[int]) -> list[Measured]:
    (seed,) = seeds
    job, look = draw_job(seed), Look(models, judge)
    number = seed - study.seeds[0]
    study.show(seed, "scene", f"{job.source_words} to {job.target_caption}", _framed(job.image, job.mask))
    measured, found = [], None
    for name, row in rows.items():
        if number % row.every:
            continue
        box, began = job.box, time.perf_counter()
        if row.found_box:
            box = found = _find(models, job)
        image = _swap(models, job, box, row.settings)
        seconds = time.perf_counter() - began
        values = look.values(job, image, job.box)
        values.update(seconds=seconds, gradients=float(gradients(row.settings)))
        measured.append(Measured(name, seed, values))
        if name in DIVIDED:
            measured.append(Measured(f"{name}; {'learned' if job.learned else 'by words'}", seed, values))
        study.show(seed, name, "", image[0])
        if name == OURS:
            ours = image
        if name == OUR_BOX:
            measured.append(Measured(OUR_BOX_BY_OURS, seed, look.values(job, image, found)))
            measured.append(Measured(TRUE_BOX_BY_OURS, seed, look.values(job, ours, found)))
    return measured + [Measured(name, seed, values) for name, values in look.limits(job).items()]


def _alone(study: Study, look: Look, row: Row, seeds: list[int]) -> list[Measured]:
    (seed,) = seeds
    return [] if (seed - study.seeds[0]) % RARE else alone(study, look, draw_job(seed), row.settings)


def _trust(models: DemoModels, judge: Judge, seeds: list[int]) -> list[Measured]:
    scenes = draw_scenes(seeds, objects=1, holding_out=True)
    shown = render(scenes)
    boxes = shown.masks[:, 0]
    crops = (judging.crops_of_masks(image, boxes) for image in (shown.image, through_vae(models, shown.image)))
    return judging.trust_rows(judge, *crops, scenes, seeds)


def _find(models: DemoModels, job: Job) -> Box:
    said = job.texts().source, job.source_words
    return find_boxes(models.model, models.clip, models.vae, job.image, *said, **BOX_OPTIONS).boxes[0]


def _swap(models: DemoModels, job: Job, box: Box, settings: SwapSettings) -> Tensor:
    parts = models.model, None, models.clip, models.vae
    mask = torch.ones(1, SIZE, SIZE)
    return swap_picture(*parts, job.image, mask, job.texts(), replace(settings, seed=job.seed), bbox=box)[0]


def _framed(image: Tensor, mask: Tensor) -> Tensor:
    return overlay(image, torch.ones(1, SIZE, SIZE), mask)[0]


CLAIMS = (
    Above(
        "over-dds-foreground",
        "Judge, share of the wished thing's attributes found in the box: InstantSwap above DDS",
        OURS,
        DDS,
        "agreement",
        needed=128,
    ),
    Above(
        "over-dds-background",
        "PSNR outside the box, before any paste: InstantSwap above DDS",
        OURS,
        DDS,
        "background PSNR",
        needed=128,
    ),
    Above(
        "bgm-keeps-background",
        "PSNR outside the box, before any paste: InstantSwap above itself without BGM",
        OURS,
        NO_BGM,
        "background PSNR",
        needed=128,
    ),
    Above(
        "secr-helps",
        "Judge, share of the wished thing's attributes found in the box: InstantSwap above itself without SECR",
        OURS,
        NO_SECR,
        "agreement",
        needed=128,
    ),
    NotBelow(
        "ssgu-cheap",
        "Judge, share of the wished thing's attributes found in the box: lambda 5 (110 gradients) at most 0.02 below "
        "lambda 1 (550)",
        OURS,
        EVERY_STEP,
        "agreement",
        margin=0.02,
        needed=64,
    ),
)
CONTRASTS = (
    (OURS, DDS),
    (OURS, SDS),
    (OURS, CDS),
    (OURS, CDS_WEAKER),
    (OURS, PAPERS),
    (OURS, NO_BGM),
    (OURS, NO_SECR),
    (PAPERS, ALL_ROWS),
    (OURS, AUTHORS),
    (OURS, EVERY_STEP),
    (OURS, OUR_BOX),
    *((f"{name} with SSGU, lambda 5", name) for name in (SDS, DDS)),
    *((REMOVALS[-1], other) for other in REMOVALS[:-1]),
    tuple(INSERTIONS),
)

SUITE = Suite(
    "swap",
    seeds=10,
    full_seeds=160,
    run=run,
    claims=CLAIMS,
    contrasts=CONTRASTS,
    columns=("scene", *swap_rows(1, 1, 1), *REMOVALS, *INSERTIONS),
)
