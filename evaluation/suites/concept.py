"""What is learned from one picture of a thing: the thing, or what is behind it too (Spin, figures 3 and 4)?

Every seed is one novel subject, styles taking turns. A concept is learned from one picture by each objective, from the
same start, with the same noise. After some of the steps it is painted into a place with another background, in a mask
with room around the subject, and what is in the mask is compared with the subject and with the reference's background.

Each is learned in a sentence that names the reference's style and background, and painted in one that names the
place's. The rows "alone in its text" are the paper's: the concept is all that its prompts say.

Saliency focus comes with each source of its mask: the paper's, the calibrated one, attention to the border, that of
the word `thing`, and the true mask as the ceiling. Attention to the border is set as in the shipped workflow; the
claims are about that row, that of the leak alone in its text. Layers and thresholds of the others but the paper's are
chosen on tuning seeds as in the suite `saliency`, with the same weights. A run with --tuning shows other learning
rates as well.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...demo.captions import UNNAMED
from ...demo.judge import Judge, load_judge
from ...demo.scenes import SIZE
from ...demo.weights import load_part, weights_path
from ...host.concept_text import SLOT
from ...host.concept_training import concept_at_steps
from ...host.demo_world import DemoModels, load_demo_models
from ...host.generate import encode_texts
from ...host.painting import PaintSettings, paint
from ...host.pictures import decode_picture, encode_picture
from ...host.region_patches import guide_region
from ...host.regions import Region
from ...host.salient_masks import saliency_scores, salient_masks
from ...training.concept import ConceptSettings
from ..claims import Above, Claim, EachAbove
from ..localising import overlap
from ..non_inferiority import NotBelow
from ..records import Measured
from ..spin_parts import judge_trust
from ..study import Study, Suite
from .concept_task import JUDGES, Likeness, Task, draw_task
from .saliency import TUNING_SEEDS, Option, choose
from .spin import concept_settings

STEPS = (20, 60, 100, 150, 200)
CANDIDATES = 2
# Pictures that the judge is tried on at once.
TRUST = 24
PAINT_STEPS = 20
CFG = 5.0
INIT_WORD = "thing"
# Ten times the paper's, and what the workflows have; on four tuning subjects 0.01 came out less like them. Less was not
# tried in sentences.
LEARNING_RATE = 0.005
RATES = (0.0005, 0.002, 0.01)
BARE = ", alone in its text"
ANOTHER = "floor: another subject in the place, through the VAE"

BASELINES = {name: ConceptSettings(objective=name) for name in ("plain", "multi", "pixel", "latent")}
FOCUS = "saliency focus"
WORD_MASK, TRUE_MASK = f"{FOCUS}, mask of a word", f"{FOCUS}, true mask"
CALIBRATED, BORDER = f"{FOCUS}, calibrated", f"{FOCUS}, attention to the border"
FOCI = {
    FOCUS: ConceptSettings(mask_source="self-attention", threshold=1.0),
    CALIBRATED: ConceptSettings(mask_source="calibrated self-attention"),
    BORDER: ConceptSettings(mask_source="attention to the border"),
    WORD_MASK: ConceptSettings(mask_source="masks"),
    TRUE_MASK: ConceptSettings(mask_source="masks"),
}
ALONE = {f"{FOCUS} alone, true mask": ConceptSettings(objective="saliency focus alone", mask_source="masks")}
# The focus that the claims are about: the one that the workflow learns with, set as there.
SHIPPED = BORDER


@dataclass(frozen=True)
class World:
    """options: how to look for what is salient, by source."""

    models: DemoModels
    judge: Judge
    negative: list
    options: dict[str, Option]


def run(study: Study) -> None:
    load_part("unet")
    models = load_demo_models("text")
    options = choose(study, models, TUNING_SEEDS[:8])
    world = World(models, load_judge(weights_path("judge")), encode_texts(models.clip, [""]), options)
    rows = rows_with(options, study.tuning)
    study.measure("concepts", 1, partial(_measure, study, world, rows))
    study.measure("judge", TRUST, partial(judge_trust, models, world.judge))


def rows_with(options: dict[str, Option], tuning: bool) -> dict[str, ConceptSettings]:
    """What is trained, by row. options: where, and above what, each source looks but the shipped one."""
    shared = {"init_word": INIT_WORD, "steps": STEPS[-1], "preview_every": 0, "learning_rate": LEARNING_RATE}
    rows = {name: replace(one, **shared) for name, one in {**BASELINES, **FOCI, **ALONE}.items()}
    chosen, (shipped, _) = options[rows[CALIBRATED].mask_source], concept_settings()
    rows[CALIBRATED] = replace(rows[CALIBRATED], layer=chosen.layer, threshold=chosen.threshold)
    where = {name: getattr(shipped, name) for name in ("mask_source", "layer", "threshold")}
    rows[SHIPPED] = replace(rows[SHIPPED], **where)
    rows |= {f"{name}{BARE}": rows[name] for name in ("multi", SHIPPED)}
    if tuning:
        for name in ("multi", SHIPPED):
            rows |= {f"{name}, rate {rate:g}": replace(rows[name], learning_rate=rate) for rate in RATES}
    return rows


def at(row: str, step: int) -> str:
    return f"{row}, step {step}"


def before(tokens: int) -> str:
    return f"before training, {tokens} tokens"


def word_mask(models: DemoModels, task: Task, option: Option) -> Tensor:
    """(1, H, W): where the word `thing` acts in the reference, under a sentence that names style and background."""
    said = {"clip": models.clip, "prompt": task.caption, "words": INIT_WORD}
    where = {"layer": option.layer, "timesteps": list(option.timesteps)}
    scores = saliency_scores(models.model, models.vae, task.reference, "words", **said, **where)
    return salient_masks(scores, option.threshold)[0]


def paint_concept(world: World, task: Task, texts: list[list]) -> Tensor:
    """(texts, CANDIDATES, H, W, 3): the place with each CONDITIONING painted into its mask, before the paste.

    All with the same noise, which differs by row within one batch.
    """
    models = world.models
    guided = guide_region(models.model, [Region(task.mask)], "zero")
    settings = PaintSettings(
        steps=PAINT_STEPS, cfg=CFG, seed=task.seed, candidates=CANDIDATES, background="renoised", paste="none"
    )
    onto = world.negative, models.vae, task.place, task.mask, settings
    return torch.stack([paint(guided, text, *onto)[0] for text in texts])


def _measure(study: Study, world: World, rows: dict[str, ConceptSettings], seeds: list[int]) -> list[Measured]:
    (seed,) = seeds
    task = draw_task(seed)
    likeness = Likeness(world.models, world.judge, task)
    word = word_mask(world.models, task, world.options["words"])
    for column, picture in (("reference", task.reference), ("its true mask", task.reference_mask), ("word", word)):
        study.show(seed, column, task.label, picture[0])
    measured = [Measured(name, seed, likeness.values(picture)) for name, picture in _bounds(world, task).items()]
    measured.append(Measured("mask of a word", seed, {"IoU": float(overlap(word, task.reference_mask))}))
    said = task.caption, task.wish
    for name, settings in rows.items():
        given = word if name.startswith(WORD_MASK) else task.reference_mask
        masks = given if settings.mask_source == "masks" else None
        shown, wish = (SLOT if name.endswith(BARE) else text.replace(UNNAMED, SLOT) for text in said)
        texts = _learn(world, task, replace(settings, seed=seed, template=shown), masks, wish)
        painted = paint_concept(world, task, list(texts.values()))
        for step, pictures in zip(texts, painted, strict=True):
            # The start is the same for every objective of as many tokens.
            row = at(name, step) if step else before(1 if name == "plain" else settings.tokens)
            if step or name in ("plain", "multi"):
                measured.append(Measured(row, seed, likeness.values(pictures)))
        study.show(seed, name, "", painted[-1, 0])
    return measured


def _learn(world: World, task: Task, settings: ConceptSettings, masks: Tensor | None, sentence: str) -> dict[int, list]:
    parts = world.models.model, world.models.clip, world.models.vae
    return concept_at_steps(*parts, task.reference, settings, (0, *STEPS), masks, sentence)


def _bounds(world: World, task: Task) -> dict[str, Tensor]:
    """What the figures could be at best, and what they are of pictures that show nothing of the subject."""
    vae = world.models.vae
    pictures = {
        "ceiling: the subject in the place, through the VAE": task.truth,
        "floor: the empty place, through the VAE": task.place,
        ANOTHER: task.another,
    }
    return {name: decode_picture(vae, encode_picture(vae, one), SIZE, SIZE) for name, one in pictures.items()}


LAST = STEPS[-1]
BARE_MULTI, BARE_SHIPPED = (at(f"{name}{BARE}", LAST) for name in ("multi", SHIPPED))
CLAIMS: tuple[Claim, ...] = (
    EachAbove(
        "focus-over-latent",
        "Likeness to the subject, by the tiny CLIP and by the judge's features: saliency focus (as shipped) after 150 "
        "steps above every baseline after 200",
        tuple(
            Above("", f"{name}, {by}", at(SHIPPED, 150), at(name, LAST), f"{by} subject", needed=24)
            for name in BASELINES
            for by in JUDGES
        ),
    ),
    EachAbove(
        "focus-leaks-less",
        "Judge, probability that what was painted stands before the reference's background, after equal steps, alone "
        "in its text as in the paper (told of in a sentence, it hardly ever does): multi-token inversion above "
        "saliency focus (as shipped), which is at most 0.02 less like the subject",
        (
            Above("", "leak", BARE_MULTI, BARE_SHIPPED, "background of the reference", needed=24),
            NotBelow("", "likeness", BARE_SHIPPED, BARE_MULTI, "judge subject", margin=0.02, needed=24),
        ),
    ),
)
CONTRASTS = (
    *((at(SHIPPED, 150), at(name, LAST)) for name in BASELINES),
    *((at(name, LAST), at("multi", LAST)) for name in (*FOCI, *ALONE, "latent", "pixel")),
    (BARE_SHIPPED, BARE_MULTI),
    *((at(name, LAST), at(f"{name}{BARE}", LAST)) for name in ("multi", SHIPPED)),
    *((at(name, LAST), other) for name in ("multi", SHIPPED) for other in (before(6), ANOTHER)),
    (at("multi", LAST), at("plain", LAST)),
    (at(SHIPPED, LAST), at(FOCUS, LAST)),
    (at(TRUE_MASK, LAST), at(SHIPPED, LAST)),
)

SUITE = Suite(
    "concept",
    seeds=2,
    full_seeds=24,
    run=run,
    claims=CLAIMS,
    contrasts=CONTRASTS,
    columns=("reference", "its true mask", "word", *BASELINES, *FOCI, *ALONE),
)
