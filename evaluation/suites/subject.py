"""A thing from a few photos put into other pictures (image-guided inpainting with LoRA, tables 1 to 3).

A seed is one novel subject, which no training picture shows: two to four photos of it, and places in other scenes where
it is to go, under masks of its own size, 1.5 and 2 times that. Every method trains on the same photos for as many steps
and paints the same places with the same noise. All values of a seed are means over its places, so that intervals are
over subjects. Likeness is the best of several windows in the mask: a thing may stand anywhere in a large one.

A run with --tuning compares learning rates instead, of a LoRA and of full fine-tuning, as many of both.
"""

import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...demo.judge import Judge, load_judge
from ...demo.render import render
from ...demo.scenes import SIZE
from ...demo.subjects import SUITE_SUBJECTS
from ...demo.weights import weights_path
from ...guidance.paste import paste_back
from ...host.painting import PaintSettings, paint
from ...host.pictures import decode_picture, encode_picture
from ..claims import Above, EachAbove
from ..likeness import Likeness, Scores
from ..non_inferiority import NotBelow
from ..records import Measured
from ..set_distance import frechet_shares
from ..study import Study, Suite
from ..subject_methods import (
    BARE,
    BASE,
    CAPTION,
    CONCEPT,
    DREAMBOOTH,
    LORA,
    MASK,
    METHODS,
    REFERENCE,
    TUNED,
    WHOLE,
    Methods,
)
from ..subject_places import MASKS, draw_places, photos_of
from ..subjects import subject_of

PLACES, FULL_PLACES = 6, 21
STEPS = 20
CFG = 5.0
# Among how many subjects the right one is to be told.
CHOICE = 12
CEILING = "ceiling: the true scene through the VAE"
TRUST = ("judge: real crops", "judge: real crops through the VAE", "judge: labels shuffled")
DIVIDED = (BASE, LORA[16], REFERENCE, MASK, CEILING)
SUBJECTS = 12
# What is still a few percent of a file.
STORAGE_SHARE = 0.05


def run(study: Study) -> None:
    methods, judge = Methods(), load_judge(weights_path("judge"))
    study.measure("methods", 1, partial(_measure, study, methods, judge))
    if study.tuning:
        _say_best(study)
    else:
        study.measure("distance", len(study.seeds), partial(_distances, study))


def _say_best(study: Study) -> None:
    table = study.records.table(study.seeds)
    for name, rows in TUNED.items():
        means = {row: np.mean(list(table[row]["judge likeness"].values())) for row in rows}
        best = max(rows, key=means.get)
        edge = ", at the edge of what was tried" if best in (rows[0], rows[-1]) else ""
        print(f"  {name}: highest judge likeness {means[best]:.3f} by '{best}'{edge}", file=sys.stderr, flush=True)


def _measure(study: Study, methods: Methods, judge: Judge, seeds: list[int]) -> list[Measured]:
    (seed,) = seeds
    places = draw_places(seed, FULL_PLACES if study.full else PLACES)
    likeness = Likeness(judge, methods.inpaint.clip_vision, [render(photos_of(*one)) for one in _choice(seed)])
    study.show(seed, "photo", places.named, places.photos.image[0])
    study.show(seed, "mask", "", places.mask[0])
    measured, features = [], {}

    def score(name: str, picture: Tensor, costs: dict[str, float | None]) -> None:
        scores = likeness.score(picture, places.box)
        features[name] = scores.features.numpy()
        measured.append(Measured(name, seed, {**_means(scores), **costs}))
        for size in MASKS if name in DIVIDED else ():
            rows = torch.tensor([one == size for one in places.sizes])
            measured.append(Measured(f"{name}; mask {size}", seed, _means(scores, rows=rows)))
        study.show(seed, name, "", picture[0])

    for name, prepare in (methods.tuned if study.tuning else methods.of)(places).items():
        ready = prepare()
        settings = PaintSettings(steps=STEPS, cfg=CFG, seed=seed, background="renoised", paste="none")
        painted = paint(
            ready.model, ready.positive, ready.negative, methods.inpaint.vae, places.image, places.mask, settings
        )[0]
        score(name, paste_back(places.image, painted, places.mask), ready.costs())
    round_trip = _through_vae(methods, places.truth.image)
    score(CEILING, paste_back(places.image, round_trip, places.mask), {})
    real = likeness.score(places.truth.image, places.box)
    features["real"] = real.features.numpy()
    path = _features_path(study, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **features)
    return measured + _trust(real, likeness.score(round_trip, places.box), seed)


def _choice(seed: int) -> list[tuple[int, int]]:
    """(subject, seed of its photos): the seed's own first."""
    own, half = subject_of(seed), SUITE_SUBJECTS // 2
    first = own // half * half
    return [(first + (own - first + number) % half, seed + number) for number in range(CHOICE)]


def _through_vae(methods: Methods, image: Tensor) -> Tensor:
    vae = methods.inpaint.vae
    return decode_picture(vae, encode_picture(vae, image), SIZE, SIZE)


def _means(scores: Scores, subject: int = 0, rows: Tensor | None = None) -> dict[str, float | None]:
    columns = {
        "judge likeness": scores.likeness(subject),
        "judge accuracy": scores.told(subject),
        "tiny CLIP image": scores.clip,
    }
    return {name: float((values if rows is None else values[rows]).mean()) for name, values in columns.items()}


def _trust(real: Scores, through_vae: Scores, seed: int) -> list[Measured]:
    """How often the judge's features tell the subject in real scenes, in the same through the VAE, and under the label
    of another subject, which is what a judge that saw nothing would score at most.
    """
    asked = zip(TRUST, ((real, 0), (through_vae, 0), (real, 1)), strict=True)
    return [Measured(name, seed, _means(scores, subject)) for name, (scores, subject) in asked]


def _features_path(study: Study, seed: int) -> Path:
    return study.folder / "features" / f"{seed}.npz"


def _distances(study: Study, seeds: list[int]) -> list[Measured]:
    """Of all places together, against the real scenes; how many pictures each side has is said beside it."""
    kept = []
    for seed in seeds:
        with np.load(_features_path(study, seed)) as file:
            kept.append({name: torch.from_numpy(file[name]) for name in file.files})
    real = [one["real"] for one in kept]
    pictures = float(sum(map(len, real)))
    measured = []
    for name in (*METHODS, CEILING):
        shares = frechet_shares(real, [one[name] for one in kept])
        measured += [
            Measured(name, seed, {"FID (judge's scores)": share, "FID pictures": pictures})
            for seed, share in zip(seeds, shares, strict=True)
        ]
    return measured


CLAIMS = (
    EachAbove(
        "lora-near-full",
        "LoRA rank 16 nearly as good as full fine-tuning, at a few percent of the storage",
        (
            NotBelow(
                "",
                "judge likeness at most 0.05 below full fine-tuning's",
                LORA[16],
                WHOLE,
                "judge likeness",
                margin=0.05,
                needed=SUBJECTS,
            ),
            Above(
                "",
                f"full fine-tuning's file above {1 / STORAGE_SHARE:g} of the LoRA's",
                WHOLE,
                LORA[16],
                "file MB",
                needed=SUBJECTS,
                share=1 / STORAGE_SHARE,
            ),
        ),
    ),
    Above(
        "beats-untrained",
        "Judge likeness: LoRA with both augmentations above the same model without training",
        MASK,
        BASE,
        "judge likeness",
        needed=SUBJECTS,
    ),
    Above(
        "mask-augmentation-helps",
        "Judge likeness under masks of 1, 1.5 and 2 times the subject: with mask augmentation above without",
        MASK,
        REFERENCE,
        "judge likeness",
        needed=SUBJECTS,
    ),
)
CONTRASTS = (
    (LORA[16], WHOLE),
    (MASK, BASE),
    (MASK, REFERENCE),
    (REFERENCE, LORA[16]),
    (LORA[16], BARE),
    (LORA[16], LORA[4]),
    (LORA[64], LORA[16]),
    *((MASK, other) for other in (CAPTION, CONCEPT, DREAMBOOTH)),
    *((f"{MASK}; mask {size}", f"{REFERENCE}; mask {size}") for size in MASKS),
    *((row, before) for rows in TUNED.values() for before, row in pairwise(rows)),
)

SUITE = Suite(
    "subject",
    seeds=5,
    full_seeds=SUBJECTS,
    run=run,
    claims=CLAIMS,
    contrasts=CONTRASTS,
    columns=("photo", "mask", *METHODS, *(row for rows in TUNED.values() for row in rows), CEILING),
)
