"""What makes text-driven local edits good (Blended Diffusion; its tables 1, figures 3, 7, 27, 29, 32, 34)?

Every seed is one task: a thing that no training picture shows in that style is asked for in a place of a scene, empty
or taken. The model is told nothing where `CLIP alone` steers it, as in the paper, and the text elsewhere. The judge
took no part in guidance or ranking; the demo's own CLIP did, so a rise of its score alone says little. Background
figures are taken before the paste. The paper's GAN baselines (PaintByWord, VQGAN-CLIP) are out of scope.
"""

from dataclasses import dataclass, replace
from functools import partial

from ...demo.judge import load_judge
from ...demo.weights import load_part, weights_path
from ...host.demo_world import load_demo_models
from ...host.inversion import invert_image
from .. import judging
from ..claims import Above, Claim, EachAbove
from ..records import Measured
from ..study import Study, Suite
from .blended_applications import GROWTHS, REMOVALS, SCRIBBLE_LEVELS, extrapolations, removals, scribble_row, scribbles
from .blended_jobs import (
    ALONE,
    BESIDE_TEXT,
    Edit,
    World,
    draw_edits,
    every,
    judged,
    paint_edit,
    paint_over,
    show_pasted,
    show_scenes,
    through_vae,
)
from .blended_ranking import RANKED, ranking

BATCH = 8
INVERSION_STEPS = 50
AUGMENTATIONS = (0, 1, 4, 8, 16)
BACKGROUND_WEIGHTS = (1.0, 10.0, 100.0)
SWEEP = (12, 25, 50, 100)


@dataclass(frozen=True)
class Size:
    """steps: of an edit, from 0.75. candidates: to rank. sweep_every ... growth_every: one seed in so many."""

    steps: int
    candidates: int
    rank_steps: int
    growth_steps: int
    sweep_every: int
    rank_every: int
    growth_every: int


SHORT = Size(15, 16, 12, 12, 8, 8, 2)
FULL = Size(20, 64, 12, 15, 4, 4, 2)

TWO = "algorithm 2, CLIP alone"
LOCAL = {weight: f"algorithm 1, CLIP alone, background weight {weight:g}" for weight in BACKGROUND_WEIGHTS}
NAIVE = "naive blend, CLIP alone"
TEXT, BOTH = "algorithm 2, text alone", "algorithm 2, text and CLIP"
NOTHING = "algorithm 2, neither"
VIEWS = {copies: TWO if copies == 8 else f"CLIP alone, {copies} augmentations" for copies in AUGMENTATIONS}
STEPS = {(name, steps): f"{name}, {steps} steps" for name in ("ddpm", "ddim") for steps in SWEEP}
LEVELS = {
    (background, offset): f"{background}, {'one level late' if offset else 'right level'}"
    for background in ("inverted", "renoised", "fixed")
    for offset in (0, 1)
}


def run(study: Study) -> None:
    load_part("unet")
    size = FULL if study.full else SHORT
    world = World(study, load_demo_models("text"), load_judge(weights_path("judge")))
    for unit, measure in {"algorithms": algorithms, "augmentations": augmentations, "levels": levels}.items():
        study.measure(unit, BATCH, partial(measure, world, size))
    study.measure("scribbles", BATCH, lambda seeds: scribbles(world, seeds, size.steps))
    study.measure("removal", BATCH, lambda seeds: removals(world, seeds, size.steps))
    study.measure("steps", BATCH, partial(sweep, world, size))
    study.measure(
        "ranking",
        BATCH,
        lambda seeds: ranking(world, every(seeds, size.rank_every), size.candidates, size.rank_steps),
    )
    study.measure(
        "extrapolation",
        BATCH,
        lambda seeds: extrapolations(world, every(seeds, size.growth_every), size.growth_steps),
    )


def algorithms(world: World, size: Size, seeds: list[int]) -> list[Measured]:
    batch = draw_edits(world.models, seeds)
    tasks = batch.tasks
    show_scenes(world, batch)
    alone = Edit(False, ALONE, steps=size.steps)
    rows = {
        TWO: alone,
        **{
            name: replace(alone, algorithm="local", clip=replace(ALONE, background_weight=weight))
            for weight, name in LOCAL.items()
        },
        NAIVE: replace(alone, algorithm="local", denoise=1.0),
        TEXT: Edit(True, None, steps=size.steps),
        BOTH: Edit(True, BESIDE_TEXT, steps=size.steps),
        NOTHING: replace(alone, clip=None),
    }
    measured = []
    for name, edit in rows.items():
        painted = paint_edit(world.models, batch, edit)
        measured += judging.rows_of(name, seeds, judged(world, batch, painted))
        # Algorithm 1 knows no paste.
        shown = tasks.image * (tasks.mask[..., None] == 0) + painted * (tasks.mask[..., None] > 0)
        for row, seed in enumerate(seeds):
            world.study.show(seed, name, "", painted[row] if name in LOCAL.values() else shown[row])
    round_trip = through_vae(world.models, tasks.truth.image)
    truth = replace(batch, tasks=replace(tasks, image=tasks.truth.image))
    measured += judging.rows_of("ceiling: the wanted scene through the VAE", seeds, judged(world, truth, round_trip))
    crops = (judging.crops_of_masks(image, tasks.mask) for image in (tasks.truth.image, round_trip))
    return measured + judging.trust_rows(world.judge, *crops, tasks.wanted, seeds)


def augmentations(world: World, size: Size, seeds: list[int]) -> list[Measured]:
    batch = draw_edits(world.models, seeds)
    measured = []
    for copies, name in VIEWS.items():
        if name != TWO:
            painted = paint_edit(world.models, batch, Edit(False, ALONE, steps=size.steps).augmented(copies))
            measured += judging.rows_of(name, seeds, judged(world, batch, painted))
            show_pasted(world, batch, name, painted)
    return measured


def levels(world: World, size: Size, seeds: list[int]) -> list[Measured]:
    batch = draw_edits(world.models, seeds)
    trajectory, _ = invert_image(
        world.models.model, world.models.vae, batch.tasks.image, positive=batch.untold, steps=INVERSION_STEPS
    )
    measured = []
    for (background, offset), name in LEVELS.items():
        edit = Edit(True, None, algorithm="ddim", steps=size.steps)
        painted = paint_over(world.models, batch, edit, background, offset, trajectory)
        measured += judging.rows_of(name, seeds, judged(world, batch, painted))
        show_pasted(world, batch, name, painted)
    return measured


def sweep(world: World, size: Size, seeds: list[int]) -> list[Measured]:
    if not (some := every(seeds, size.sweep_every)):
        return []
    batch = draw_edits(world.models, some)
    measured = []
    for (algorithm, steps), name in STEPS.items():
        painted = paint_edit(world.models, batch, Edit(True, BESIDE_TEXT, algorithm=algorithm, steps=steps))
        measured += judging.rows_of(name, some, judged(world, batch, painted))
    return measured


STRICT = LOCAL[max(LOCAL)]
CLAIMS: tuple[Claim, ...] = (
    EachAbove(
        "blend-over-local",
        "CLIP alone: algorithm 2 above algorithm 1 in background PSNR at every background weight, and in the judge's "
        "all attributes at the weight that holds the background hardest",
        tuple(
            Above(f"over {name}", f"{metric} over {name}", TWO, name, metric, needed=128)
            for name, metric in (*((name, "background PSNR") for name in LOCAL.values()), (STRICT, "all"))
        ),
    ),
    Above(
        "augmentation-helps-judge",
        "CLIP alone: judge, all attributes in the mask, with 8 augmentations above none",
        VIEWS[8],
        VIEWS[0],
        "all",
        needed=128,
    ),
    Above(
        "ranking-works",
        "Judge, all attributes in the mask: the top 20 % by CLIP above the bottom 20 % of the same candidates",
        RANKED["top 20 %"],
        RANKED["bottom 20 %"],
        "all",
        needed=32,
    ),
    Above(
        "right-level-better",
        "Judge, all attributes in the mask: the re-noised background at the new latent's level above one level late, "
        "as in the official code",
        LEVELS["renoised", 0],
        LEVELS["renoised", 1],
        "all",
        needed=128,
    ),
)
CONTRASTS = (
    *((TWO, name) for name in (*LOCAL.values(), NAIVE, NOTHING)),
    (BOTH, TEXT),
    *((VIEWS[copies], VIEWS[0]) for copies in AUGMENTATIONS[1:]),
    *((LEVELS[background, 0], LEVELS[background, 1]) for background in ("inverted", "renoised", "fixed")),
    *((STEPS["ddpm", steps], STEPS["ddim", steps]) for steps in SWEEP),
    (RANKED["top 20 %"], RANKED["bottom 20 %"]),
    (RANKED["top 1"], RANKED["all"]),
    *((name, list(REMOVALS)[0]) for name in list(REMOVALS)[1:]),
    *((list(GROWTHS)[0], name) for name in list(GROWTHS)[1:]),
)

SUITE = Suite(
    "blended",
    seeds=16,
    full_seeds=128,
    run=run,
    claims=CLAIMS,
    contrasts=CONTRASTS,
    columns=(
        *("scene", "mask", TWO, *LOCAL.values(), NAIVE, TEXT, BOTH, VIEWS[0], *LEVELS.values()),
        *("scribble", *map(scribble_row, SCRIBBLE_LEVELS), "to remove", *REMOVALS, *GROWTHS),
    ),
)
