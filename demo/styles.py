"""The four hands that the demo world is drawn by: photo, cartoon, oil, pencil."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from .backgrounds import mix, smooth_step
from .vocabulary import STYLES


def warp_of_style(style: Tensor, noise: Tensor) -> Tensor:
    """How far a hand misses the true outline. noise: (B, 3, H, W). Returns (B, 2, H, W) in pixels."""
    reach = torch.tensor([0.0, 0.0, 3.0, 1.2], device=noise.device)[style]
    return noise[:, :2] * reach.view(-1, 1, 1, 1)


def _cover(distance: Tensor) -> Tensor:
    return (0.5 - distance).clamp(0, 1)[:, None]


def _photo(picture, distances, colours, outlines, centres, radii, noise, x, y) -> Tensor:
    for distance, colour, centre, radius in zip(distances, colours, centres, radii, strict=True):
        # The light comes from the upper left: a soft shadow to the lower right, a bright flank.
        shifted = pad(distance[:, None], (6, 0, 8, 0), mode="replicate")[..., : distance.shape[1], : distance.shape[2]]
        picture = picture * (1 - 0.42 * smooth_step(0, 1, (6 - shifted) / 12))
        flank = ((x - centre[:, 0]) + (y - centre[:, 1])) / (1.5 * radius.clamp(min=1))
        rim = smooth_step(0, 1, (distance + 7) / 7)
        shade = 1.02 - 0.28 * flank.clamp(-1, 1) - 0.22 * rim
        picture = mix(picture, colour * shade[:, None], _cover(distance))
    glare = 0.10 * (0.5 - x[:, None] / x.shape[-1]) + 0.08 * (0.5 - y[:, None] / y.shape[-2])
    return picture + glare


def _cartoon(picture, distances, colours, outlines, centres, radii, noise, x, y) -> Tensor:
    grey = picture.mean(1, keepdim=True)
    picture = grey + 1.45 * (picture - grey) + 0.06
    for distance, colour, outline in zip(distances, colours, outlines, strict=True):
        paint = colour.mean(1, keepdim=True) + 1.15 * (colour - colour.mean(1, keepdim=True))
        picture = mix(picture, paint, _cover(distance))
        ink = smooth_step(0, 1, 3.4 - outline)
        picture = mix(picture, torch.full_like(picture, 0.03), ink[:, None])
    return picture


def _oil(picture, distances, colours, outlines, centres, radii, noise, x, y) -> Tensor:
    for distance, colour, outline in zip(distances, colours, outlines, strict=True):
        picture = mix(picture, colour * 0.92, _cover(distance))
        # Without a rim, white things vanish in the snow.
        picture = picture * (1 - 0.45 * smooth_step(0, 1, (3.0 - outline) / 2)[:, None])
    # Strokes wander with the noise, but slowly: their period stays what the VAE can carry.
    along = (0.55 * x[:, None] + 0.83 * y[:, None]) * (2 * math.pi / 17)
    strokes = torch.sin(along + 4.5 * noise[:, 2:3])
    warm = torch.tensor([1.02, 0.94, 0.80], device=x.device).view(1, 3, 1, 1)
    return (0.10 + 0.84 * picture) * warm * (1 + 0.13 * strokes)


def _pencil(picture, distances, colours, outlines, centres, radii, noise, x, y) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114], device=x.device).view(1, 3, 1, 1)
    grey = (picture * weights).sum(1, keepdim=True)
    edges = (grey - avg_pool2d(pad(grey, (3, 3, 3, 3), mode="replicate"), 7, 1)).abs()
    tone = 0.86 + 0.22 * (grey - 0.5) - 1.2 * edges
    for distance, colour, outline in zip(distances, colours, outlines, strict=True):
        fill = 0.55 + 0.42 * ((colour * weights).sum(1, keepdim=True) - 0.2)
        tone = mix(tone, fill, _cover(distance))
        tone = mix(tone, torch.full_like(tone, 0.16), 0.9 * smooth_step(0, 1, 3.0 - outline)[:, None])
    hatch = torch.sin((x[:, None] - y[:, None]) * (2 * math.pi / 12) + 2 * noise[:, 1:2])
    tone = tone + 0.07 * hatch * (1.05 - tone)
    paper = torch.tensor([1.0, 0.985, 0.95], device=x.device).view(1, 3, 1, 1)
    return tone * paper


_HANDS = {"photo": _photo, "cartoon": _cartoon, "oil": _oil, "pencil": _pencil}


def apply_style(
    style: Tensor,
    picture: Tensor,
    distances: Sequence[Tensor],
    colours: Sequence[Tensor],
    outlines: Sequence[Tensor],
    things: Sequence,
    noise: Tensor,
    x: Tensor,
    y: Tensor,
) -> Tensor:
    """Draws the things over the background, each scene by its own hand. picture: (B, 3, H, W). x, y: (B, H, W)."""
    centres = [thing.centre.to(picture.device)[..., None, None] for thing in things]
    radii = [thing.radius.to(picture.device)[:, None, None] for thing in things]
    result = torch.empty_like(picture)
    for index, name in enumerate(STYLES):
        rows = (style == index).nonzero(as_tuple=True)[0]
        if len(rows):
            layers = [[tensor[rows] for tensor in group] for group in (distances, colours, outlines, centres, radii)]
            result[rows] = _HANDS[name](picture[rows], *layers, noise[rows], x[rows], y[rows])
    return result
