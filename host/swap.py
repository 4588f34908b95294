"""InstantSwap and its relatives on a picture: one thing in a box becomes another, appears, or goes."""

from collections.abc import Callable, Sequence

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..attention.boxes import Box, box_mask
from ..attention.concept_region import cell_mask, mask_boxes, single_boxes
from ..guidance.batches import as_one_batch
from ..guidance.distillation import CELLS, METHODS, distil, draw_timesteps
from ..guidance.masks import fit_mask, require_region
from ..guidance.noise import CandidateNoise
from ..guidance.paste import paste_back
from .branches import Forward, inside_sampling, require_same_family, stack_texts
from .candidates import candidates_that_fit
from .concept_region_patch import concept_region
from .contrast import contrast_gradient, with_backward
from .decoders import require_fit
from .kept_work import best_effort, keep_pictures
from .models import prediction_kind
from .pictures import decode_picture, encode_picture
from .progress import steps_progress
from .swap_settings import SwapSettings, SwapTexts
from .text_width import require_width
from .together import plain
from .tokens import encode_text, require_learned
from .unet_blocks import require_unet


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
    job = _Swap((model, target_model), (clip, target_clip), texts, settings, boxes, multiple)
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
        if job.samples is not None:
            with best_effort():
                keep_pictures(finish(job.samples), "inlay_cancelled", job.done, job.total)
        raise
    except Exception:
        # Only one picture may be at fault.
        kept = []
        for row in range(0 if job.samples is None else len(latent)):
            with best_effort("The run failed"):
                kept.append(finish(job.samples, slice(row, row + 1)))
        if kept:
            with best_effort("The run failed"):
                keep_pictures(torch.cat(kept), "inlay_failed", job.done, job.total, "The run failed")
        raise


def _require_a_cell(box: Box, multiple: int) -> None:
    """Raises ValueError for a box smaller than one latent pixel of multiple x multiple."""
    width, height = box["width"], box["height"]
    if max(width, height) < multiple:
        raise ValueError(
            f"The box is {width} x {height} pixels, smaller than a latent pixel, {multiple} x {multiple}. "
            "Draw a larger one; boxes are in pixels of the picture."
        )


class _Swap:
    """models, clips: of the source and of the target, None there for the same."""

    def __init__(
        self,
        models: tuple[ModelPatcher, ModelPatcher | None],
        clips: tuple[comfy.sd.CLIP, comfy.sd.CLIP | None],
        texts: SwapTexts,
        settings: SwapSettings,
        boxes: list[Box],
        multiple: int,
    ) -> None:
        model, clip = models[0], clips[0]
        target_model, target_clip = (first if other is None else other for first, other in (models, clips))
        for one in (model, target_model):
            require_unet(one, "a swap")
            prediction_kind(one)
        require_same_family(model, target_model)
        self.method, self.settings, self.boxes, self.multiple = METHODS[settings.method], settings, boxes, multiple
        self.apart = self.method.source and target_model is not model
        self.models = model, with_backward(target_model) if self.method.contrast else target_model
        source = self._encoded(clip, model, texts.source, texts.source_concept, texts.negative)
        target = self._encoded(target_clip, target_model, texts.target, texts.target_concept, texts.negative)
        self.prompts, phrases, self.negatives = zip(source, target, strict=True)
        self.phrases = tuple(phrase[0][0] for phrase in phrases)
        timesteps = draw_timesteps(
            settings.iterations, settings.t_min, settings.t_max, settings.timesteps, settings.seed
        )
        sampling = model.get_model_object("model_sampling")
        self.sigmas = sampling.sigma(timesteps[:: settings.skip].float()).cpu()
        self.done, self.total, self.samples = 0, 0, None

    @staticmethod
    def _encoded(clip: comfy.sd.CLIP, model: ModelPatcher, *texts: str) -> list[list]:
        """A CONDITIONING each, of the model's width."""
        encoded = []
        for text in texts:
            require_learned(clip, text)
            encoded.append(encode_text(clip, text))
            require_width(model, encoded[-1][0][0])
        return encoded

    def run(self, latent: Tensor) -> Tensor:
        """The latent (B, C, h, w) after the swap, as VAE.decode takes it; as many pictures at once as memory allows.

        `samples` holds what is reached so far, None before the first update.
        """
        row = latent[:1].repeat(2 if self._both else 1, 1, 1, 1)
        fit = min(candidates_that_fit(one, row, len(latent)) for one in self.models)
        parts = torch.arange(len(latent)).split(fit)
        self.total = len(parts) * len(self.sigmas) * (2 if self.apart else 1)
        parts = [part.tolist() for part in parts]
        # The source branch never changes, so all its anchors can come before the target model is loaded.
        foreseen = [self._foresee(latent, part) if self.apart else [] for part in parts]
        for part, source_noises in zip(parts, foreseen, strict=True):
            self._descend(latent, part, source_noises)
        return self.samples

    def _foresee(self, latent: Tensor, numbers: list[int]) -> list[Tensor]:
        """The source branch's noise at every anchor, on the CPU. numbers: the pictures' places in the batch."""
        found: list[Tensor] = []
        noise_at = self._noises(numbers)

        def visit(forward: Forward, clean: Tensor, sigmas: Tensor) -> None:
            for anchor, sigma in enumerate(sigmas):
                found.extend(noise.cpu() for noise in forward.noises([clean], noise_at(clean, anchor), sigma))
                self._show(clean)

        self._sample(0, [0], latent[numbers], [self.boxes[number] for number in numbers], visit)
        return found

    def _noises(self, numbers: list[int]) -> Callable[[Tensor, int], Tensor]:
        draws = CandidateNoise(self.settings.seed, numbers)
        # By iteration, so that runs of different `skip` share the noise of the iterations they share.
        return lambda like, anchor: draws.draw(like, "swap", anchor * self.settings.skip)

    def _descend(self, latent: Tensor, numbers: list[int], source_noises: list[Tensor]) -> None:
        """source_noises: as _foresee leaves them, where the source has a model of its own."""
        settings, part, boxes = self.settings, latent[numbers], [self.boxes[number] for number in numbers]
        noise_at = self._noises(numbers)
        cells = self._cells(boxes, latent.shape[-2:]).to(latent) if self.masked else None

        def visit(forward: Forward, clean: Tensor, sigmas: Tensor) -> None:
            both = self._both

            def gradient(z: Tensor, iteration: int) -> Tensor:
                anchor = iteration // settings.skip
                noise, sigma = noise_at(clean, anchor), sigmas[anchor]
                *others, target = forward.noises([clean, z] if both else [z], noise, sigma)
                if self.apart:
                    others = [source_noises[anchor].to(z)]
                g = target - (others[0] if self.method.source else noise)
                if self.method.contrast:
                    generator = torch.Generator().manual_seed((settings.seed + anchor) % 2**64)
                    pull = contrast_gradient(forward, z, clean, noise, sigma, generator)
                    # The factor 2000 holds for both losses; g's alone is divided by the cells.
                    g = g + settings.contrast * CELLS * pull
                return g

            def after_anchor(_: int, z: Tensor) -> None:
                reached = self.models[1].model.process_latent_out(z).to(latent)
                self.samples = latent.clone() if self.samples is None else self.samples
                # Outside the box, where BGM keeps it, the latent that came in.
                self.samples[numbers] = reached if cells is None else torch.where(cells > 0, reached, part)
                self._show(z)

            inside = None if cells is None else cells.to(clean)
            how = settings.iterations, settings.skip, inside, settings.momentum
            distil(clean, gradient, *how, after_anchor, settings.learning_rate)

        self._sample(1, [0, 1] if self._both else [1], part, boxes, visit)

    @property
    def masked(self) -> bool:
        return self.settings.bgm == "on" or (self.settings.bgm == "auto" and self.method.masked)

    @property
    def _both(self) -> bool:
        """Whether the target's forward holds the source's rows too."""
        return self.method.contrast or (self.method.source and not self.apart)

    def _sample(self, which: int, branches: list[int], latent: Tensor, boxes: list[Box], body) -> None:
        model, settings, pictures = self.models[which], self.settings, len(latent)
        guidance = settings.guidance
        secr = settings.secr if settings.secr != "auto" else ("both" if self.method.regions else "off")
        wanted = [branch for branch, name in enumerate(("source", "target")) if secr in ("both", name)]
        phrases = [self.phrases[branch] if branch in wanted else None for branch in branches for _ in range(pictures)]
        if any(phrase is not None for phrase in phrases):
            size = latent.shape[-2] * self.multiple, latent.shape[-1] * self.multiple
            if None not in phrases and self._phrases_alone(model):
                # The negative's rows would be the prompt's own, and guidance between equals does nothing.
                guidance = 1.0
            model = concept_region(model, phrases, boxes, size, settings.outside, settings.rows)
        prompts = [self.prompts[branch] for branch in branches]
        negative = stack_texts([self.negatives[branch] for branch in branches], pictures)
        self._progress = steps_progress(model, self.total)
        inside_sampling(model, prompts, negative, latent, self.sigmas, guidance, settings.seed, body)

    def _phrases_alone(self, model: ModelPatcher) -> bool:
        """Whether no text but the phrases reaches the model, in the negative's rows as in the prompt's."""
        settings = self.settings
        return settings.outside == "raw" and settings.rows == "both" and not model.model.adm_channels and plain(model)

    def _cells(self, boxes: list[Box], grid: Sequence[int]) -> Tensor:
        size = grid[0] * self.multiple, grid[1] * self.multiple
        return cell_mask(boxes, size, tuple(grid), tuple(grid), (0, 0, *grid))[:, None].float()

    def _show(self, z: Tensor) -> None:
        self.done += 1
        self._progress(self.done - 1, z, z, self.total)
