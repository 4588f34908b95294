"""The photos of a subject as a data set: augmented squares, encoded once, with the condition of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import comfy.model_management
import comfy.sd
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..attention.boxes import Box, bounding_box, box_mask, boxes_per_image
from ..guidance.crops import crop_square, square_around
from ..guidance.masks import fit_mask, latent_mask
from ..training.mask_augmentation import Sides, draw_hole, draw_square
from ..training.reference_augmentation import augment_reference
from ..training.subject_settings import SubjectSettings
from .inpaint_channels import GREY, inpaint_channels
from .pictures import encode_picture
from .reference_conditioning import CROP_MARGIN

CHUNK = 8


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


@dataclass(frozen=True)
class Views:
    """N rows. latents: (N, 4, h, w) as VAE.encode returns them. channels: what an inpainting model reads besides, by
    the host's names. subject: (N, 1, h, w), how much of each cell it covers; None without masks. shown: (N, S, k S, 3)
    bytes, the square, the same with its hole, and its reference, as far as there are any.
    """

    latents: Tensor
    channels: dict[str, Tensor]
    subject: Tensor | None
    shown: Tensor


BoxValue = Box | Sequence[Box] | Sequence[Sequence[Box]]


def read_photos(
    images: Sequence[Tensor], masks: Sequence[Tensor], boxes: Sequence[BoxValue] | None, needed: bool
) -> list[Photo]:
    """images: IMAGE batches of any sizes. masks: MASK batches, one mask a photo or one for all. boxes: what a
    BOUNDING_BOX socket carries, once or once a photo, used where there are no masks; of several for a photo the largest
    counts. needed: whether the subject's place has to be known. Raises ValueError with what to do.
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
        value = boxes[0] if len(boxes) == 1 else [[one] if isinstance(one, dict) else one for one in boxes]
        lists = boxes_per_image(value, len(pictures))
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


@dataclass(frozen=True)
class Item:
    """One view to be made. number: of the photo."""

    number: int
    view: int
    photo: Photo


def most_views(settings: SubjectSettings) -> int:
    """Of a photo; without augmentation they are all the same."""
    plain = settings.mask_augmentation == "none" and not settings.reference_augmentation
    return 1 if plain else settings.views


def views_per_photo(settings: SubjectSettings, photos: int) -> int:
    """No more than the run can use."""
    drawn = settings.steps * settings.batch * settings.accumulation
    return max(1, min(most_views(settings), -(-drawn // photos)))


def make_views(
    vae: comfy.sd.VAE,
    items: Sequence[Item],
    settings: SubjectSettings,
    holes: bool,
    refer: Callable[[Tensor], None] | None,
    size: int,
) -> Views:
    """Draws and encodes the views; each depends on its own photo and number alone.

    holes: whether the model reads a masked picture. refer: takes the reference (3, size, size) of each view in turn.
    """
    side, drawn, references = settings.resolution, [], []
    # Views that differ in their references alone are encoded once.
    kinds: dict[tuple[int, int], int] = {}
    for item in items:
        comfy.model_management.throw_exception_if_processing_interrupted()
        generator = _generator(settings.seed, item.number, item.view)
        kind = _kind(item, settings)
        if kind not in kinds:
            kinds[kind] = len(drawn)
            drawn.append(_draw(item.photo, settings, side, generator))
        if refer is not None:
            references.append(_reference(item.photo, settings, size, generator))
            refer(references[-1])
    rows = torch.tensor([kinds[_kind(item, settings)] for item in items])
    squares, cuts, subjects = zip(*drawn, strict=True)
    pictures, gone = torch.stack(squares).movedim(1, -1), torch.stack(cuts)
    latents, channels = [], []
    for first in range(0, len(pictures), CHUNK):
        comfy.model_management.throw_exception_if_processing_interrupted()
        part = slice(first, first + CHUNK)
        latents.append(encode_picture(vae, pictures[part]).float().cpu())
        if holes:
            channels.append(inpaint_channels(vae, pictures[part], gone[part]))
    latent = torch.cat(latents)
    told = any(item.photo.mask is not None for item in items)
    seen = [pictures]
    if holes:
        seen.append(pictures.lerp(pictures.new_tensor(GREY), gone[..., None]))
    shown = [_bytes(torch.cat(seen, 2))[rows]]
    if references:
        shown.append(_bytes(interpolate(torch.stack(references), (side, side), mode="bilinear").movedim(1, -1)))
    joined = {name: torch.cat([one[name].float().cpu() for one in channels]) for name in (channels or [{}])[0]}
    return Views(
        latent[rows],
        {name: values[rows] for name, values in joined.items()},
        latent_mask(torch.stack(subjects), *latent.shape[-2:], cover="area")[rows] if told else None,
        torch.cat(shown, 2),
    )


def _kind(item: Item, settings: SubjectSettings) -> tuple[int, int]:
    """Of views with the same square and hole; without mask augmentation all of a photo have the same."""
    return item.number, 0 if settings.mask_augmentation == "none" else item.view


def _bytes(pictures: Tensor) -> Tensor:
    return (pictures.clamp(0, 1) * 255).round().byte()


def _draw(
    photo: Photo, settings: SubjectSettings, side: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The square (3, S, S), its hole (S, S) and the subject in it (S, S)."""
    height, width = photo.picture.shape[:2]
    plain, box = settings.mask_augmentation == "none", photo.box
    hole, around = photo.picture.new_ones(height, width), None
    if box is not None:
        hole, around = draw_hole(box, height, width, settings.mask_augmentation, generator)
    square = draw_square(around, height, width, None if plain else generator)
    subject = torch.ones_like(hole) if photo.mask is None else photo.mask
    picture = crop_square(photo.picture.movedim(-1, 0)[None], square, side)[0]
    cuts = [crop_square(mask[None, None], square, side, "nearest-exact")[0, 0] for mask in (hole, subject)]
    return picture, cuts[0], cuts[1]


def _reference(photo: Photo, settings: SubjectSettings, size: int, generator: torch.Generator) -> Tensor:
    box = photo.box
    around = {"x": box.left, "y": box.top, "width": box.right - box.left, "height": box.bottom - box.top}
    crop = crop_square(photo.picture.movedim(-1, 0)[None], square_around(around, CROP_MARGIN), size)[0]
    return augment_reference(crop, generator) if settings.reference_augmentation else crop


def _generator(seed: int, photo: int, view: int) -> torch.Generator:
    key = blake2b(f"{seed} view {photo} {view}".encode(), digest_size=7).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(key, "big"))
