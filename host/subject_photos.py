"""The photos of a subject as sockets carry them, with where it is in each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.boxes import Box, bounding_box, box_mask, boxes_per_image
from ..guidance.masks import fit_mask
from ..training.mask_augmentation import Sides

BoxValue = Box | Sequence[Box] | Sequence[Sequence[Box]]


@dataclass(frozen=True)
class Photo:
    """picture: (H, W, 3). mask: (H, W), 1 on the subject; None where nobody said where it is. place: a box instead."""

    picture: Tensor
    mask: Tensor | None
    place: Sides | None = None

    @property
    def box(self) -> Sides | None:
        if self.place is not None or self.mask is None:
            return self.place
        found = bounding_box(self.mask >= self.mask.max() / 2)
        return Sides(found["x"], found["y"], found["x"] + found["width"], found["y"] + found["height"])


def read_photos(
    images: Sequence[Tensor], masks: Sequence[Tensor], boxes: Sequence[BoxValue] | None, needed: bool
) -> list[Photo]:
    """images: IMAGE batches of any sizes. masks: MASK batches, one mask a photo or one for all. boxes: what a
    BOUNDING_BOX socket carries, once, once a photo or once a batch of photos, used where there are no masks; of several
    for a photo the largest counts. needed: whether the subject's place has to be known. Raises ValueError with what to
    do.
    """
    pictures = [picture[..., :3].float().cpu() for batch in images for picture in batch]
    if not pictures:
        raise ValueError("There is no photo. Connect at least one picture of the subject.")
    if any(not torch.isfinite(picture).all() for picture in pictures):
        raise ValueError("A photo holds values that are not numbers. Check the node that made it.")
    found: list[Tensor | None] = [None] * len(pictures)
    given = [mask.float().cpu() for batch in masks for mask in batch.reshape(-1, *batch.shape[-2:])]
    if given:
        if len(given) not in (1, len(pictures)):
            raise ValueError(f"There are {len(given)} masks for {len(pictures)} photos. Give one mask for each photo.")
        each = given * len(pictures) if len(given) == 1 else given
        found = [fit_mask(mask, *one.shape[:2])[0] for mask, one in zip(each, pictures, strict=True)]
    elif boxes is not None:
        lists = boxes_per_image(boxes[0] if len(boxes) == 1 else _each_photos(boxes), len(pictures))
        if [] in lists:
            raise ValueError(
                f"There is no box for photo {lists.index([]) + 1} of {len(pictures)}. Find one there, or paint a mask."
            )
        largest = [max(one, key=lambda box: box["width"] * box["height"]) for one in lists]
        found = [box_mask([box], *picture.shape[:2]) for box, picture in zip(largest, pictures, strict=True)]
    elif needed:
        raise ValueError(
            "Nothing says where the subject is. Connect masks, or boxes, as Find Box and Mask Salient Part make them."
        )
    for number, mask in enumerate(found, 1):
        if mask is not None and not mask.any():
            raise ValueError(f"Mask {number} of {len(found)} shows no subject. Paint the subject white in it.")
    return [Photo(picture, mask) for picture, mask in zip(pictures, found, strict=True)]


def _each_photos(boxes: Sequence[BoxValue]) -> list[Sequence[Box]]:
    """One list a photo, of values that hold a photo's box, a photo's boxes, or a list for each photo of a batch."""
    lists: list[Sequence[Box]] = []
    for value in boxes:
        if isinstance(value, dict):
            lists.append([value])
        elif all(isinstance(one, dict) for one in value):
            lists.append(value)
        else:
            lists.extend(value)
    return lists
