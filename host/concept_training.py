"""Learning a concept from pictures on the user's own MODEL, CLIP and VAE."""

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..attention.saliency import resize_map
from ..attention.salient_sources import READINGS, RECEIVED
from ..guidance.masks import latent_mask
from ..training.concept import ConceptSettings, ConceptTraining, Vectors
from ..training.objectives import OBJECTIVES
from .concept_checkpoint import ConceptCheckpoint
from .concept_loop import AfterStep, ConceptLoop
from .concept_masks import given_masks, legible_layers, with_source
from .concept_material import Material
from .concept_text import SLOT, ConceptText, spoken
from .decoders import require_fit
from .embedding_files import embedding_name, require_alone, save_embedding
from .gradients import ordinary
from .kept_work import CANCELLED, best_effort, keep_pictures
from .models import require_timesteps
from .out_of_memory import is_out_of_memory
from .pictures import decode_picture, encode_picture, pad_mask, scaled_down
from .text_width import require_width
from .unet_blocks import require_unet

logger = logging.getLogger("inlay")

_FP16_VAE = (
    "The VAE's decoder overflows in fp16, most likely: run the VAE in higher precision (--fp32-vae or --bf16-vae), or "
    "choose another objective."
)


@dataclass(frozen=True)
class LearnedConcept:
    """prompt: the sentence with `embedding:name` in it. mask: (P, H, W), the mask that was used, averaged over the
    steps, at the pictures' own size; all ones where the objective has none. losses: one a step, without those that were
    left out for a loss that is not a number. preview: (1, h, 3 w, 3), a reference as it was learned from, the same with
    its mask, a sample; without the sample, 2 w, where that could not be painted.
    """

    prompt: str
    path: str
    conditioning: list
    mask: Tensor
    losses: list[float]
    preview: Tensor


def learn_concept(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    images: Tensor,
    name: str,
    settings: ConceptSettings | None = None,
    if_exists: str = "number",
    masks: Tensor | None = None,
    sentence: str = SLOT,
) -> LearnedConcept:
    """Trains the vectors of one concept and saves them under the name.

    images: (P, H, W, 3) in [0, 1]. masks: (P or 1, H, W), 1 on the subject. if_exists: of embedding_files.IF_EXISTS.
    sentence: what the prompt and the CONDITIONING say, `{}` for the concept. Raises ValueError with what to do for bad
    input, before the first step. On cancel a checkpoint is written and shown, and the host's interrupt goes on; the
    same call continues there, with the result that one run would have had. So it does after any other failure.
    """
    job = _Job(model, clip, vae, images, name, settings or ConceptSettings(), if_exists, masks, sentence)
    return job.run()


def concept_at_steps(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    images: Tensor,
    settings: ConceptSettings,
    steps: Collection[int],
    masks: Tensor | None = None,
    sentence: str = SLOT,
) -> dict[int, list]:
    """The CONDITIONING of the sentence after each of these steps of one training, 0 for the start; no file."""
    job = _Job(model, clip, vae, images, "evaluated", replace(settings, resume=False), "number", masks, sentence)
    kept: dict[int, Vectors] = {}

    def keep(step: int, vectors: Vectors) -> None:
        if step in steps:
            kept[step] = {key: value.detach().clone() for key, value in vectors.items()}

    keep(0, job.training.vectors)
    job.loop(keep).run(sampled=False)
    return {step: job.material.text.conditioning(vectors, job.sentence) for step, vectors in kept.items()}


class _Job:
    def __init__(
        self,
        model: ModelPatcher,
        clip: comfy.sd.CLIP,
        vae: comfy.sd.VAE,
        images: Tensor,
        name: str,
        settings: ConceptSettings,
        if_exists: str,
        masks: Tensor | None,
        sentence: str,
    ) -> None:
        if images is None or len(images) == 0:
            raise ValueError("There is no reference image. Connect at least one picture of the subject.")
        require_unet(model, "learning a concept")
        require_timesteps(model)
        require_fit(vae, model.model.latent_format)
        self.settings = settings = with_source(settings, masks)
        self.vae, self.size = vae, images.shape[1:3]
        self.name = embedding_name(name, if_exists)
        require_alone(self.name)
        objective = OBJECTIVES[settings.objective]
        if not objective.base and settings.weight == 0:
            raise ValueError(
                f"The weight of {settings.objective} is 0, so nothing would be learned. Set it above 0, for example 1."
            )
        text = ConceptText(clip, settings.template)
        with torch.inference_mode(False):
            images = ordinary(images)[..., :3].float().cpu()
            start = text.start(objective.tokens or settings.tokens, settings.init_word, settings.seed)
            rate = settings.learning_rate * (settings.accumulation if settings.scale_lr else 1)
            advice = {"advice": _FP16_VAE} if objective.extra == "pixel" and _in_fp16(vae) else {}
            self.training = ConceptTraining(start, rate, settings.accumulation, **advice)
        self.said, self.sentence = sentence, text.sentence(sentence)
        text.require_room(len(next(iter(start.values()))), self.sentence)
        conditioning = text.conditioning(start)
        require_width(model, conditioning[0][0])
        masks = given_masks(masks, images, settings) if objective.extra == "focus" else None
        with torch.inference_mode(False):
            images = scaled_down(images, settings.resolution)
            masks = None if masks is None else scaled_down(masks[..., None], settings.resolution)[..., 0]
        latents = ordinary(torch.stack([encode_picture(vae, view).float().cpu() for view in self._views(images)]))
        cells = pixels = None
        with torch.inference_mode(False):
            if masks is not None:
                fitted = [pad_mask(view, vae) for view in self._views(masks)]
                cells = torch.stack([latent_mask(mask, *latents.shape[-2:], cover="area") for mask in fitted])
            if objective.extra == "pixel":
                planes = [view.movedim(-1, 1).flatten(0, 1) for view in self._views(images)]
                pixels = torch.stack([pad_mask(plane, vae).unflatten(0, (-1, 3)) for plane in planes]) * 2 - 1
        layers, thresholds = [], None
        reading = settings.mask_source if settings.mask_source in READINGS else RECEIVED
        if objective.extra == "focus" and masks is None:
            layers, thresholds = legible_layers(model, conditioning, latents[0], settings, reading)
        views = images, latents, cells, pixels
        self.material = Material(model, text, vae, conditioning, objective, *views, layers, thresholds, reading)
        encoded = {"latents": latents, "text": conditioning[0][0]}
        self.checkpoint = ConceptCheckpoint(name.strip(), model, settings, images, masks, start, encoded)

    def _views(self, values: Tensor) -> list[Tensor]:
        """Pictures or masks (P, H, W, ...) as they are, and mirrored."""
        return [values, values.flip(2)] if self.settings.flips else [values]

    def loop(self, after_step: AfterStep | None = None) -> ConceptLoop:
        with torch.inference_mode(False):
            loop = ConceptLoop(self.material, self.settings, self.training, after_step)
            if self.settings.resume:
                self.checkpoint.load(loop)
        return loop

    def run(self) -> LearnedConcept:
        loop = self.loop()
        try:
            sample = loop.run()
        except comfy.model_management.InterruptProcessingException:
            with best_effort():
                self.checkpoint.save(loop)
            with best_effort():
                keep_pictures(loop.panel(), CANCELLED, self.training.done, self.settings.steps)
            raise
        except Exception:
            if self.training.learned:
                self._keep(loop)
            raise
        vectors = {key: value.detach().clone() for key, value in self.training.vectors.items()}
        try:
            path = save_embedding(vectors, self.name)
        except Exception:
            self._keep(loop)
            raise
        self.checkpoint.remove()
        return LearnedConcept(
            spoken(self.said, self.name),
            path,
            self.material.text.conditioning(vectors, self.sentence),
            resize_map(loop.saliency.used(), *self.size),
            [loss for loss in self.training.losses if math.isfinite(loss)],
            loop.panel(self._decoded(sample)),
        )

    def _decoded(self, sample: Tensor) -> Tensor | None:
        """The sample's picture (1, h, w, 3), or None: the concept is learned and saved without it."""
        try:
            return decode_picture(self.vae, sample, *self.material.images.shape[1:3]).float().cpu()
        except Exception as error:
            if not (isinstance(error, ValueError) or is_out_of_memory(error)):
                raise
            logger.warning("The sample is left out of the preview. %s", error)
            return None

    def _keep(self, loop: ConceptLoop) -> None:
        try:
            self.checkpoint.save(loop)
        except Exception as error:
            logger.warning("What was learned so far could not be kept: %s", error)


def _in_fp16(vae: comfy.sd.VAE | None) -> bool:
    return getattr(vae, "vae_dtype", None) == torch.float16
