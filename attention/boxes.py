"""From maps to boxes and back. A box is {x, y, width, height} in pixels, half-open: it ends before x + width."""

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

Box = dict[str, int]
SIDES = ("x", "y", "width", "height")
# Of the picture's area.
SPECK = 0.001


def largest_component(mask: Tensor) -> Tensor:
    """The largest connected part of a mask (H, W) bool, diagonal neighbours included; the first of equal ones."""
    from scipy.ndimage import label

    labels, count = label(mask.cpu().numpy(), structure=[[1] * 3] * 3)
    if count == 0:
        return mask
    labels = torch.from_numpy(labels).long()
    sizes = labels.flatten().bincount()[1:]
    return (labels == sizes.argmax() + 1).to(mask.device)


def salient_part(salient: Tensor, words: Tensor, threshold: float) -> Tensor:
    """(H, W) bool: of the connected parts of salient >= threshold, the one that the words tell most of.

    salient: (H, W). words: (H, W), what they tell of each place. Specks do not count. Raises ValueError where no part
    is left.
    """
    from scipy.ndimage import label

    labels, count = label((salient >= threshold).cpu().numpy(), structure=[[1] * 3] * 3)
    parts = [torch.from_numpy(labels == number).to(words.device) for number in range(1, count + 1)]
    parts = [part for part in parts if part.sum() >= SPECK * part.numel()]
    if count and not parts:
        raise ValueError(
            f"What reaches the threshold {threshold:g} is smaller than a thousandth of the picture. Lower it, "
            "crop the picture around the thing, or draw the box by the words alone."
        )
    if not parts:
        raise ValueError(f"No place reaches the threshold {threshold:g}. Lower it, or draw the box by the words alone.")
    return max(parts, key=lambda part: float(words[part].mean()))


def bounding_box(mask: Tensor, margin: int = 0) -> Box:
    """The smallest box around a mask (H, W), grown by `margin` pixels on each side as far as the picture goes.

    Raises ValueError for an empty mask.
    """
    if not mask.any():
        raise ValueError("The mask is empty, so there is nothing to draw a box around.")
    spans = []
    for side, size in ((mask.any(1), mask.shape[0]), (mask.any(0), mask.shape[1])):
        found = side.nonzero()[:, 0]
        spans.append((max(0, int(found[0]) - margin), min(size, int(found[-1]) + 1 + margin)))
    (top, bottom), (left, right) = spans
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}


def find_box(maps: Tensor, threshold: float, margin: int = 0) -> Box:
    """The box around what any pass finds: per pass the largest component of map >= threshold, then their union.

    maps: (passes, H, W). Raises ValueError where no pass reaches the threshold.
    """
    found = torch.stack([largest_component(one >= threshold) for one in maps]).any(0)
    if not found.any():
        raise ValueError(f"No place reaches the threshold {threshold:g}. Lower it, or name the thing in other words.")
    return bounding_box(found, margin)


def box_mask(boxes: Sequence[Box], height: int, width: int) -> Tensor:
    """(height, width) with 1 inside any of the boxes, each cut at the picture's edge.

    Raises ValueError for a box that lies outside the picture.
    """
    mask = torch.zeros(height, width)
    for box in boxes:
        x, y, w, h = (round(box[side]) for side in SIDES)
        inside = mask[max(0, y) : max(0, y + h), max(0, x) : max(0, x + w)]
        if inside.numel() == 0:
            raise ValueError(
                f"The box x {x}, y {y}, {w} x {h} covers no pixel of the {width} x {height} picture. "
                "Boxes are in pixels of the picture, from its top left corner."
            )
        inside.fill_(1)
    return mask


def boxes_per_image(boxes: Box | Sequence[Box] | Sequence[Sequence[Box]], count: int) -> list[list[Box]]:
    """One list of boxes per image, from any shape that a BOUNDING_BOX socket carries.

    A dict or a list of dicts holds for every image; of a list of lists, one per image, a single one does too. Raises
    ValueError for anything else.
    """
    lists = [boxes] if isinstance(boxes, dict) else list(boxes)
    if all(isinstance(one, dict) for one in lists):
        lists = [lists]
    if len(lists) == 1:
        lists = lists * count
    if len(lists) != count:
        raise ValueError(f"There are boxes for {len(lists)} images, not {count}. Give one list of boxes per image.")
    for box in (box for one in lists for box in one):
        if not isinstance(box, dict) or not all(_is_number(box.get(side)) for side in SIDES):
            raise ValueError(f"A box needs the numbers x, y, width and height, and this one is {box!r}.")
    return [list(one) for one in lists]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and isfinite(value)


def boxes_to_masks(boxes: Box | Sequence[Box] | Sequence[Sequence[Box]], count: int, height: int, width: int) -> Tensor:
    """MASK (count, height, width) of whatever a BOUNDING_BOX socket carries. Raises as box_mask and boxes_per_image."""
    return torch.stack([box_mask(one, height, width) for one in boxes_per_image(boxes, count)])
