"""What the saliency focus takes for salient: the user's masks, or the model's own attention."""

import logging
from dataclasses import replace

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..attention.salient_sources import BORDER, EVEN, READINGS, auto_threshold, evenness, joined_map
from ..guidance.masks import fit_mask
from ..training.concept import ConceptSettings
from .gradients import ordinary
from .saliency import chosen_layers, self_attention_layers
from .salient_masks import AUTO_LAYER, salient_masks
from .unet_blocks import BlockKey

logger = logging.getLogger("inlay")

MASK_SOURCES = ("auto", *READINGS, "masks")
# Where a picture's saliency is looked at before training.
TIMESTEPS = (500, 300, 100)


def with_source(settings: ConceptSettings, masks: Tensor | None) -> ConceptSettings:
    """The settings with the mask source that is meant; of a reading chosen by name, a threshold of 0 is 1.

    Masks come first, whatever reading is named: whoever connects them wants them used.
    """
    if masks is not None:
        return replace(settings, mask_source="masks")
    if settings.mask_source == "auto":
        return replace(settings, mask_source=BORDER)
    return replace(settings, threshold=settings.threshold or 1.0)


def given_masks(masks: Tensor | None, images: Tensor, settings: ConceptSettings) -> Tensor | None:
    """(P, H, W), or None where S is the model's own. images: (P, H, W, 3).

    Raises ValueError for masks that are missing, empty, of another number or of another aspect.
    """
    if settings.mask_source == "masks" and masks is None:
        raise ValueError("The mask source is masks and none is connected. Connect one, or choose another source.")
    if settings.mask_source != "masks":
        return None
    with torch.inference_mode(False):
        masks = fit_mask(ordinary(masks), *images.shape[1:3]).cpu()
    if len(masks) not in (1, len(images)):
        raise ValueError(f"There are {len(masks)} masks for {len(images)} pictures. Give one mask, or one per picture.")
    for number, mask in enumerate(masks, 1):
        if not mask.any():
            which = "The mask" if len(masks) == 1 else f"Mask {number} of {len(masks)}"
            raise ValueError(f"{which} excludes everything, so nothing could be learned. Paint the subject white.")
    return masks.expand(len(images), -1, -1)


def legible_layers(
    model: ModelPatcher, conditioning: list, latents: Tensor, settings: ConceptSettings, reading: str
) -> tuple[list[BlockKey], Tensor]:
    """The layers that S is read from, and each picture's threshold (P,), of its own where the settings' is 0.

    Raises ValueError for a picture in which they find nothing salient.
    """
    layers = chosen_layers(model, latents, AUTO_LAYER[reading] if settings.layer == "auto" else settings.layer)
    seen = [
        self_attention_layers(model, conditioning, one, layers, TIMESTEPS, 1, settings.seed, reading)
        for one in latents.split(1)
    ]
    maps = torch.cat([joined_map(reading, one) for one in seen])
    if not settings.threshold:
        # A threshold that suits each picture finds something in every one.
        for number, one in enumerate(seen, 1):
            if bool(evenness(one) > EVEN):
                which = "The picture" if len(seen) == 1 else f"Picture {number} of {len(seen)}"
                logger.warning("%s seems to have no salient part. Look at the output mask, or connect masks.", which)
        return layers, auto_threshold(maps)
    salient_masks(maps, settings.threshold)
    return layers, torch.full((len(maps),), settings.threshold)
