"""The photos of a subject as a data set: augmented squares, encoded once, with the condition of each."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import comfy.model_management
import comfy.sd
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..guidance.crops import Square, crop_square, square_around
from ..guidance.masks import latent_mask
from ..training.mask_augmentation import draw_hole, draw_square
from ..training.reference_augmentation import augment_reference
from ..training.subject_settings import SubjectSettings
from .inpaint_channels import GREY, inpaint_channels
from .pictures import encode_picture
from .reference_conditioning import CROP_MARGIN
from .subject_photos import Photo

CHUNK = 8
# Of what is shown, so that a thousand views fit in memory.
SHOWN_SIDE = 256


@dataclass(frozen=True)
class Views:
    """N rows. latents: (N, 4, h, w) as VAE.encode returns them. channels: what an inpainting model reads besides, by
    the host's names. subject: (N, 1, h, w), how much of each cell it covers; None without masks. shown: (N, S, k S, 3)
    bytes, the square, the same with its hole, and its reference, as far as there are any, S at most SHOWN_SIDE. told:
    (N,), whether a mask says where the subject is, which else covers all cells; None where it does in every row.
    """

    latents: Tensor
    channels: dict[str, Tensor]
    subject: Tensor | None
    shown: Tensor
    told: Tensor | None = None

    def told_at(self, rows: Tensor) -> Tensor:
        """(B,), whether a mask says in these rows where the subject is."""
        if self.told is not None:
            return self.told[rows]
        return torch.full((len(rows),), self.subject is not None)

    @property
    def all_told(self) -> bool:
        return bool(self.told_at(torch.arange(len(self.latents))).all())


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
    squares, side = _Squares(vae, holes), settings.resolution
    rows: list[int] = []
    told: list[bool] = []
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
        told.append(item.photo.mask is not None)
        if refer is not None:
            reference = _reference(item.photo, settings, size, generator)
            references.append(_shown(reference[None], side)[0])
            refer(reference)
    return squares.views(torch.tensor(rows), references, torch.tensor(told))


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

    def views(self, rows: Tensor, references: Sequence[Tensor], told: Tensor) -> Views:
        """rows: (N,), the square of each view. references: of each view, as bytes. told: (N,), as of Views."""
        self._encode()
        shown = [torch.cat(self.shown)[rows]]
        if references:
            shown.append(torch.stack(list(references)))
        names = self.channels[0] if self.channels else ()
        return Views(
            torch.cat(self.latents)[rows],
            {name: torch.cat([one[name] for one in self.channels])[rows] for name in names},
            torch.cat(self.subjects)[rows] if told.any() else None,
            torch.cat(shown, 2),
            told,
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
