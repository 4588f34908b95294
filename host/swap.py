"""InstantSwap and its relatives on a picture: one thing in a box becomes another, appears, or goes."""

from collections.abc import Sequence
from functools import partial

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..attention.boxes import Box, box_mask
from ..attention.concept_region import mask_boxes, single_boxes
from ..guidance.batches import as_one_batch
from ..guidance.masks import fit_mask, require_region
from ..guidance.paste import paste_back
from .decoders import require_fit
from .kept_work import CANCELLED, best_effort, keep_each, keep_pictures
from .pictures import decode_picture, encode_picture
from .swap_run import SwapRun
from .swap_settings import SwapSettings, SwapTexts


@torch.no_grad()
def swap_picture(
    model: ModelPatcher,
    target_model: ModelPatcher | None,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    image: Tensor,
    mask: Tensor,
    texts: SwapTexts,
    settings: SwapSettings,
    bbox: Box | Sequence | None = None,
    target_clip: comfy.sd.CLIP | None = None,
) -> tuple[Tensor, dict]:
    """The pictures (B, H, W, 3) with the swap in their boxes, and their LATENT.

    target_model, target_clip: for the target's texts, None for the same. image: (B, H, W, 3) in [0, 1]. mask: (B or 1,
    H, W); its bounding box is the box, unless bbox is given. Raises ValueError with what to do for bad input. On cancel
    the picture so far is kept and shown, and the host's interrupt goes on; so it is before any other error.
    """
    if clip is None:
        raise ValueError("There is no text encoder. Connect the model's clip.")
    image = image[..., :3].float()
    height, width = image.shape[1:3]
    image, mask = as_one_batch(image, fit_mask(mask, height, width).to(image.device))
    if bbox is None:
        require_region(mask)
        boxes = mask_boxes(mask)
    else:
        boxes = single_boxes(bbox, len(image), height, width)
    multiple = vae.spacial_compression_encode() if vae else 1
    for box in boxes:
        _require_a_cell(box, multiple)
    require_fit(vae, model.model.latent_format)
    job = SwapRun((model, target_model), (clip, target_clip), texts, settings, boxes, multiple)
    latent = encode_picture(vae, image)

    def finish(samples: Tensor, rows: slice = slice(None)) -> Tensor:
        picture = decode_picture(vae, samples[rows], height, width).to(image)
        if settings.paste == "none":
            return picture
        inside = torch.stack([box_mask([box], height, width) for box in boxes[rows]]).to(image.device)
        return paste_back(image[rows], picture, inside, settings.feather if settings.paste == "feather" else 0)

    try:
        samples = job.run(latent)
        return finish(samples), {"samples": samples}
    except comfy.model_management.InterruptProcessingException:
        with best_effort():
            pictures = [finish(job.samples, slice(row, row + 1)) for row in sorted(job.reached)]
            if pictures:
                keep_pictures(torch.cat(pictures), CANCELLED, job.done, job.total)
        raise
    except Exception:
        rows = [partial(finish, job.samples, slice(row, row + 1)) for row in sorted(job.reached)]
        keep_each([], rows, job.done, job.total)
        raise


def _require_a_cell(box: Box, multiple: int) -> None:
    """Raises ValueError for a box smaller than one latent pixel of multiple x multiple."""
    width, height = box["width"], box["height"]
    if max(width, height) < multiple:
        raise ValueError(
            f"The box is {width} x {height} pixels, smaller than a latent pixel, {multiple} x {multiple}. "
            "Draw a larger one; boxes are in pixels of the picture."
        )
