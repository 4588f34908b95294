"""Scenes to pictures: background, things, style. The same seed gives the same pixels within 1/255 on any machine."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .backgrounds import mix, paint_backgrounds, smooth_step
from .scenes import MAX_PARTS, PATTERNS, SIZE, Scenes, Things
from .shapes import signed_distance
from .styles import apply_style, warp_of_style

_FAR = 1e3


@dataclass(frozen=True)
class Pictures:
    """image: (B, H, W, 3) in [0, 1]. masks: (B, 2, H, W), 1 on the visible thing. boxes: (B, 2, 4) x, y, w, h."""

    image: Tensor
    masks: Tensor
    boxes: Tensor


def _pattern(pattern: Tensor, u: Tensor, v: Tensor, radius: Tensor, rgb: Tensor, second: Tensor) -> Tensor:
    """Colours of one part. u, v: (B, H, W), in the part's radii. Returns (B, 3, H, W)."""
    # Periods are in pixels, so that the VAE can carry them whatever the thing's size.
    period = 18.0 / radius.view(-1, 1, 1).clamp(min=1)
    edge = 3.0 / radius.view(-1, 1, 1).clamp(min=1)
    share = torch.zeros_like(u)
    for index, name in enumerate(PATTERNS):
        rows = pattern == index
        if name == "plain" or not rows.any():
            continue
        x, y, p, e = u[rows], v[rows], period[rows], edge[rows]
        if name == "striped":
            wave = torch.sin(2 * math.pi * (x * 0.8 + y * 0.6) / p)
            share[rows] = 0.5 + 0.5 * (2.5 * wave).clamp(-1, 1)
        elif name == "dotted":
            q = p * 1.05
            away = torch.hypot(torch.remainder(x, q) - q / 2, torch.remainder(y, q) - q / 2)
            share[rows] = 1 - smooth_step(0, 1, (away - 0.30 * q + e / 2) / e)
        elif name == "halves":
            share[rows] = smooth_step(0, 1, x / e + 0.5)
        elif name == "checks":
            q = p * 1.2
            both = torch.sin(2 * math.pi * x / (2 * q)) * torch.sin(2 * math.pi * y / (2 * q))
            share[rows] = 0.5 + 0.5 * (5 * both).clamp(-1, 1)
        elif name == "target":
            share[rows] = 1 - smooth_step(0, 1, (torch.hypot(x, y) - 0.48 + e / 2) / e)
    return mix(rgb[..., None, None], second[..., None, None], share[:, None])


def _draw_thing(thing: Things, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thing's distance (B, H, W) in pixels, colour (B, 3, H, W), and inner outlines (B, H, W) in pixels."""
    radius = thing.radius.view(-1, 1, 1)
    dx, dy = x - thing.centre[:, 0].view(-1, 1, 1), y - thing.centre[:, 1].view(-1, 1, 1)
    cos, sin = torch.cos(thing.angle).view(-1, 1, 1), torch.sin(thing.angle).view(-1, 1, 1)
    safe = radius.clamp(min=1)
    u, v = (dx * cos + dy * sin) / safe, (dy * cos - dx * sin) / safe
    u = torch.where(thing.mirrored.view(-1, 1, 1), -u, u)
    whole = torch.full_like(u, _FAR)
    colour = torch.zeros(len(u), 3, *u.shape[1:], device=u.device)
    outline = torch.full_like(u, _FAR)
    for part in range(MAX_PARTS):
        scale = thing.scale[:, part].view(-1, 1, 1)
        if not (scale > 0).any():
            continue
        pu = (u - thing.offset[:, part, 0].view(-1, 1, 1)) / scale.clamp(min=0.05)
        pv = (v - thing.offset[:, part, 1].view(-1, 1, 1)) / scale.clamp(min=0.05)
        turn = thing.turn[:, part].view(-1, 1, 1)
        pu, pv = pu * torch.cos(turn) + pv * torch.sin(turn), pv * torch.cos(turn) - pu * torch.sin(turn)
        size = (safe * scale)[:, 0, 0]
        distance = signed_distance(thing.shape[:, part], pu, pv) * size.view(-1, 1, 1)
        distance = torch.where(scale > 0, distance, _FAR)
        paint = _pattern(thing.pattern[:, part], pu, pv, size, thing.rgb[:, part], thing.second_rgb[:, part])
        cover = (0.5 - distance).clamp(0, 1)
        colour = mix(colour, paint, cover[:, None])
        # A part hides the outlines below it.
        outline = torch.where(distance < 0, distance.abs(), torch.minimum(outline, distance.abs()))
        whole = torch.minimum(whole, distance)
    whole = torch.where(radius > 0, whole, _FAR)
    outline = torch.where(radius > 0, outline, _FAR)
    return whole, colour, outline


def mask_boxes(masks: Tensor) -> Tensor:
    """masks: (..., H, W). Returns (..., 4): x, y, width, height in pixels of what is at least half covered."""
    inside = masks >= 0.5
    columns, rows = inside.any(-2), inside.any(-1)

    def span(line: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.arange(line.shape[-1], device=line.device)
        first = torch.where(line, index, line.shape[-1]).amin(-1)
        last = torch.where(line, index, -1).amax(-1)
        return torch.where(last < 0, 0, first), (last + 1 - torch.where(last < 0, 0, first)).clamp(min=0)

    x, width = span(columns)
    y, height = span(rows)
    return torch.stack([x, y, width, height], -1)


def render(scenes: Scenes, device: torch.device | str = "cpu") -> Pictures:
    """Pictures of SIZE x SIZE, with the truth about them."""
    noise = interpolate(scenes.noise.to(device), (SIZE, SIZE), mode="bicubic", align_corners=True).clamp(-1, 1)
    layout, style = scenes.layout.to(device), scenes.style.to(device)
    grid = torch.arange(SIZE, device=device) + 0.5
    shift = warp_of_style(style, noise)
    x, y = grid.view(1, 1, -1) + shift[:, 0], grid.view(1, -1, 1) + shift[:, 1]
    picture = paint_backgrounds(scenes.background.to(device), layout, noise)
    distances, colours, outlines = [], [], []
    for thing in scenes.things:
        moved = Things(**{name: value.to(device) for name, value in vars(thing).items()})
        distance, colour, outline = _draw_thing(moved, x, y)
        distances.append(distance)
        colours.append(colour)
        outlines.append(outline)
    image = apply_style(style, picture, distances, colours, outlines, scenes.things, noise, x, y)
    masks = torch.stack([(0.5 - distance).clamp(0, 1) for distance in distances], 1)
    masks[:, 0] = masks[:, 0] * (1 - masks[:, 1])
    image = image.permute(0, 2, 3, 1).clamp(0, 1).contiguous()
    return Pictures(image, masks, mask_boxes(masks))
