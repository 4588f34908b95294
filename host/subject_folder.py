"""A folder of many pictures to train on, read as they are needed; broken ones are named, skipped and counted."""

import logging
from hashlib import blake2b
from pathlib import Path

import folder_paths
import numpy
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..guidance.masks import fit_mask
from ..training.mask_augmentation import Sides
from .subject_photos import Photo

logger = logging.getLogger("inlay")

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MASK_ENDING = ".mask.png"
# What a picture without a mask gives away: a box of a fifth to two thirds of each side.
LEAST, MOST = 0.2, 0.67
LEAST_SIDE = 16


def folder_stamp(name: str) -> list[tuple[str, int, int]] | None:
    """Names, sizes and times of what is in a folder, which tell when something there is another. None without one."""
    try:
        path = _inside(name)
        return [
            (str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns)
            for file in sorted(path.rglob("*"))
            if file.is_file()
        ]
    except (ValueError, OSError):
        return None


def _inside(name: str) -> Path:
    """The folder of that name inside the host's input folder. Raises ValueError where there is none."""
    root = Path(folder_paths.get_input_directory()).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f'The folder "{name}" is outside the input folder. Put it into the input folder.')
    if not path.is_dir():
        raise ValueError(f'There is no folder "{name}" in the input folder. Check its name.')
    return path


class PictureFolder:
    """The pictures of a folder inside the host's input folder, in the order of their names.

    Beside couch.jpg may lie couch.mask.png, white on the thing, and couch.txt, its caption.
    """

    def __init__(self, name: str, seed: int) -> None:
        """Raises ValueError for a folder that is elsewhere, not there, or without pictures."""
        path = _inside(name)
        self.name, self.seed, self.path = name, seed, path
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS)
        self.files = [file for file in found if not file.name.lower().endswith(MASK_ENDING)]
        self.has_masks = len(found) > len(self.files)
        if not self.files:
            raise ValueError(f'The folder "{name}" holds no pictures ({", ".join(ENDINGS)}). Choose another folder.')
        self.broken: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.files)

    @property
    def captioned(self) -> bool:
        """Whether every picture has a caption of its own."""
        return all(_caption(file) for file in self.files)

    def fingerprint(self) -> dict[str, str]:
        """Of the pictures' names and sizes, and of what the masks and captions beside them hold."""
        digests = {"pictures in the folder": blake2b(), "masks in the folder": blake2b(), "captions": blake2b()}
        pictures, masks, captions = digests.values()
        for file in self.files:
            pictures.update(f"{file.relative_to(self.path)} {file.stat().st_size}\n".encode())
            for digest, beside in ((masks, _mask_of(file)), (captions, _caption_of(file))):
                digest.update(beside.read_bytes() if beside.is_file() else b"\0")
        return {name: digest.hexdigest()[:32] for name, digest in digests.items()}

    def photo(self, number: int) -> tuple[Photo, str]:
        """The picture and its caption, "" without one; in the place of a broken one the next that can be read.

        Raises ValueError where none can.
        """
        for offset in range(len(self.files)):
            at = (number + offset) % len(self.files)
            if at in self.broken:
                continue
            try:
                return self._read(at), _caption(self.files[at])
            # What Pillow raises of a broken file depends on where it is broken: errors of zlib, of struct, of an index.
            except Exception as error:
                self.broken[at] = self.files[at].name
                # In words: who keeps the error keeps every picture that its frames held.
                logger.warning("The picture %s cannot be read (%s) and is skipped.", self.files[at].name, str(error))
        raise ValueError(f'None of the {len(self.files)} pictures in "{self.name}" can be read. Choose another folder.')

    def _read(self, number: int) -> Photo:
        picture = _pixels(self.files[number], "RGB")
        height, width = picture.shape[:2]
        if min(height, width) < LEAST_SIDE:
            raise ValueError(f"it is only {width} x {height}")
        beside = _mask_of(self.files[number])
        if not beside.is_file():
            return Photo(picture, None, self._place(number, height, width))
        mask = fit_mask(_pixels(beside, "L")[None], height, width)[0]
        if not mask.any():
            raise ValueError("its mask shows nothing")
        return Photo(picture, mask)

    def _place(self, number: int, height: int, width: int) -> Sides:
        """The same box whenever the picture is read."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        share_x, share_y, at_x, at_y = torch.rand(4, generator=generator).tolist()
        across, down = (
            max(2, int(size * (LEAST + (MOST - LEAST) * share)))
            for size, share in ((width, share_x), (height, share_y))
        )
        left, top = int((width - across) * at_x), int((height - down) * at_y)
        return Sides(left, top, left + across, top + down)


def _pixels(path: Path, mode: str) -> Tensor:
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert(mode)
        return torch.from_numpy(numpy.asarray(image).copy()).float() / 255


def _mask_of(picture: Path) -> Path:
    return picture.with_name(picture.stem + MASK_ENDING)


def _caption_of(picture: Path) -> Path:
    return picture.with_suffix(".txt")


def _caption(picture: Path) -> str:
    beside = _caption_of(picture)
    return " ".join(beside.read_text(encoding="utf-8").split()) if beside.is_file() else ""
