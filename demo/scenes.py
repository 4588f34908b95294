"""Scenes of the demo world: what is where. Everything follows from one seed a scene, drawn on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .vocabulary import BACKGROUNDS, COLOURS, RGB, SHAPES, STYLES, SURFACES, held_out

SIZE = 128
NOISE_GRID = 9
PATTERNS = ("plain", "striped", "dotted", "halves", "checks", "target")
MAX_PARTS = 4
_DRAWS = 64


@dataclass(frozen=True)
class Things:
    """Objects as stacks of up to MAX_PARTS parts, later parts on top. Shapes: (B, ...)."""

    shape: Tensor  # (B, P) index into SHAPES
    pattern: Tensor  # (B, P) index into PATTERNS
    rgb: Tensor  # (B, P, 3)
    second_rgb: Tensor  # (B, P, 3), of the pattern
    offset: Tensor  # (B, P, 2), in radii
    scale: Tensor  # (B, P), in radii; 0: no such part
    turn: Tensor  # (B, P), radians, within the thing
    centre: Tensor  # (B, 2), (x, y) in pixels of a SIZE picture
    radius: Tensor  # (B,), pixels; 0: no such thing
    angle: Tensor  # (B,), radians
    mirrored: Tensor  # (B,) bool

    def __getitem__(self, rows: Tensor) -> "Things":
        return Things(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def posed(self, centre: Tensor, radius: Tensor, angle: Tensor, mirrored: Tensor) -> "Things":
        return replace(self, centre=centre, radius=radius, angle=angle, mirrored=mirrored)


@dataclass(frozen=True)
class Scenes:
    """B scenes. Attribute tensors hold -1 where there is no such object, or no name for it."""

    seed: tuple[int, ...]
    style: Tensor  # (B,)
    background: Tensor  # (B,)
    count: Tensor  # (B,) objects, 0 to 2
    shape: Tensor  # (B, 2)
    colour: Tensor  # (B, 2)
    surface: Tensor  # (B, 2)
    things: tuple[Things, Things]
    layout: Tensor  # (B, 16) in [0, 1]: the background's own choices
    noise: Tensor  # (B, 3, NOISE_GRID, NOISE_GRID) in [-1, 1]

    def __len__(self) -> int:
        return len(self.seed)

    def with_things(self, things: tuple[Things, Things], count: Tensor) -> "Scenes":
        """The same places with other things in them, which no caption can name."""
        unnamed = torch.full_like(self.shape, -1)
        return replace(self, things=things, count=count, shape=unnamed, colour=unnamed, surface=unnamed)

    def emptied(self) -> "Scenes":
        """The same places with nothing in them."""
        nothing = tuple(replace(thing, radius=torch.zeros_like(thing.radius)) for thing in self.things)
        return self.with_things(nothing, torch.zeros_like(self.count))


def uniform_draws(seeds: Sequence[int], count: int, stream: int) -> Tensor:
    """(B, count) in [0, 1). One generator a seed, so that a scene does not depend on its neighbours."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed((int(seed) * 16 + stream) & 0x7FFFFFFFFFFFFFFF)
        rows.append(torch.rand(count, generator=generator))
    return torch.stack(rows)


def pick(draw: Tensor, count: int) -> Tensor:
    """An index below count for each draw in [0, 1)."""
    return (draw * count).long().clamp(max=count - 1)


def second_colour(rgb: Tensor) -> Tensor:
    """The light stripe of a dark colour, the dark stripe of a light one."""
    luminance = (rgb * torch.tensor([0.299, 0.587, 0.114])).sum(-1, keepdim=True)
    return torch.where(luminance > 0.7, rgb * 0.45, rgb * 0.25 + 0.75)


def plain_things(shape: Tensor, colour: Tensor, surface: Tensor, pose: Tensor) -> Things:
    """One-part things with a name. shape, colour, surface: (B,). pose: (B, 5): x, y, radius, angle, mirrored."""
    size, parts = len(shape), MAX_PARTS
    rgb = RGB[colour.clamp(min=0)]

    def stacked(first: Tensor) -> Tensor:
        return torch.cat([first[:, None], torch.zeros(size, parts - 1, *first.shape[1:], dtype=first.dtype)], 1)

    return Things(
        shape=stacked(shape.clamp(min=0)),
        pattern=stacked(surface.clamp(min=0)),
        rgb=stacked(rgb),
        second_rgb=stacked(second_colour(rgb)),
        offset=torch.zeros(size, parts, 2),
        scale=stacked(torch.ones(size)),
        turn=torch.zeros(size, parts),
        centre=pose[:, :2],
        radius=pose[:, 2],
        angle=pose[:, 3],
        mirrored=pose[:, 4] > 0.5,
    )


def _poses(draws: Tensor, index: int, count: Tensor) -> Tensor:
    """Where an object stands: alone anywhere, in company the first to the left and the second to the right."""
    alone = count < 2
    radius = torch.where(alone, 20 + 20 * draws[:, 0], 20 + 8 * draws[:, 0])
    left = torch.where(alone, torch.zeros(()), torch.tensor(62.0 * index)) + radius + 3
    right = torch.where(alone, torch.tensor(float(SIZE)), torch.tensor(66.0 + 62.0 * index)) - radius - 3
    x = left + (right - left) * draws[:, 1]
    y = radius + 3 + (SIZE - 2 * radius - 6) * draws[:, 2]
    angle = (draws[:, 3] - 0.5) * 0.7
    there = (count > index).float()
    return torch.stack([x, y, radius * there, angle, (draws[:, 4] > 0.5).float()], 1)


def draw_scenes(
    seeds: Sequence[int],
    *,
    style: int | None = None,
    background: int | None = None,
    objects: int | None = None,
    holding_out: bool | None = None,
) -> Scenes:
    """Scenes of these seeds; whatever is not asked for is drawn.

    objects: 0, 1 or 2; drawn, three scenes in ten have two. holding_out: True draws only attribute combinations that
    training never shows, False only the others, None any.
    """
    seeds = tuple(int(seed) for seed in seeds)
    size = len(seeds)
    draws = uniform_draws(seeds, _DRAWS + 3 * NOISE_GRID * NOISE_GRID, 0)
    styles = pick(draws[:, 0], len(STYLES)) if style is None else torch.full((size,), style)
    backgrounds = pick(draws[:, 1], len(BACKGROUNDS)) if background is None else torch.full((size,), background)
    count = torch.where(draws[:, 2] < 0.3, 2, 1) if objects is None else torch.full((size,), objects)
    things, named = [], []
    for index in range(2):
        own = draws[:, 4 + 16 * index : 20 + 16 * index]
        shape, colour = pick(own[:, 0], len(SHAPES)), pick(own[:, 1], len(COLOURS))
        surface = torch.where(own[:, 2] < 0.5, 0, 1 + pick(own[:, 3], 2))
        if holding_out is not None:
            # Exactly one shape of each colour, surface and style is held out: step to it, or to the next one.
            for _ in range(len(SHAPES)):
                wrong = held_out(styles, shape, colour, surface) != holding_out
                shape = torch.where(wrong, (shape + 1) % len(SHAPES), shape)
        there = count > index
        things.append(plain_things(shape, colour, surface, _poses(own[:, 4:9], index, count)))
        named.append([torch.where(there, attribute, -1) for attribute in (shape, colour, surface)])
    shapes, colours, surfaces = (torch.stack(pair, 1) for pair in zip(*named, strict=True))
    noise = draws[:, _DRAWS:].view(size, 3, NOISE_GRID, NOISE_GRID) * 2 - 1
    layout = draws[:, 40:56]
    return Scenes(seeds, styles, backgrounds, count, shapes, colours, surfaces, tuple(things), layout, noise)


assert len(SURFACES) == 3 and PATTERNS[: len(SURFACES)] == SURFACES
