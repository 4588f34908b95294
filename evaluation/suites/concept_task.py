"""What the suite `concept` learns from and paints into, and how like the subject and its background the result is."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...demo.captions import caption
from ...demo.judge import Judge
from ...demo.render import render
from ...demo.tasks import place_masks
from ...demo.vocabulary import BACKGROUNDS, STYLES
from ...host.clip_pairs import embed_pictures
from ...host.demo_world import DemoModels
from .. import judging
from ..subjects import scene_of_subject, with_subject_of

JUDGES = ("CLIP", "judge")
# Numbers of the references' scenes are this far from those of the places.
REFERENCE_SEEDS = 1_000_000_007
# In radii of the subject: room around it in which what was behind it would show.
ROOM = 1.4
# Pixels: no larger in the place, or the mask would leave nothing of it.
LARGEST = 28.0
# Sides of crops in sides of the mask: one that the subject fills, and one that shows nothing beside the mask.
SUBJECT_CROP, MASK_CROP = 0.75, 1.0


@dataclass(frozen=True)
class Task:
    """One subject. Pictures (1, H, W, 3), masks (1, H, W). caption: of the reference, with `thing` for the subject.
    wish: of the place with the subject in it.

    reference: the subject in its style before its own background. behind: that background without it. place, truth,
    another: another background in the same style, empty, with the subject, with another subject. around: of the
    reference what the mask is of the place.
    """

    seed: int
    label: str
    caption: str
    wish: str
    reference: Tensor
    reference_mask: Tensor
    around: Tensor
    behind: Tensor
    place: Tensor
    mask: Tensor
    truth: Tensor
    another: Tensor
    background: int


def draw_task(seed: int) -> Task:
    """Styles take turns by seed; the place's background is never the reference's."""
    style = seed % len(STYLES)
    reference = with_subject_of(seed, scene_of_subject(seed + REFERENCE_SEEDS, style))
    shown = render(reference)
    own = int(reference.background[0])
    other = (own + 1 + seed // len(STYLES) % (len(BACKGROUNDS) - 1)) % len(BACKGROUNDS)
    wanted = scene_of_subject(seed, style, other)
    thing, nothing = wanted.things
    smaller = thing.posed(thing.centre, thing.radius.clamp(max=LARGEST), thing.angle, thing.mirrored)
    wanted = wanted.with_things((smaller, nothing), wanted.count)
    return Task(
        seed=seed,
        label=f"{STYLES[style]}, from {BACKGROUNDS[own]} to {BACKGROUNDS[other]}",
        caption=caption(reference, 0),
        wish=caption(wanted, 0),
        reference=shown.image,
        reference_mask=shown.masks[:, 0],
        around=place_masks(reference, ROOM),
        behind=render(reference.emptied()).image,
        place=render(wanted.emptied()).image,
        mask=place_masks(wanted, ROOM),
        truth=render(wanted).image,
        another=render(with_subject_of(seed + 1, wanted)).image,
        background=own,
    )


class Likeness:
    """Cosines of pictures with one task's subject and background, by the tiny CLIP and by the judge's features."""

    def __init__(self, models: DemoModels, judge: Judge, task: Task) -> None:
        self.models, self.judge, self.task = models, judge, task
        targets = {
            "subject": (task.truth, task.mask, SUBJECT_CROP),
            "reference": (task.reference, task.around, SUBJECT_CROP),
            "behind": (task.behind, task.around, MASK_CROP),
            "place": (task.place, task.mask, MASK_CROP),
        }
        self.targets = {name: self._features(judging.crops_of_masks(*target)) for name, target in targets.items()}

    def _features(self, crops: Tensor) -> dict[str, Tensor]:
        """{judge of likeness: unit vectors (B, D)}. crops: (B, 3, h, w)."""
        seen = normalize(self.judge.features(crops), dim=1)
        return {JUDGES[0]: embed_pictures(self.models.clip_vision, crops.movedim(1, -1)), JUDGES[1]: seen}

    @torch.no_grad()
    def values(self, pictures: Tensor) -> dict[str, float]:
        """Means over candidates (B, H, W, 3), of what is in the mask.

        subject: the cosine with the subject in this very place. reference: with the reference's own crop (the paper's
        CLIP_I). leak: with what is behind the subject in the reference, less that with the place's own background; it
        falls with the size of what was drawn too. `background of the reference`: the judge's probability that this is
        where the crop was taken, which does not.
        """
        mask = self.task.mask.expand(len(pictures), -1, -1)
        near, crops = (judging.crops_of_masks(pictures, mask, margin) for margin in (SUBJECT_CROP, MASK_CROP))
        seen = {"subject": self._features(near), "behind": self._features(crops)}
        seen |= {"reference": seen["subject"], "place": seen["behind"]}
        found = {}
        for by in JUDGES:
            cosines = {name: float((seen[name][by] @ target[by].T).mean()) for name, target in self.targets.items()}
            found |= {f"{by} {name}": cosines[name] for name in ("subject", "reference")}
            found[f"{by} leak"] = cosines["behind"] - cosines["place"]
        odds = self.judge(crops)["background"].softmax(1)[:, self.task.background]
        return {**found, "background of the reference": float(odds.mean())}
