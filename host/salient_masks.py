"""The saliency mask of pictures, from whichever source the user chose."""

import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..attention.boxes import largest_component
from ..attention.saliency import soften
from ..attention.salient_sources import BORDER, CALIBRATED, READINGS, RECEIVED
from ..guidance.masks import dilate, erode, fit_mask
from .attention_layers import require_readable
from .decoders import require_fit
from .inversion import empty_conditioning
from .pictures import encode_picture
from .saliency import chosen_layers, on_picture, self_attention_map, word_maps
from .text_width import require_width
from .tokens import concept_positions, encode_text

SOURCES = (*READINGS, "words", "mask")
# Where each source localises: the paper's block, and the grid where signs and words are legible.
AUTO_LAYER = {RECEIVED: "middle", CALIBRATED: "16x16", BORDER: "16x16 decoder", "words": "16x16"}


def saliency_scores(
    model: ModelPatcher,
    vae: comfy.sd.VAE,
    image: Tensor,
    source: str,
    positive: list | None = None,
    clip: comfy.sd.CLIP | None = None,
    prompt: str = "",
    words: str = "",
    layer: str = "auto",
    timesteps: list[float] = (500, 300, 100),
    draws: int = 1,
    seed: int = 0,
) -> Tensor:
    """How salient each pixel is, (B, H, W) fp32 on the CPU, in the unit in which 1 is the source's usual threshold.

    image: (B, H, W, 3). self-attention: O of Spin, mean 1. The calibrated one and attention to the border: standard
    deviations above the picture's mean. words: the map of the words, from its least value, in halves of its greatest;
    an empty prompt is the words alone. Raises ValueError for a text or a VAE of another family than the model's.
    """
    require_readable(model)
    require_fit(vae, model.model.latent_format)
    layer = AUTO_LAYER[source] if layer == "auto" else layer
    if source == "words":
        prompt = prompt if prompt.strip() else words
        positions = concept_positions(clip, prompt, words)
        conditioning = encode_text(clip, prompt)
    else:
        conditioning = positive or empty_conditioning(model)
    require_width(model, conditioning[0][0])
    latents = encode_picture(vae, image)
    layers = chosen_layers(model, latents, layer)
    progress = comfy.utils.ProgressBar(len(latents))
    maps = []
    for latent in latents.split(1):
        if source == "words":
            seen = word_maps(model, conditioning, latent, positions, layers, timesteps, draws, seed, stretch=True)
            maps.append(2 * seen.mean(0, keepdim=True) / seen.mean(0).amax())
        else:
            maps.append(self_attention_map(model, conditioning, latent, layers, timesteps, draws, seed, source))
        progress.update(1)
    return on_picture(torch.cat(maps), *image.shape[1:3], vae.spacial_compression_encode())


def salient_masks(scores: Tensor, threshold: float, clean_up: int = 0, largest: bool = False) -> tuple[Tensor, Tensor]:
    """S = 1[O >= threshold] (Spin, eq. 2) and the soft mask, 0.5 at the threshold; both (B, H, W) in [0, 1].

    clean_up: radius in pixels of an opening, which drops specks, and then a closing, which fills holes; 0 for none.
    largest: keeps the largest connected part. Raises ValueError for a picture with no salient part.
    """
    mask = (scores >= threshold).float()
    _require_any(
        mask,
        f"has no salient part above the threshold {threshold:g}. Lower the threshold, or choose another source or "
        "layer.",
    )
    if clean_up:
        mask = dilate(erode(mask, clean_up), clean_up)
        mask = erode(dilate(mask, clean_up), clean_up)
        _require_any(mask, f"has no salient part that a clean-up of {clean_up} pixels leaves. Lower clean_up.")
    if largest:
        mask = torch.stack([largest_component(one > 0) for one in mask]).float()
    return mask, soften(scores, threshold)


def _require_any(masks: Tensor, else_it: str, name: str = "picture") -> None:
    """Raises ValueError, "The picture" and what it has not, for the first of the masks (B, ...) that holds nothing."""
    for number, mask in enumerate(masks, 1):
        if not mask.any():
            which = f"The {name}" if len(masks) == 1 else f"{name.capitalize()} {number} of {len(masks)}"
            raise ValueError(f"{which} {else_it}")


def given_masks(mask: Tensor | None, image: Tensor) -> tuple[Tensor, Tensor]:
    """The user's mask, binary and as it is, for every picture.

    Raises ValueError where there is none, where nothing is in it, and for masks of another number or aspect.
    """
    if mask is None:
        raise ValueError("The source is mask and no mask is connected. Connect one, or choose another source.")
    soft = fit_mask(mask, *image.shape[1:3])
    if len(soft) not in (1, len(image)):
        raise ValueError(f"There are {len(soft)} masks for {len(image)} pictures. Give one mask, or one per picture.")
    found = (soft >= 0.5).float()
    _require_any(found, "holds nothing of a half or more. Paint the salient part white.", "mask")
    return found.expand(len(image), -1, -1), soft.expand(len(image), -1, -1)
