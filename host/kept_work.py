"""What a run has reached that was cancelled, or that failed: kept as a file and sent as the last live preview."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import comfy.utils
import folder_paths
import numpy
import torch
from PIL import Image
from torch import Tensor

logger = logging.getLogger("inlay")

PREVIEW_SIDE = 512
CANCELLED, FAILED = "inlay_cancelled", "inlay_failed"


@contextmanager
def best_effort(why: str = "Cancelled") -> Iterator[None]:
    """Logs what fails in here: the work so far is worth keeping, but no other error may take the first one's place.

    why: how the log's sentence begins.
    """
    try:
        yield
    except Exception as error:
        logger.warning("%s. What was there could not be kept: %s", why, error)


def keep_each(
    images: Sequence[Tensor],
    rest: Sequence[Callable[[], Tensor]],
    step: int,
    total: int,
    why: str = "The run failed",
) -> None:
    """After an error: keeps the pictures (B, H, W, 3), and of the rest those that can be made. One may be at fault.

    step of total: where the progress bar stands. why: how the log's sentences begin.
    """
    images = list(images)
    for picture in rest:
        with best_effort(why):
            images.append(picture())
    if images:
        with best_effort(why):
            keep_pictures(torch.cat(images), FAILED, step, total, why)


def keep_pictures(images: Tensor, name: str, step: int, total: int, why: str = "Cancelled") -> list[str]:
    """Writes the pictures (B, H, W, 3) to the host's temporary folder and shows the last one. Returns the paths.

    step of total: where the progress bar stands. why: how the log's sentence begins.
    """
    folder, stem, counter, _, _ = folder_paths.get_save_image_path(name, folder_paths.get_temp_directory())
    paths = []
    for number, values in enumerate(images, counter):
        picture = Image.fromarray((values.clamp(0, 1) * 255).round().cpu().numpy().astype(numpy.uint8))
        path = os.path.join(folder, f"{stem}_{number:05}_.png")
        picture.save(f"{path}.part", "PNG")
        os.replace(f"{path}.part", path)
        paths.append(path)
    logger.info("%s. What was there is in %s", why, folder)
    comfy.utils.ProgressBar(total).update_absolute(step, total, ("JPEG", picture, PREVIEW_SIDE))
    return paths
