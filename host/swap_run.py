"""The descent of a swap: anchors, their gradients and updates, inside the host's own sampling."""

import logging
import math
from collections.abc import Callable, Sequence

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..attention.boxes import Box
from ..attention.concept_region import cell_mask
from ..guidance.distillation import METHODS, distil, draw_timesteps
from ..guidance.noise import CandidateNoise
from .branches import Forward, inside_sampling, require_same_family, stack_texts
from .candidates import candidates_that_fit
from .concept_region_patch import concept_region
from .contrast import contrast_gradient, with_backward
from .models import require_timesteps
from .out_of_memory import is_out_of_memory
from .progress import steps_progress
from .swap_settings import SwapSettings, SwapTexts
from .text_width import require_width
from .together import plain
from .tokens import encode_text, require_learned
from .unet_blocks import require_unet

logger = logging.getLogger("inlay")


class SwapRun:
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
            require_timesteps(one)
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
        self.reached: set[int] = set()
        # The source branch's noise at every anchor, by picture, on the CPU.
        self.foreseen: dict[int, list[Tensor]] = {}

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

        `samples` holds what is reached so far, None before the first update, and `reached` whose places these are.
        """
        row = latent[:1].repeat(2 if self._both else 1, 1, 1, 1)
        self.at_once = min(candidates_that_fit(one, row, len(latent)) for one in self.models)
        self.total = len(latent) * len(self.sigmas) * (2 if self.apart else 1)
        if self.apart:
            # The source branch never changes, so all its anchors can come before the target model is loaded.
            self._in_parts(self._foresee, latent)
        self._in_parts(self._descend, latent)
        return self.samples

    def _in_parts(self, work: Callable[[Tensor, list[int]], None], latent: Tensor) -> None:
        """work(latent, places of some pictures in the batch), for half as many whenever memory does not hold them."""
        waiting = list(range(len(latent)))
        while waiting:
            part, done = waiting[: self.at_once], self.done
            try:
                work(latent, part)
                waiting = waiting[len(part) :]
                continue
            except Exception as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
            self.at_once, self.done = len(part) // 2, done
            logger.warning("Out of memory. Going on with %d pictures at once.", self.at_once)
            comfy.model_management.soft_empty_cache()

    def _foresee(self, latent: Tensor, numbers: list[int]) -> None:
        noise_at = self._noises(numbers)
        self.foreseen.update((number, []) for number in numbers)

        def visit(forward: Forward, clean: Tensor, sigmas: Tensor) -> None:
            for anchor, sigma in enumerate(sigmas):
                (found,) = forward.noises([clean], noise_at(clean, anchor), sigma)
                for number, noise in zip(numbers, found.cpu(), strict=True):
                    self.foreseen[number].append(noise)
                self._show(clean)

        self._sample(0, [0], latent[numbers], [self.boxes[number] for number in numbers], visit)

    def _noises(self, numbers: list[int]) -> Callable[[Tensor, int], Tensor]:
        draws = CandidateNoise(self.settings.seed, numbers)
        # By iteration, so that runs of different `skip` share the noise of the iterations they share.
        return lambda like, anchor: draws.draw(like, "swap", anchor * self.settings.skip)

    def _descend(self, latent: Tensor, numbers: list[int]) -> None:
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
                    others = [torch.stack([self.foreseen[number][anchor] for number in numbers]).to(z)]
                g = target - (others[0] if self.method.source else noise)
                if self.method.contrast:
                    generator = torch.Generator().manual_seed((settings.seed + anchor) % 2**64)
                    pull = contrast_gradient(forward, z, clean, noise, sigma, generator)
                    # The factor 2000 holds for both losses, and only g's is divided by the cells. A cell's part of the
                    # contrast, a mean over places, shrinks with their number: times that, as published at 64 x 64.
                    g = g + settings.contrast * math.prod(z.shape[-2:]) * pull
                return g

            def after_anchor(_: int, z: Tensor) -> None:
                reached = self.models[1].model.process_latent_out(z).to(latent)
                self.samples = latent.clone() if self.samples is None else self.samples
                # Outside the box, where BGM keeps it, the latent that came in.
                self.samples[numbers] = reached if cells is None else torch.where(cells > 0, reached, part)
                self.reached.update(numbers)
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
        self.done += len(z)
        self._progress(self.done - 1, z, z, self.total)
