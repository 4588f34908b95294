"""Novel subjects: composite, two-coloured, patterned things that no caption of the demo world can name."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .scenes import MAX_PARTS, PATTERNS, SIZE, Scenes, Things, draw_scenes, pick, second_colour, uniform_draws
from .vocabulary import SHAPES

# Subjects below this number are the suites' own: no training set may show them, the judge's excepted.
SUITE_SUBJECTS = 1000
PALETTE = torch.tensor(
    [
        (0.85, 0.12, 0.12),
        (0.96, 0.52, 0.08),
        (0.97, 0.88, 0.15),
        (0.13, 0.62, 0.20),
        (0.12, 0.30, 0.85),
        (0.50, 0.16, 0.66),
        (0.98, 0.56, 0.74),
        (0.95, 0.95, 0.95),
        (0.10, 0.65, 0.65),
        (0.45, 0.28, 0.14),
        (0.20, 0.22, 0.26),
        (0.68, 0.86, 0.20),
    ]
)
# (offset of the pair, scale, both turned outwards) of what sticks out behind the body.
_LIMBS = torch.tensor(
    [
        (0.46, -0.62, 0.34, 0.5),  # ears
        (0.72, 0.00, 0.32, 1.6),  # arms
        (0.42, 0.66, 0.32, 2.6),  # feet
        (0.66, -0.34, 0.36, 1.0),  # wings
    ]
)


def draw_things(subjects: Sequence[int]) -> Things:
    """The subjects' looks, each from its number, standing upright in the middle. Poses come from `posed`."""
    draws = uniform_draws(subjects, 24, 1)
    size = len(draws)
    body, limb, badge = (pick(draws[:, column], len(SHAPES)) for column in (0, 1, 2))
    # A ring has no middle to carry a badge, and its limbs would show through.
    body = torch.where(body == SHAPES.index("ring"), SHAPES.index("circle"), body)
    first = pick(draws[:, 3], len(PALETTE))
    second = (first + 1 + pick(draws[:, 4], len(PALETTE) - 1)) % len(PALETTE)
    third = (second + 1 + pick(draws[:, 5], len(PALETTE) - 1)) % len(PALETTE)
    pattern = 1 + pick(draws[:, 6], len(PATTERNS) - 1)
    limbs = _LIMBS[pick(draws[:, 7], len(_LIMBS))]
    has_badge = (draws[:, 8] < 0.6).float()
    side = torch.tensor([-1.0, 1.0])
    offset = torch.zeros(size, MAX_PARTS, 2)
    offset[:, :2, 0], offset[:, :2, 1] = side * limbs[:, :1], limbs[:, 1:2]
    offset[:, 3, 1] = 0.06
    turn = torch.zeros(size, MAX_PARTS)
    turn[:, :2] = side * limbs[:, 3:4]
    scale = torch.stack([limbs[:, 2], limbs[:, 2], 0.62 + 0.12 * draws[:, 9], 0.26 * has_badge], 1)
    plain = torch.zeros(size, dtype=torch.long)
    body_rgb, limb_rgb, badge_rgb = PALETTE[first], PALETTE[second], PALETTE[third]
    rgb = torch.stack([limb_rgb, limb_rgb, body_rgb, badge_rgb], 1)
    own_second = torch.where((draws[:, 10] < 0.5)[:, None], limb_rgb, second_colour(body_rgb))
    return Things(
        shape=torch.stack([limb, limb, body, badge], 1),
        pattern=torch.stack([plain, plain, pattern, plain], 1),
        rgb=rgb,
        second_rgb=torch.stack([limb_rgb, limb_rgb, own_second, badge_rgb], 1),
        offset=offset,
        scale=scale,
        turn=turn,
        centre=torch.full((size, 2), SIZE / 2),
        radius=torch.full((size,), 34.0),
        angle=torch.zeros(size),
        mirrored=torch.zeros(size, dtype=torch.bool),
    )


def scenes_with_subjects(
    subjects: Sequence[int], seeds: Sequence[int], *, style: int | None = None, background: int | None = None
) -> Scenes:
    """One subject in each scene, in a pose, place, style and background of the scene's seed."""
    scenes = draw_scenes(seeds, style=style, background=background, objects=1)
    draws: Tensor = uniform_draws(seeds, 6, 2)
    radius = 26 + 14 * draws[:, 0]
    room = SIZE - 2 * radius - 4
    centre = torch.stack([radius + 2 + room * draws[:, 1], radius + 2 + room * draws[:, 2]], 1)
    things = draw_things(subjects).posed(centre, radius, (draws[:, 3] - 0.5) * 0.8, draws[:, 4] > 0.5)
    nothing = scenes.things[1]
    return scenes.with_things((things, nothing), torch.ones_like(scenes.count))
