"""What the demo world's pictures are called."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .scenes import Scenes, uniform_draws
from .vocabulary import (
    BACKGROUNDS,
    COLOURS,
    PLACE_PHRASES,
    RARE_WORDS,
    SHAPES,
    STYLE_PHRASES,
    STYLES,
    SURFACES,
    thing_phrase,
)

PENCIL = STYLES.index("pencil")


# What a caption calls a thing of which it names nothing.
UNNAMED = "a thing"


@dataclass(frozen=True)
class Named:
    """Which attributes a caption names. style, background: bool; shape, colour, surface: a bool for each object."""

    style: bool = True
    background: bool = True
    shape: tuple[bool, bool] = (True, True)
    colour: tuple[bool, bool] = (True, True)
    surface: tuple[bool, bool] = (True, True)


def caption(scenes: Scenes, row: int, named: Named = Named(), wording: float = 0.0, rare: str = "") -> str:
    """'a photo of a striped red star and a blue ring on a beach'. wording in [0, 1) picks among equal phrases."""

    def attribute(values: Tensor, index: int, said: tuple[bool, bool]) -> int | None:
        value = int(values[row, index])
        return value if said[index] and value >= 0 else None

    phrases = []
    for index in range(int(scenes.count[row])):
        phrase = thing_phrase(
            attribute(scenes.shape, index, named.shape),
            attribute(scenes.colour, index, named.colour),
            attribute(scenes.surface, index, named.surface),
        )
        article, rest = phrase.split(" ", 1)
        phrases.append(f"a {rare} {rest}" if rare and index == 0 else f"{article} {rest}")
    parts = [" and ".join(phrases) if phrases else "nothing"]
    if named.style:
        options = STYLE_PHRASES[STYLES[int(scenes.style[row])]]
        parts.insert(0, options[int(wording * len(options))])
    if named.background:
        options = PLACE_PHRASES[BACKGROUNDS[int(scenes.background[row])]]
        parts.append(options[int((wording * 7 % 1) * len(options))])
    return " ".join(parts)


def told_around(scenes: Scenes, row: int, thing: str) -> str:
    """The style and the place of a scene with one thing, and other words for the thing."""
    nothing = (False, False)
    return caption(scenes, row, Named(shape=nothing, colour=nothing, surface=nothing)).replace(UNNAMED, thing)


def full_captions(scenes: Scenes) -> list[str]:
    """Everything named, in the first wording."""
    return [caption(scenes, row) for row in range(len(scenes))]


def training_captions(scenes: Scenes) -> tuple[list[str], list[Named]]:
    """As people write: attributes left out now and then, other wordings, a rare word that means nothing."""
    draws = uniform_draws(scenes.seed, 16, 4)
    texts, names = [], []
    for row in range(len(scenes)):
        d = draws[row].tolist()

        def both(first: float, second: float, share: float) -> tuple[bool, bool]:
            return first > share, second > share

        only_one = d[0] < 0.08
        keep = int(d[1] * 3) if only_one else -1
        shape, colour, surface = both(d[2], d[3], 0.06), both(d[4], d[5], 0.10), both(d[6], d[7], 0.12)
        if only_one:
            shape, colour, surface = ((keep == kind,) * 2 for kind in range(3))
        # Colours are not to be seen in pencil drawings, but people name them all the same.
        named = Named(d[8] > 0.2, d[9] > 0.2, shape, colour, surface)
        rare = RARE_WORDS[int(d[10] * len(RARE_WORDS))] if d[11] < 0.04 else ""
        texts.append(caption(scenes, row, named, d[12], rare))
        names.append(named)
    return texts, names


def reworded(scenes: Scenes, copy: int) -> Scenes:
    """The same scenes, whose `training_captions` are drawn anew for every copy."""
    return replace(scenes, seed=tuple(seed + 500_000_000 * copy for seed in scenes.seed))


def attribute_labels(scenes: Scenes) -> dict[str, Tensor]:
    """The truth. Many-hot: shape (B, 8), colour (B, 8), surface (B, 3), pair (B, 64). style, background: (B,)."""
    size = len(scenes)
    labels = {
        "shape": torch.zeros(size, len(SHAPES)),
        "colour": torch.zeros(size, len(COLOURS)),
        "surface": torch.zeros(size, len(SURFACES)),
        "pair": torch.zeros(size, len(SHAPES) * len(COLOURS)),
    }
    for index in range(2):
        rows = (scenes.shape[:, index] >= 0).nonzero(as_tuple=True)[0]
        shape, colour = scenes.shape[rows, index], scenes.colour[rows, index]
        labels["shape"][rows, shape] = 1
        labels["colour"][rows, colour] = 1
        labels["surface"][rows, scenes.surface[rows, index]] = 1
        labels["pair"][rows, shape * len(COLOURS) + colour] = 1
    return {**labels, "style": scenes.style, "background": scenes.background}


def vocabulary_texts() -> list[str]:
    """Sentences that together hold every word that captions use, digits and a few connecting words besides."""
    phrases = [phrase for group in (STYLE_PHRASES, PLACE_PHRASES) for pair in group.values() for phrase in pair]
    words = [*SHAPES, *COLOURS, *SURFACES, *RARE_WORDS, "thing", "nothing", "and", "a an the of with in on ."]
    return [*phrases, *words]
