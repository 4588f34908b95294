"""What suite `spin` measures of the pictures of one task."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...demo.judge import Judge
from ...demo.tasks import Tasks
from ...host.demo_world import DemoModels
from ...host.ranking import score_pictures
from .. import judging, perceptual
from ..records import Measured
from ..spin_parts import keeping, merged, style_agreement, through_vae
from ..study import Study
from .spin_jobs import EDITS

# How far around a reference's true box the judge looks: as far as around a painted thing.
REFERENCE_MARGIN = 1.5


@dataclass(frozen=True)
class World:
    study: Study
    models: DemoModels
    inpaint: DemoModels
    judge: Judge
    nima: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Scene:
    """One task and what its pictures are compared with: words, or the reference (1, h, w, 3)."""

    task: Tasks
    text: str = ""
    reference: Tensor | None = None


def score_name(scene: Scene) -> str:
    return "tiny CLIP text" if scene.reference is None else "tiny CLIP image"


def values_of(world: World, scene: Scene, painted: Tensor) -> tuple[Tensor, judging.Values]:
    """The pasted pictures (n, H, W, 3) of one scene, and each one's values."""
    task, judge, models = scene.task, world.judge, world.models
    image, mask, real = (one.expand(len(painted), *one.shape[1:]) for one in (task.image, task.mask, task.truth.image))
    pasted, kept = keeping(painted, image, mask, real)
    crops = judging.crops_of_masks(pasted, mask)
    columns = [style_agreement(judge, painted, mask, task.wanted.style.expand(len(painted)))]
    found = judging.verdicts(judge, crops)
    if scene.reference is None:
        truth = {name: value.expand(len(painted)) for name, value in judging.truth_of(task.wanted).items()}
        columns.append(judging.accuracy(found, truth))
    else:
        reference = judging.crops_of_masks(task.reference, task.reference_mask, REFERENCE_MARGIN)
        truth = judging.crops_of_masks(task.truth.image, task.mask)
        likeness = {
            "judge likeness": judging.likeness(judge, crops, reference),
            "judge likeness to truth": judging.likeness(judge, crops, truth),
            **{f"seen as {word}": (found[kind] == value).float() for word, (kind, value) in EDITS.items()},
        }
        columns.append(_by_picture(likeness))
    scores = score_pictures(
        pasted, models.clip_vision, models.clip, scene.text, scene.reference, task.mask, outside="keep"
    )
    distance = perceptual.judge_distance(judge, painted, image, (mask == 0).float())
    whole = {score_name(scene): scores, f"background {perceptual.NAME}": distance}
    if world.nima is not None:
        whole["NIMA"] = world.nima(pasted)
    columns.append(_by_picture(whole))
    return pasted, merged(*columns, kept)


def limits(world: World, scene: Scene, seed: int, pictures: dict[str, Tensor]) -> list[Measured]:
    """What the figures are of pictures (1, H, W, 3) that went through the VAE and nothing else, by row."""
    values = {name: values_of(world, scene, through_vae(world.models, image))[1] for name, image in pictures.items()}
    return [Measured(name, seed, one) for name, (one,) in values.items()]


def _by_picture(columns: dict[str, Tensor]) -> judging.Values:
    return [
        dict(zip(columns, row, strict=True)) for row in zip(*(one.tolist() for one in columns.values()), strict=True)
    ]


def mean(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return sum(told) / len(told) if told else None


def diversity(world: World, pasted: Tensor, task: Tasks) -> float | None:
    """How unlike the candidates are to the judge: the mean of 1 - likeness over their pairs."""
    crops = judging.crops_of_masks(pasted, task.mask.expand(len(pasted), -1, -1))
    pairs = list(itertools.combinations(range(len(pasted)), 2))
    if not pairs:
        return None
    first, second = (crops[[pair[side] for pair in pairs]] for side in range(2))
    return 1 - float(judging.likeness(world.judge, first, second).mean())
