"""What the suite `swap` swaps: scenes with one thing each, and what is to take its place, by words or learned.

There are ten target concepts, one a scene by its seed: eight colours and surfaces, each with the shape that training
never shows in the scene's style, told by words; and two things, held out as well, that are told only by a concept
learned from four pictures of each. A learned concept's thing has a name too, so that the judge can tell whether it is
there, but no prompt holds it.
"""

from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from ..attention.boxes import Box, bounding_box, box_mask
from ..demo.captions import caption, full_captions, told_around
from ..demo.render import Pictures, render
from ..demo.scenes import SIZE, Scenes, draw_scenes, plain_things
from ..demo.tasks import draw_photos, photo_scenes
from ..demo.vocabulary import COLOURS, SHAPES, STYLE_PHRASES, STYLES, SURFACES, held_out, thing_phrase
from ..host.concept_text import SLOT
from ..host.swap_settings import SwapTexts

BY_WORDS = 8
LEARNED = 2
CONCEPTS = BY_WORDS + LEARNED
PHOTOS = 4
# Around the true box: the new thing has another shape, and boxes that are found are looser too. It ends with a whole
# latent cell, as what is masked does: at 512 pixels a cell is a 64th of the side, here it would count as background.
AIR = 2
CELL = 8
_LEARNING_SEED = 60_500_000
# To the next scene, where a scene's own thing is too much like the wished one.
_REDRAWN = 500_000

Thing = tuple[int, int, int]


@dataclass(frozen=True)
class Job:
    """One swap. scene: with the old thing. wanted: the same with the new one. concept: 0 to CONCEPTS - 1. box: around
    the old thing. photos: (PHOTOS, H, W, 3) of the new thing elsewhere, and their masks.
    """

    seed: int
    scene: Scenes
    wanted: Scenes
    concept: int
    truth: Pictures
    image: Tensor
    box: Box
    photos: Tensor
    photo_masks: Tensor

    @property
    def learned(self) -> bool:
        return self.concept >= BY_WORDS

    @property
    def mask(self) -> Tensor:
        return box_mask([self.box], SIZE, SIZE)[None]

    @property
    def source_words(self) -> str:
        return _words(self.scene)

    @property
    def shape_word(self) -> str:
        return SHAPES[int(self.scene.shape[0, 0])]

    @property
    def target_caption(self) -> str:
        """The wish in words, also where it is asked for by a learned concept."""
        return caption(self.wanted, 0)

    def texts(self) -> SwapTexts:
        source, old = full_captions(self.scene)[0], _thing(self.scene)
        wished = thing_phrase(*_thing(self.wanted))
        target, new = self.target_caption, wished
        if self.learned:
            new = f"embedding:{concept_name(self.concept)}"
            target = target.replace(wished, new)
        return SwapTexts(source, target, self.phrase(thing_phrase(*old)), self.phrase(new))

    def phrase(self, thing: str) -> str:
        """What a region is told: the thing in the scene's style, as captions begin. By the thing's words alone the demo
        models swapped .67 of the attributes where this did .83 (ten tuning scenes, at the paper's rate).
        """
        return f"{STYLE_PHRASES[STYLES[int(self.scene.style[0])]][0]} {thing}"


def concept_name(concept: int) -> str:
    return f"inlay-swap-{concept - BY_WORDS}"


def draw_job(seed: int) -> Job:
    # Every second or fourth seed has all concepts too.
    concept = (seed + seed // CONCEPTS) % CONCEPTS
    # Pictures of a learned thing are photos; in other styles its name need not be held out.
    style = STYLES.index("photo") if concept >= BY_WORDS else None
    scenes = (draw_scenes([seed + _REDRAWN * number], style=style, objects=1, holding_out=True) for number in count())
    scene, thing = next(pair for pair in ((scene, _target(scene, concept)) for scene in scenes) if _differ(*pair))
    wanted = _with_thing(scene, thing)
    shown, truth = render(scene), render(wanted)
    photos, masks = draw_photos(wanted, seed, PHOTOS)
    box = whole_cells(bounding_box(shown.masks[0, 0] >= 0.5, AIR))
    return Job(seed, scene, wanted, concept, truth, shown.image, box, photos, masks)


def whole_cells(box: Box) -> Box:
    """The box grown to the latent cells that it touches."""
    left, top = box["x"] // CELL * CELL, box["y"] // CELL * CELL
    right, bottom = -(-(box["x"] + box["width"]) // CELL) * CELL, -(-(box["y"] + box["height"]) // CELL) * CELL
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}


def learning_pictures(concept: int) -> tuple[Tensor, Tensor, str]:
    """PHOTOS pictures of a learned concept's thing, its masks, and what else they show, from no scene of the suite."""
    place = draw_scenes([_LEARNING_SEED + concept], style=STYLES.index("photo"), objects=1)
    shown = _with_thing(place, _learned_thing(concept)), _LEARNING_SEED + concept, PHOTOS
    lines = (told_around(scene, 0, SLOT) for scene in photo_scenes(*shown))
    return *draw_photos(*shown), "\n".join(lines)


def _thing(scenes: Scenes) -> Thing:
    return tuple(int(getattr(scenes, name)[0, 0]) for name in ("shape", "colour", "surface"))


def _words(scenes: Scenes) -> str:
    return thing_phrase(*_thing(scenes)).split(" ", 1)[1]


def _held_out_thing(style: int, colour: int, surface: int) -> Thing:
    shapes = torch.arange(len(SHAPES))
    kept = held_out(torch.tensor(style), shapes, torch.tensor(colour), torch.tensor(surface))
    return int(shapes[kept][0]), colour, surface


def _learned_thing(concept: int) -> Thing:
    return _held_out_thing(STYLES.index("photo"), *((4, 1), (0, 2))[concept - BY_WORDS])


def _target(scene: Scenes, concept: int) -> Thing:
    """The concept's thing in the scene's style."""
    if concept >= BY_WORDS:
        return _learned_thing(concept)
    return _held_out_thing(int(scene.style[0]), concept % len(COLOURS), concept % len(SURFACES))


def _differ(scene: Scenes, thing: Thing) -> bool:
    """Whether the scene's own thing has another shape and another colour."""
    return all(own != other for own, other in zip(_thing(scene)[:2], thing[:2], strict=True))


def _with_thing(scene: Scenes, thing: Thing) -> Scenes:
    """The scene with that thing in the pose of its own first one."""
    old, named = scene.things[0], [torch.tensor([value]) for value in thing]
    new = plain_things(*named, torch.zeros(1, 5)).posed(old.centre, old.radius, old.angle, old.mirrored)
    shape, colour, surface = (torch.tensor([[value, -1]]) for value in thing)
    return replace(scene, things=(new, scene.things[1]), shape=shape, colour=colour, surface=surface)
