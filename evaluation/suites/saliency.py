"""Does attention show where the thing in a picture is? Masks from each source against the truth (Spin, eq. 2).

Every seed is one scene with one thing, in all styles by turns; on every fourth one a novel thing stands instead, which
no word but `thing` names. Layers, noise levels and thresholds are chosen on tuning seeds, in the same run and with the
same weights: rows called `chosen` have those. A run with --tuning shows all there was to choose from.

Why the column sum does or does not separate things is measured too, per layer: with `kept` the share of the thing's own
attention that stays on it and `given` the share of the surroundings' attention that goes to it, O on the thing has the
mean kept + given * (cells beside it) / (cells on it). It is 1 where as much attention leaves the thing as enters it,
however well the two are told apart.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...attention.overlay import overlay
from ...demo.captions import caption
from ...demo.judge import load_judge
from ...demo.render import Pictures, render
from ...demo.scenes import Scenes, draw_scenes
from ...demo.training.pictures import SEEDS
from ...demo.vocabulary import SHAPES, STYLES
from ...demo.weights import load_part, weights_path
from ...guidance.masks import latent_mask
from ...host.attention_layers import LAYERS
from ...host.demo_world import DemoModels, load_demo_models
from ...host.pictures import encode_picture
from ...host.salient_masks import saliency_scores
from .. import judging
from ..claims import Above, Claim
from ..localising import overlap, separation
from ..records import Measured, Table
from ..spin_parts import judge_trust
from ..study import TEXTS, Study, Suite
from ..subjects import scene_of_subject
from .saliency_layers import layer_rows

BATCH = 4
TRUST = 16
EVERYTHING, GIVEN = "everything", "your mask, on the latent's grid"
CHOSEN = "{}, chosen"
TUNING_SEEDS = range(SEEDS["tuning"], SEEDS["tuning"] + 16)
THRESHOLDS = {
    "self-attention": (0.8, 0.9, 1.0, 1.1, 1.25, 1.5),
    "calibrated self-attention": (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
    "attention to the border": (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
    "words": (0.4, 0.6, 0.8, 1.0, 1.2, 1.4),
}
# What is not told apart at the demo's size is left out: its finest grid is 16 x 16.
CHOICES = tuple(layer for layer in LAYERS if layer not in ("32x32", "64x64"))
LEVELS = ((100,), (300,), (500,), (500, 300, 100))


@dataclass(frozen=True)
class Option:
    """What can be set in Mask Salient Part."""

    source: str
    layer: str = "auto"
    timesteps: tuple[float, ...] = (500, 300, 100)
    threshold: float = 1.0

    @property
    def row(self) -> str:
        return f"{self.source}, {self.layer}, t {' '.join(map(str, self.timesteps))}"


@dataclass(frozen=True)
class Batch:
    """Pictures of one thing each, words for it and a sentence that holds them."""

    scenes: Scenes
    pictures: Pictures
    words: list[str]
    captions: list[str]

    @property
    def truth(self) -> Tensor:
        return self.pictures.masks[:, 0]


# The node's own defaults: those of the paper for self-attention.
DEFAULTS = {source: Option(source) for source in THRESHOLDS}


def run(study: Study) -> None:
    load_part("unet")
    models, judge = load_demo_models("text"), load_judge(weights_path("judge"))
    study.measure("judge", TRUST, partial(judge_trust, models, judge))
    best = choose(study, models)
    for option in best.values():
        print(f"  chosen on tuning seeds: {option.row}, threshold {option.threshold:g}", flush=True)
    study.measure("masks", BATCH, partial(_measure, study, models, best))


def draw(seeds: Sequence[int]) -> Batch:
    """One thing a scene, of a name; every fourth block of four seeds shows novel things."""
    scenes = []
    for seed in seeds:
        style = seed % len(STYLES)
        novel = seed // len(STYLES) % 4 == 3
        one = scene_of_subject(seed, style) if novel else draw_scenes([seed], style=style, objects=1, holding_out=True)
        scenes.append(one)
    pictures = [render(one) for one in scenes]
    joined = Pictures(*(torch.cat([getattr(one, name) for one in pictures]) for name in ("image", "masks", "boxes")))
    shapes = [int(one.shape[0, 0]) for one in scenes]
    words = ["thing" if shape < 0 else SHAPES[shape] for shape in shapes]
    return Batch(scenes, joined, words, [caption(one, 0) for one in scenes])


def scores_of(models: DemoModels, batch: Batch, option: Option) -> Tensor:
    """(B, H, W), by the function behind the node."""
    settings = {"layer": option.layer, "timesteps": list(option.timesteps), "seed": 0}
    rows = []
    for row, word in enumerate(batch.words):
        told = {"clip": models.clip, "prompt": batch.captions[row], "words": word} if option.source == "words" else {}
        image = batch.pictures.image[row : row + 1]
        rows.append(saliency_scores(models.model, models.vae, image, option.source, **told, **settings))
    return torch.cat(rows)


def choose(study: Study, models: DemoModels, seeds: Sequence[int] | None = None) -> dict[str, Option]:
    """Of each source the option of the highest mean overlap on tuning seeds, measured once for each set of weights."""
    seeds = list(TUNING_SEEDS if seeds is None else seeds)
    for first in range(0, len(seeds), BATCH):
        group = seeds[first : first + BATCH]
        if not study.records.has("options", group):
            began = time.monotonic()
            measured = _options(models, group)
            study.records.add("options", group, time.monotonic() - began, measured)
    return best_options(study.records.table(seeds))


def _every_option() -> list[Option]:
    return [Option(source, layer, levels) for source in THRESHOLDS for layer in CHOICES for levels in LEVELS]


def _options(models: DemoModels, seeds: list[int]) -> list[Measured]:
    batch, measured = draw(seeds), []
    for option in _every_option():
        scores = scores_of(models, batch, option)
        columns = {"AUC": separation(scores, batch.truth)}
        for threshold in THRESHOLDS[option.source]:
            columns[f"IoU at {threshold:g}"] = overlap((scores >= threshold).float(), batch.truth)
        measured += _rows(option.row, seeds, columns)
    return measured


def best_options(table: Table) -> dict[str, Option]:
    best: dict[str, tuple[float, Option]] = {}
    for option in _every_option():
        for threshold in THRESHOLDS[option.source]:
            values = list(table[option.row][f"IoU at {threshold:g}"].values())
            found = sum(values) / len(values), Option(option.source, option.layer, option.timesteps, threshold)
            if option.source not in best or found[0] > best[option.source][0]:
                best[option.source] = found
    return {source: option for source, (_, option) in best.items()}


def _rows(name: str, seeds: Sequence[int], columns: dict[str, Tensor]) -> list[Measured]:
    values = [{metric: float(column[row]) for metric, column in columns.items()} for row in range(len(seeds))]
    return judging.rows_of(name, seeds, values)


def _measure(study: Study, models: DemoModels, best: dict[str, Option], seeds: list[int]) -> list[Measured]:
    batch = draw(seeds)
    latents = encode_picture(models.vae, batch.pictures.image)
    on_grid = latent_mask(batch.truth, *latents.shape[-2:], cover="area")[:, 0].repeat_interleave(8, 1)
    maps = {EVERYTHING: torch.ones_like(batch.truth), GIVEN: on_grid.repeat_interleave(8, 2)}
    masks = {EVERYTHING: maps[EVERYTHING], GIVEN: (maps[GIVEN] >= 0.5).float()}
    for source, option in DEFAULTS.items():
        for name, used in ((source, option), (CHOSEN.format(source), best[source])):
            maps[name] = scores_of(models, batch, used)
            masks[name] = (maps[name] >= used.threshold).float()
    measured = []
    for name, mask in masks.items():
        columns = {
            "IoU": overlap(mask, batch.truth),
            "AUC": separation(maps[name], batch.truth),
            "share masked": mask.mean((1, 2)),
        }
        measured += _rows(name, seeds, columns)
        for row, one in enumerate(_rows(name, seeds, columns)):
            kind = "novel things" if batch.words[row] == "thing" else "named things"
            style = STYLES[int(batch.scenes[row].style)]
            measured += [Measured(f"{name}; {trait}", one.seed, one.values) for trait in (style, kind)]
        for row, seed in enumerate(seeds):
            picture, found = batch.pictures.image[row : row + 1], mask[row : row + 1]
            study.show(seed, name, batch.captions[row], overlay(picture, found, found)[0])
    for row, seed in enumerate(seeds):
        study.show(seed, "scene", batch.captions[row], batch.pictures.image[row])
        words = batch.captions[row], batch.words[row]
        measured += layer_rows(models, latents[row : row + 1], words, batch.truth[row : row + 1], seed)
    return measured


SELF, CALIBRATED, BORDER, WORDS = THRESHOLDS
CLAIMS: tuple[Claim, ...] = (
    Above(
        "calibrated-over-column-sum",
        "IoU with the true mask: the calibrated map above the paper's column sum, each as chosen on tuning seeds",
        CHOSEN.format(CALIBRATED),
        CHOSEN.format(SELF),
        "IoU",
        needed=64,
    ),
    Above(
        "border-over-column-sum",
        "IoU with the true mask: what attends least to the border above the paper's column sum, each as chosen on "
        "tuning seeds",
        CHOSEN.format(BORDER),
        CHOSEN.format(SELF),
        "IoU",
        needed=64,
    ),
    Above(
        "words-over-column-sum",
        "IoU with the true mask: the map of a word above the paper's column sum, each as chosen on tuning seeds",
        CHOSEN.format(WORDS),
        CHOSEN.format(SELF),
        "IoU",
        needed=64,
    ),
)
CONTRASTS = (
    *((CHOSEN.format(source), source) for source in THRESHOLDS),
    (CHOSEN.format(SELF), EVERYTHING),
    (CHOSEN.format(CALIBRATED), CHOSEN.format(SELF)),
    (CHOSEN.format(BORDER), CHOSEN.format(CALIBRATED)),
    (CHOSEN.format(WORDS), CHOSEN.format(BORDER)),
)

SUITE = Suite(
    "saliency",
    seeds=96,
    full_seeds=128,
    run=run,
    claims=CLAIMS,
    contrasts=CONTRASTS,
    columns=("scene", GIVEN, *THRESHOLDS, *(CHOSEN.format(source) for source in THRESHOLDS)),
    parts=("vae", TEXTS, "judge", "unet"),
)
