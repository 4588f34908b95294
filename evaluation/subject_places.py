"""What the suite `subject` gives a method: a few photos of a novel subject, and places where it is to go."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..demo.captions import UNNAMED, caption
from ..demo.render import Pictures, mask_boxes, render
from ..demo.scenes import SIZE, Scenes, uniform_draws
from ..demo.subjects import scenes_with_subjects
from ..demo.vocabulary import RGB, SURFACES, thing_phrase
from .subjects import subject_of

# Sides of the masks, in sides of the subject's own box; they take turns.
MASKS = (1.0, 1.5, 2.0)
RARE = "sks"
_ROOM = 64

_BODY = 2
_RADIUS = 24.0, 6.0


@dataclass(frozen=True)
class Places:
    """K places for one subject. image: empty, (K, H, W, 3). mask: (K, H, W). box: (K, 4) x, y, w, h of the mask.

    truth: the scenes with the subject in them. photos: of the subject elsewhere, with masks. texts, photo_texts: what
    each shows, the subject being "a thing". named: the nearest words for the subject.
    """

    seed: int
    image: Tensor
    mask: Tensor
    box: Tensor
    sizes: list[float]
    truth: Pictures
    photos: Pictures
    texts: list[str]
    photo_texts: list[str]
    named: str

    def asked(self, thing: str) -> list[str]:
        """The texts of the places with another name for the subject."""
        return [text.replace(UNNAMED, thing) for text in self.texts]

    def taught(self, thing: str) -> list[str]:
        """The same of the photos."""
        return [text.replace(UNNAMED, thing) for text in self.photo_texts]


def photos_of(subject: int, seed: int) -> Scenes:
    """Two to four scenes with the subject, by its number, in poses, places and styles of the seed; never in pencil."""
    seeds = [seed * _ROOM + _ROOM // 2 + number for number in range(2 + subject % 3)]
    return _coloured(scenes_with_subjects([subject] * len(seeds), seeds))


def draw_places(seed: int, count: int) -> Places:
    """The places of this seed's subject. count: at most 32, a multiple of the masks' sizes."""
    subject = subject_of(seed)
    seeds = [seed * _ROOM + number for number in range(count)]
    wanted = _coloured(scenes_with_subjects([subject] * count, seeds))
    draws = uniform_draws(seeds, 3, 9)
    radius = _RADIUS[0] + _RADIUS[1] * draws[:, 0]
    room = SIZE - 2.6 * radius
    centre = 1.3 * radius[:, None] + room[:, None] * draws[:, 1:]
    thing = wanted.things[0]
    wanted = wanted.with_things(
        (thing.posed(centre, radius, thing.angle, thing.mirrored), wanted.things[1]), torch.ones_like(wanted.count)
    )
    truth, photos = render(wanted), photos_of(subject, seed)
    sizes = [MASKS[number % len(MASKS)] for number in range(count)]
    box = _grown(mask_boxes(truth.masks[:, 0]), torch.tensor(sizes))
    return Places(
        seed,
        render(wanted.emptied()).image,
        _filled(box),
        box,
        sizes,
        truth,
        render(photos),
        [caption(wanted, row) for row in range(count)],
        [caption(photos, row) for row in range(len(photos))],
        nearest_words(wanted),
    )


def nearest_words(scenes: Scenes) -> str:
    """What the vocabulary has for the first scene's subject: its body's shape, nearest colour and pattern."""
    thing = scenes.things[0]
    colour = int((thing.rgb[0, _BODY] - RGB).square().sum(1).argmin())
    pattern = int(thing.pattern[0, _BODY])
    return thing_phrase(int(thing.shape[0, _BODY]), colour, pattern if pattern < len(SURFACES) else None)


def _coloured(scenes: Scenes) -> Scenes:
    """A pencil drawing has no colours to know a subject by."""
    return replace(scenes, style=scenes.style % 3)


def _grown(box: Tensor, size: Tensor) -> Tensor:
    centre, half = box[:, :2] + box[:, 2:] / 2, box[:, 2:] * size[:, None] / 2
    low, high = (centre - half).floor().clamp(min=0), (centre + half).ceil().clamp(max=SIZE)
    return torch.cat([low, high - low], 1)


def _filled(box: Tensor) -> Tensor:
    grid = torch.arange(SIZE)
    x, y, width, height = (part[:, None] for part in box.unbind(1))
    across, down = (grid >= x) & (grid < x + width), (grid >= y) & (grid < y + height)
    return (down[:, :, None] & across[:, None, :]).float()
