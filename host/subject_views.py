"""The photos of a subject as a data set: augmented squares, encoded once, with the condition of each."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import comfy.model_management
import comfy.sd
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..attention.boxes import Box, bounding_box, box_mask, boxes_per_image
from ..guidance.crops import Square, crop_square, square_around
from ..guidance.masks import fit_mask, latent_mask
from ..training.mask_augmentation import Sides, draw_hole, draw_square
from ..training.reference_augmentation import augment_reference
from ..training.subject_settings import SubjectSettings
from .inpaint_channels import GREY, inpaint_channels
from .pictures import encode_picture
from .reference_conditioning import CROP_MARGIN

CHUNK = 8
# Of what is shown, so that a thousand views fit in memory.
SHOWN_SIDE = 256


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
    bytes, the square, the same with its hole, and its reference, as far as there are any, S at most SHOWN_SIDE.
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
    """One view to be made. number: of the photo. caption: "" where a reference tells it."""

    number: int
    view: int
    photo: Photo
    caption: str = ""


def views_each(settings: SubjectSettings) -> int:
    """Of a photo; without augmentation they are all the same."""
    plain = settings.mask_augmentation == "none" and not settings.reference_augmentation
    return 1 if plain else settings.views


def make_views(
    vae: comfy.sd.VAE,
    items: Iterable[Item],
    settings: SubjectSettings,
    holes: bool,
    refer: Callable[[Tensor], None] | None,
    size: int,
) -> Views:
    """Draws and encodes the views; each depends on its own photo and number alone. The items are taken one by one.

    holes: whether the model reads a masked picture. refer: takes the reference (3, size, size) of each view in turn.
    """
    squares, side, told = _Squares(vae, holes), settings.resolution, False
    rows: list[int] = []
    references: list[Tensor] = []
    # Views that differ in their references alone are encoded once.
    kinds: dict[tuple[int, Square, bytes], int] = {}
    for item in items:
        comfy.model_management.throw_exception_if_processing_interrupted()
        generator = _generator(settings.seed, item.number, item.view)
        hole, square = _place(item.photo, settings, generator)
        cut = crop_square(hole[None, None], square, side, "nearest-exact")[0, 0].clone()
        kind = item.number, square, blake2b(cut.byte().numpy()).digest()
        if kind not in kinds:
            kinds[kind] = squares.add(*_cut(item.photo, square, side), cut)
        rows.append(kinds[kind])
        told = told or item.photo.mask is not None
        if refer is not None:
            reference = _reference(item.photo, settings, size, generator)
            references.append(_shown(reference[None], side)[0])
            refer(reference)
    return squares.views(torch.tensor(rows), references, told)


class _Squares:
    """Encodes squares a chunk at a time and keeps of each what training needs, and bytes to show."""

    def __init__(self, vae: comfy.sd.VAE, holes: bool) -> None:
        self.vae, self.holes, self.count = vae, holes, 0
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self.latents: list[Tensor] = []
        self.channels: list[dict[str, Tensor]] = []
        self.subjects: list[Tensor] = []
        self.shown: list[Tensor] = []

    def add(self, picture: Tensor, subject: Tensor, hole: Tensor) -> int:
        """picture: (3, S, S). subject, hole: (S, S). Returns its number."""
        self.waiting.append((picture, subject, hole))
        self.count += 1
        if len(self.waiting) == CHUNK:
            self._encode()
        return self.count - 1

    def views(self, rows: Tensor, references: Sequence[Tensor], told: bool) -> Views:
        """rows: (N,), the square of each view. references: of each view, as bytes. told: whether the subjects are."""
        self._encode()
        shown = [torch.cat(self.shown)[rows]]
        if references:
            shown.append(torch.stack(list(references)))
        names = self.channels[0] if self.channels else ()
        return Views(
            torch.cat(self.latents)[rows],
            {name: torch.cat([one[name] for one in self.channels])[rows] for name in names},
            torch.cat(self.subjects)[rows] if told else None,
            torch.cat(shown, 2),
        )

    def _encode(self) -> None:
        if not self.waiting:
            return
        comfy.model_management.throw_exception_if_processing_interrupted()
        squares, subjects, gone = (torch.stack(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting.clear()
        pictures = squares.movedim(1, -1)
        latent = encode_picture(self.vae, pictures).float().cpu()
        self.latents.append(latent)
        self.subjects.append(latent_mask(subjects, *latent.shape[-2:], cover="area"))
        seen = [squares]
        if self.holes:
            channels = inpaint_channels(self.vae, pictures, gone)
            self.channels.append({name: values.float().cpu() for name, values in channels.items()})
            seen.append(squares.lerp(squares.new_tensor(GREY), gone[:, None]))
        self.shown.append(torch.cat([_shown(one, squares.shape[-1]) for one in seen], 2))


def _shown(pictures: Tensor, side: int) -> Tensor:
    """(B, 3, H, W) as bytes (B, S, S, 3), S at most `side`."""
    shown = min(side, SHOWN_SIDE)
    if pictures.shape[-2:] != (shown, shown):
        pictures = interpolate(pictures, (shown, shown), mode="bilinear", antialias=True)
    return (pictures.movedim(1, -1).clamp(0, 1) * 255).round().byte()


def _place(photo: Photo, settings: SubjectSettings, generator: torch.Generator) -> tuple[Tensor, Square]:
    """The hole (H, W) in the photo and the square around it."""
    height, width = photo.picture.shape[:2]
    plain, box = settings.mask_augmentation == "none", photo.box
    hole, around = photo.picture.new_ones(height, width), None
    if box is not None:
        hole, around = draw_hole(box, height, width, settings.mask_augmentation, generator)
    return hole, draw_square(around, height, width, None if plain else generator)


def _cut(photo: Photo, square: Square, side: int) -> tuple[Tensor, Tensor]:
    """The square (3, S, S) and the subject in it (S, S)."""
    # A copy: one of the photo's own pixels would keep it in memory.
    picture = crop_square(photo.picture.movedim(-1, 0)[None], square, side)[0].clone()
    if photo.mask is None:
        return picture, picture.new_ones(side, side)
    return picture, crop_square(photo.mask[None, None], square, side, "nearest-exact")[0, 0].clone()


def _reference(photo: Photo, settings: SubjectSettings, size: int, generator: torch.Generator) -> Tensor:
    box = photo.box
    around = {"x": box.left, "y": box.top, "width": box.right - box.left, "height": box.bottom - box.top}
    crop = crop_square(photo.picture.movedim(-1, 0)[None], square_around(around, CROP_MARGIN), size)[0].clone()
    return augment_reference(crop, generator) if settings.reference_augmentation else crop


def _generator(seed: int, photo: int, view: int) -> torch.Generator:
    key = blake2b(f"{seed} view {photo} {view}".encode(), digest_size=7).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(key, "big"))
