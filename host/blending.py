"""Blended Diffusion as one job: CLIP guidance, the paint job over a re-noised background, and the ranking."""

import copy
import logging
import math
from dataclasses import dataclass, replace

import comfy.clip_vision
import comfy.samplers
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..guidance.batches import as_one_batch
from ..guidance.masks import fit_mask, require_region
from ..guidance.paste import fill_smoothly
from .clip_guidance_patch import ClipOptions, guide_by_clip
from .kept_work import keep_each
from .notice import show_sentence
from .painting import PaintSettings, paint
from .ranking import rank_pictures, score_pictures
from .text_width import reads, require_width
from .tokens import encode_text

logger = logging.getLogger("inlay")

# Background and sampler of the paper's algorithms 2, 3 and 1.
ALGORITHMS = {"ddpm": ("renoised", "ddpm"), "ddim": ("renoised", "ddim"), "local": ("none", "ddpm")}

SAY_WHAT_IS_THERE_INSTEAD = (
    "To remove something, leave condition on and say at positive what the place shows without it: a model that is not "
    "told leaves some of the thing, or paints another one, more often."
)
CONNECT_BOTH = "Connect positive and negative, encoded by the model's own text encoder."


@dataclass(frozen=True)
class BlendModels:
    """The model that paints, its text encoder and VAE, and CLIP's vision tower, the text encoder's other half."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    vision: comfy.clip_vision.ClipVisionModel


@dataclass(frozen=True)
class BlendTexts:
    """text: what the place shows, empty for removal. condition: whether the model is told it, or CLIP alone steers.

    positive, negative: CONDITIONING that the model is told instead of the text and of the empty prompt; of a removal,
    positive is to say what the place shows without the thing.
    """

    text: str
    condition: bool = True
    positive: list | None = None
    negative: list | None = None

    @property
    def wanted(self) -> bool:
        """Whether something is asked for; otherwise what stands there is removed."""
        return bool(self.text.strip())

    @property
    def told(self) -> bool:
        """Whether the model is told what to paint."""
        return self.condition and (self.positive is not None or self.wanted)


def blend_settings(algorithm: str, **settings: object) -> PaintSettings:
    """The paint job of an algorithm: ddpm (2), ddim (3) or local (1). settings: the other fields of PaintSettings."""
    background, sampler = ALGORITHMS[algorithm]
    return PaintSettings(background=background, sampler=sampler, **settings)


def blend_pictures(
    models: BlendModels,
    image: Tensor,
    mask: Tensor,
    texts: BlendTexts,
    settings: PaintSettings,
    options: ClipOptions,
    keep: int = 0,
    sigmas: Tensor | None = None,
    guider: comfy.samplers.CFGGuider | None = None,
) -> tuple[Tensor, list[float]]:
    """The best `keep` candidates (0: all), best first, and their scores; of a batch, picture after picture.

    image: (B, H, W, 3) in [0, 1]. mask: (M, H, W), 1 = generate, neither empty nor full; the smaller of the two batches
    is repeated in turn. Without a text there is no guidance, the surroundings stand in the mask at the start (see
    without_the_thing), the candidates stay in their order and the scores are NaN. A model that is told nothing, not
    even what to avoid, runs at cfg 1. guider: paints instead of the model, its texts and cfg. An edit is the same, bit
    for bit, as guide_by_clip, paint and score_pictures one after another. Raises ValueError for what is wrong before
    anything is painted.
    """
    if models.clip is None:
        raise ValueError("There is no text encoder: this checkpoint holds none. Load one with Load CLIP.")
    image, mask = as_one_batch(image, fit_mask(mask, *image.shape[1:3]))
    require_region(mask)
    if (mask.flatten(1).amin(1) > 0).any():
        raise ValueError("The mask covers the whole picture, so nothing is left to blend with. Leave a part black.")
    if not texts.wanted and settings.background == "none":
        raise ValueError("The algorithm `local` follows a text. Give one, or choose ddpm or ddim for a removal.")
    if not texts.wanted:
        # Nothing chooses among them, so the first ones are as good as any.
        settings = replace(settings, candidates=min(settings.candidates, keep or settings.candidates))
    background = image if settings.background == "none" else None
    painter = models.model if guider is None else guider.model_patcher
    parts = painter, models.vae, models.clip, models.vision
    guided = guide_by_clip(*parts, texts.text, None, mask, background, options)
    positive = negative = None
    if guider is None:
        positive, negative = model_texts(models, texts)
    else:
        guider = with_model(guider, guided)
    if not texts.told and positive is negative:
        # Both halves of classifier-free guidance would be the same.
        settings = replace(settings, cfg=1.0)
    if not texts.wanted and not texts.told and guider is None:
        show_sentence(SAY_WHAT_IS_THERE_INSTEAD)
    shown = image if texts.wanted else without_the_thing(image, mask)
    images, _ = paint(guided, positive, negative, models.vae, shown, mask, settings, None, guider, sigmas)
    if not texts.wanted:
        logger.info("There is no text to rank the candidates by: they stay in their order, with scores that are NaN.")
        scores = torch.full((len(images),), math.nan)
    else:
        places = mask.repeat(settings.candidates, 1, 1) if len(mask) > 1 else mask
        try:
            scores = score_pictures(images, models.vision, models.clip, texts.text, mask=places)
        except Exception:
            keep_each([images], [], 1, 1, "The ranking failed")
            raise
    return best_of_each(images, scores, len(images) // settings.candidates, keep)


def with_model(guider: comfy.samplers.CFGGuider, model: ModelPatcher) -> comfy.samplers.CFGGuider:
    """A copy of the guider that paints with the model."""
    guider = copy.copy(guider)
    guider.model_patcher, guider.model_options = model, model.model_options
    return guider


def model_texts(models: BlendModels, texts: BlendTexts) -> tuple[list, list]:
    """CONDITIONING of what the model is told and of what it avoids.

    Untold, both are clip's empty prompt. A model of another width than clip cannot read that one: with condition off it
    is told what negative says in its stead. Raises ValueError for texts of another width than the model's.
    """
    empty = encode_text(models.clip, "")
    negative = empty if texts.negative is None else texts.negative
    if texts.told:
        positive = encode_text(models.clip, texts.text) if texts.positive is None else texts.positive
    else:
        # A removal with condition on may name the thing at negative, which the model is never to be told.
        positive = empty if texts.condition or reads(models.model, empty[0][0]) else negative
    for text in (positive, negative):
        require_width(models.model, text[0][0], CONNECT_BOTH)
    return positive, negative


def without_the_thing(image: Tensor, mask: Tensor) -> Tensor:
    """The pictures with their surroundings continued smoothly into the mask, and unchanged outside it.

    A start below the highest level keeps something of what stands in the mask: of this, what is around it. image:
    (B, H, W, 3). mask: (B or 1, H, W).
    """
    image = image[..., :3].float()
    known = (mask == 0).to(image).expand(len(image), -1, -1)
    return fill_smoothly(image, known)


def best_of_each(images: Tensor, scores: Tensor, pictures: int, keep: int) -> tuple[Tensor, list[float]]:
    """The best of each picture's candidates. images: (candidates * pictures, H, W, 3), candidate after candidate."""
    best, values = [], []
    for row in range(pictures):
        some, its, _ = rank_pictures(images[row::pictures], scores[row::pictures], keep)
        best.append(some)
        values += its
    return torch.cat(best), values
