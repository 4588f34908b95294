"""How alike a painted thing is to photos of a subject, wherever in the mask it was put and however large.

The judge was never taught a subject; its features serve as DINO's do elsewhere, and no method is guided by them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..demo.judge import Judge, crop_boxes
from ..demo.render import Pictures, mask_boxes
from ..host.clip_pairs import embed_pictures

PHOTO_MARGIN = 1.15
# Windows as shares of the mask's longer side: (share, places along each axis).
WINDOWS = ((1.0, 1), (0.75, 2), (0.55, 3))
THING = ("shape", "colour", "surface")


def photo_crops(photos: Pictures) -> Tensor:
    """The squares around the photos' subjects, (n, 3, 64, 64)."""
    return crop_boxes(photos.image, mask_boxes(photos.masks[:, 0]), PHOTO_MARGIN)


def window_crops(image: Tensor, box: Tensor) -> Tensor:
    """(W, K, 3, 64, 64): each picture's mask box as a square, and smaller squares in it. box: (K, 4) x, y, w, h."""
    centre, side = box[:, :2] + box[:, 2:] / 2, box[:, 2:].amax(1, keepdim=True)
    crops = []
    for share, places in WINDOWS:
        steps = torch.linspace(-1, 1, places) * (1 - share) / 2 if places > 1 else torch.zeros(1)
        own = side * share
        for offset in torch.cartesian_prod(steps, steps):
            corner = centre + offset * side - own / 2
            crops.append(crop_boxes(image, torch.cat([corner, own, own], 1), 1.0))
    return torch.stack(crops)


@dataclass(frozen=True)
class Scores:
    """alike: (K, S), to each of the subjects. clip: (K,). features: (K, 19)."""

    alike: Tensor
    clip: Tensor
    features: Tensor

    def likeness(self, subject: int = 0) -> Tensor:
        """(K,): to the one that it should be."""
        return self.alike[:, subject]

    def told(self, subject: int = 0) -> Tensor:
        """(K,): whether the judge's features pick that one."""
        return (self.alike.argmax(1) == subject).float()


class Likeness:
    """vision: the host's CLIP vision. photos: of the subject in question first, then of others like it."""

    @torch.no_grad()
    def __init__(self, judge: Judge, vision: Any, photos: Sequence[Pictures]) -> None:
        self.judge, self.vision = judge, vision
        crops = [photo_crops(one) for one in photos]
        features = [judge.features(one) for one in crops]
        # Features are never negative, so that without this any two pictures would look alike.
        self.mean = torch.stack([one.mean(0) for one in features]).mean(0)
        self.known = [normalize(one - self.mean, dim=1) for one in features]
        self.seen = embed_pictures(vision, crops[0].movedim(1, -1))

    @torch.no_grad()
    def score(self, image: Tensor, box: Tensor) -> Scores:
        """Of each picture (K, H, W, 3) in its mask's box, the best of its windows."""
        crops = window_crops(image, box)
        flat = crops.flatten(0, 1)
        features = normalize(self.judge.features(flat) - self.mean, dim=1).unflatten(0, crops.shape[:2])
        alike = torch.stack([(features @ known.T).mean(-1).amax(0) for known in self.known], 1)
        clip = (embed_pictures(self.vision, flat.movedim(1, -1)) @ self.seen.T).mean(1)
        scores = self.judge(crops[0])
        return Scores(alike, clip.unflatten(0, crops.shape[:2]).amax(0), torch.cat([scores[name] for name in THING], 1))
