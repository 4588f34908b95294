"""What the demo world's captions can name, and which combinations no training picture shows."""

import torch
from torch import Tensor

STYLES = ("photo", "cartoon", "oil", "pencil")
BACKGROUNDS = ("meadow", "beach", "night", "bricks", "snow", "wood")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SURFACES = ("plain", "striped", "dotted")
RARE_WORDS = ("sks", "ohwx", "zwx", "qnt")

STYLE_PHRASES = {
    "photo": ("a photo of", "a photograph of"),
    "cartoon": ("a cartoon of", "a comic drawing of"),
    "oil": ("an oil painting of", "a painting of"),
    "pencil": ("a pencil drawing of", "a sketch of"),
}
PLACE_PHRASES = {
    "meadow": ("on a meadow", "in the grass"),
    "beach": ("on a beach", "by the sea"),
    "night": ("at night", "under the stars"),
    "bricks": ("on a brick wall", "before bricks"),
    "snow": ("in the snow", "in winter"),
    "wood": ("on wood", "on a wooden floor"),
}
RGB = torch.tensor(
    [
        (0.85, 0.12, 0.12),
        (0.96, 0.52, 0.08),
        (0.97, 0.88, 0.15),
        (0.13, 0.62, 0.20),
        (0.12, 0.30, 0.85),
        (0.50, 0.16, 0.66),
        (0.98, 0.56, 0.74),
        (0.95, 0.95, 0.95),
    ]
)


def held_out(style: Tensor, shape: Tensor, colour: Tensor, surface: Tensor) -> Tensor:
    """True where a (shape, colour, surface) triple is kept from training in that style: one shape in eight."""
    return (shape + 3 * colour + 5 * surface + 2 * style) % len(SHAPES) == 0


def thing_phrase(shape: int | None, colour: int | None, surface: int | None) -> str:
    """'a striped red star'; an attribute left out is None, a missing shape is 'thing'."""
    words = [
        "" if surface is None or SURFACES[surface] == "plain" else SURFACES[surface],
        "" if colour is None else COLOURS[colour],
        "thing" if shape is None else SHAPES[shape],
    ]
    phrase = " ".join(word for word in words if word)
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
