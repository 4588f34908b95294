"""What the suite `boxes` looks for: one thing of a picture, by words that name no other."""

from dataclasses import dataclass

from torch import Tensor

from ...attention.boxes import Box
from ...demo.captions import full_captions
from ...demo.render import render
from ...demo.scenes import draw_scenes
from ...demo.vocabulary import SHAPES, STYLES, thing_phrase


@dataclass(frozen=True, eq=False)
class View:
    """A picture (1, H, W, 3), what is said of it, the words for the thing that is looked for, and where it stands."""

    image: Tensor
    prompt: str
    shape: str
    phrase: str
    truth: Box
    style: str


def views(seeds: list[int], count: int) -> list[View | None]:
    """One view a seed; None where both things of a scene have the same shape, so that its word names neither."""
    scenes = draw_scenes(seeds, objects=count, holding_out=True)
    shown, prompts = render(scenes), full_captions(scenes)
    found: list[View | None] = []
    for row, seed in enumerate(seeds):
        which = seed % count
        if count == 2 and scenes.shape[row, 0] == scenes.shape[row, 1]:
            found.append(None)
            continue
        shape, colour, surface = (int(values[row, which]) for values in (scenes.shape, scenes.colour, scenes.surface))
        phrase = thing_phrase(shape, colour, surface).split(" ", 1)[1]
        truth = dict(zip(("x", "y", "width", "height"), shown.boxes[row, which].tolist(), strict=True))
        style = STYLES[int(scenes.style[row])]
        found.append(View(shown.image[row : row + 1], prompts[row], SHAPES[shape], phrase, truth, style))
    return found
