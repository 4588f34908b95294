"""The jobs of the suites that paint a thing into a place by words."""

import torch

from ..demo.tasks import Tasks, draw_tasks, place_masks, task_captions

# Of a mask, in radii of the wanted thing.
SIZES = {"smaller": 0.85, "equal": 1.05, "larger": 1.6}


def draw(seeds: list[int]) -> tuple[Tasks, list[str], list[list[str]]]:
    """The tasks of these seeds, what is asked for, and each task's traits.

    Sizes of the mask, prompts with and without words for style and place, and empty places and such where another
    thing stands take turns by seed.
    """
    sizes = [list(SIZES)[seed % 3] for seed in seeds]
    described = [seed // 3 % 2 == 0 for seed in seeds]
    emptied = torch.tensor([seed // 6 % 2 == 0 for seed in seeds])
    fill, replace = (draw_tasks(seeds, kind, holding_out=True) for kind in ("fill", "replace"))
    grow = torch.tensor([SIZES[size] for size in sizes]).view(-1, 1, 1)
    tasks = Tasks(
        torch.where(emptied.view(-1, 1, 1, 1), fill.image, replace.image),
        place_masks(fill.wanted, grow),
        fill.reference,
        fill.reference_mask,
        fill.captions,
        fill.wanted,
        fill.truth,
    )
    thing_only = task_captions(fill.wanted, place=False, style=False)
    asked = [whole if told else thing for whole, thing, told in zip(fill.captions, thing_only, described, strict=True)]
    traits = [
        [f"mask {size}", "prompt with place" if told else "prompt without place"]
        for size, told in zip(sizes, described, strict=True)
    ]
    return tasks, asked, traits
