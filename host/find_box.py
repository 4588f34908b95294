"""The box around a named thing in a picture, from the model's own attention (InstantSwap, section 3.2)."""

from collections.abc import Iterator
from dataclasses import dataclass

import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..attention.boxes import Box, bounding_box, box_mask, find_box, salient_part
from ..attention.saliency import soften
from .attention_layers import require_readable
from .decoders import require_fit
from .pictures import encode_picture
from .saliency import chosen_layers, on_picture, word_maps
from .salient_masks import saliency_scores
from .text_width import require_width
from .tokens import concept_positions, encode_text
from .word_gain import word_gain

# What the box is drawn around: where the words act, or the salient part that they tell most of.
OUTLINES = ("words", "salient part")
SALIENT_BY = "attention to the border"


@dataclass(frozen=True)
class FoundBoxes:
    """Per picture: its box, the box as mask (B, H, W), and the map it comes from, (B, H, W) in [0, 1]: the mean of
    the words' maps, or what stands out inside the box, 0.5 at the threshold.
    """

    boxes: list[Box]
    mask: Tensor
    soft: Tensor


def find_boxes(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    image: Tensor,
    prompt: str,
    concept: str,
    alpha: float = 2.0,
    threshold: float = 0.5,
    passes: int = 3,
    margin: int = 0,
    layer: str = "16x16",
    self_attention: bool = True,
    seed: int = 0,
    stretch: bool = False,
    outline: str = OUTLINES[0],
) -> FoundBoxes:
    """Where the concept's words act in each picture.

    image: (B, H, W, 3). concept: words of the prompt, or `embedding:name`. outline: of OUTLINES. threshold: share of a
    pass's greatest value; of a salient part, deviations above the picture's mean. margin: pixels. Of words alone:
    passes, noise levels evenly from timestep 500 to 100; alpha, layer, self_attention and stretch, as for word_maps.
    Raises ValueError for a model that is no UNet, words that the prompt does not hold, and a picture where no place
    reaches the threshold.
    """
    height, width = image.shape[1:3]
    by_words = outline == OUTLINES[0]
    parts = model, clip, vae
    if by_words:
        seen = concept_maps(*parts, image, prompt, concept, alpha, passes, layer, self_attention, seed, stretch)
    else:
        # Before any picture is looked at.
        require_readable(model)
        concept_positions(clip, prompt, concept)
        require_width(model, encode_text(clip, prompt)[0][0])
        salient = saliency_scores(model, vae, image, SALIENT_BY, seed=seed)
        gains = (word_gain(*parts, one, prompt, concept, seed)[0] for one in image.split(1))
        seen = zip(salient, gains, strict=True)
    # Only now: the salient maps show a progress of their own.
    progress = comfy.utils.ProgressBar(len(image))
    boxes, masks, maps = [], [], []
    for number, one in enumerate(seen, 1):
        try:
            box = find_box(one, threshold, margin) if by_words else _around_a_part(*one, threshold, margin)
        except ValueError as error:
            if len(image) == 1:
                raise
            raise ValueError(f"Picture {number} of {len(image)}: {error}") from error
        boxes.append(box)
        masks.append(box_mask([box], height, width))
        maps.append(one.mean(0).clamp(0, 1) if by_words else soften(one[0], threshold) * masks[-1])
        progress.update(1)
    return FoundBoxes(boxes, torch.stack(masks), torch.stack(maps))


def _around_a_part(salient: Tensor, told: Tensor, threshold: float, margin: int) -> Box:
    return bounding_box(salient_part(salient, told, threshold), margin)


def concept_maps(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    image: Tensor,
    prompt: str,
    concept: str,
    alpha: float = 2.0,
    passes: int = 3,
    layer: str = "16x16",
    self_attention: bool = True,
    seed: int = 0,
    stretch: bool = False,
) -> Iterator[Tensor]:
    """What find_boxes draws the box of each picture from, in turn: (passes, H, W), greatest value about 1."""
    require_readable(model)
    require_fit(vae, model.model.latent_format)
    positions = concept_positions(clip, prompt, concept)
    conditioning = encode_text(clip, prompt)
    require_width(model, conditioning[0][0])
    latents = encode_picture(vae, image)
    layers = chosen_layers(model, latents, layer)
    timesteps = torch.linspace(500, 100, passes).tolist()
    for latent in latents.split(1):
        seen = word_maps(
            model, conditioning, latent, positions, layers, timesteps, 1, seed, alpha, self_attention, stretch
        )
        yield on_picture(seen, *image.shape[1:3], vae.spacial_compression_encode(), mode="bicubic")
