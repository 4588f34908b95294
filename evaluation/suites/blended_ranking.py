"""Does CLIP's ranking of candidates agree with the judge (Blended Diffusion, figure 34)? Rows of suite `blended`."""

import torch
from torch import Tensor

from ...guidance.paste import paste_back
from ...host.painting import paint
from ...host.ranking import score_pictures
from .. import judging
from ..records import Measured
from .blended_jobs import BESIDE_TEXT, Batch, Edit, World, draw_edits, guided

TOP = 0.2
RANKED = {name: f"ranked: {name}" for name in ("all", "top 1", "top 20 %", "bottom 20 %")}


def ranking(world: World, seeds: list[int], candidates: int, steps: int) -> list[Measured]:
    """The candidates of each seed's edit by CLIP, and what the judge makes of the best and of the worst."""
    measured = []
    for seed in seeds:
        batch = draw_edits(world.models, [seed])
        tasks, models = batch.tasks, world.models
        settings = Edit(True, BESIDE_TEXT, algorithm="ddim", steps=steps).settings(
            seed, candidates=candidates, at_once=16
        )
        model = guided(models, batch, BESIDE_TEXT)
        painted, _ = paint(model, batch.told, batch.untold, models.vae, tasks.image, tasks.mask, settings)
        pasted = paste_back(tasks.image.expand_as(painted), painted, tasks.mask.expand(len(painted), -1, -1))
        scores = score_pictures(pasted, models.clip_vision, models.clip, tasks.captions[0], mask=tasks.mask)
        measured += _ranked(seed, scores, _verdicts(world, batch, pasted))
    return measured


def _verdicts(world: World, batch: Batch, pictures: Tensor) -> judging.Values:
    """Of many pictures of one task."""
    count = len(pictures)
    crops = judging.crops_of_masks(pictures, batch.tasks.mask.expand(count, -1, -1))
    truth = {name: values.expand(count) for name, values in judging.truth_of(batch.tasks.wanted).items()}
    return judging.accuracy(judging.verdicts(world.judge, crops), truth)


def _ranked(seed: int, scores: Tensor, values: judging.Values) -> list[Measured]:
    order = scores.argsort(descending=True, stable=True).tolist()
    share = max(1, round(TOP * len(order)))
    parts = {"all": order, "top 1": order[:1], "top 20 %": order[:share], "bottom 20 %": order[-share:]}
    rows = []
    for name, places in parts.items():
        told = [metric for metric, value in values[0].items() if value is not None]
        means = {metric: sum(values[place][metric] for place in places) / len(places) for metric in told}
        score = float(torch.stack([scores[place] for place in places]).mean())
        rows.append(Measured(RANKED[name], seed, {**means, "tiny CLIP text": score}))
    return rows
