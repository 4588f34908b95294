"""The sampling of all candidates of a paint job, in parts that fit into memory."""

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..guidance.samplers import SAMPLERS
from ..guidance.trajectory import Trajectory
from .background_sampler import background_sampler
from .candidates import candidates_that_fit, draws_by_batch
from .inpaint_channels import repeated
from .out_of_memory import is_out_of_memory
from .paint_settings import PaintSettings
from .progress import steps_progress

logger = logging.getLogger("inlay")


@dataclass
class CandidateRun:
    """The sampling of all candidates, part by part."""

    settings: PaintSettings
    guider: comfy.samplers.CFGGuider
    latent: Tensor
    start: Tensor
    mask: Tensor
    trajectory: Trajectory | None
    levels: Tensor
    channels: dict[str, Tensor]
    view: Tensor | None = None
    step: int = 0
    total: int = 0

    @property
    def _draws_by_batch(self) -> bool:
        return self.settings.sampler not in SAMPLERS and draws_by_batch(self.settings.sampler)

    def parts(self) -> Iterator[Tensor]:
        """Latents of the candidates in order, (k * B, C, h, w) on the host's device for intermediate results."""
        wanted = self.settings.candidates
        fit = candidates_that_fit(self.guider.model_patcher, self.latent, wanted)
        size = 1 if self._draws_by_batch else self.settings.at_once or fit
        if size < wanted:
            logger.info("Painting %d candidates, %d at a time.", wanted, size)
        rows = self.start.repeat(wanted, 1, 1, 1)
        noise = comfy.sample.prepare_noise(rows, self.settings.seed, list(range(len(rows))))
        self.total = wanted * (len(self.levels) - 1)
        first = 0
        while first < wanted:
            last = min(first + size, wanted)
            part = self._try(noise, first, last)
            if part is None:
                size = (last - first) // 2
                logger.warning("Out of memory; going on with %d candidates at a time.", size)
                comfy.model_management.soft_empty_cache()
                continue
            self.view = None
            yield part
            first = last

    def _try(self, noise: Tensor, first: int, last: int) -> Tensor | None:
        """Candidates first to last, or None where they are too many for the memory."""
        try:
            return self._sample(noise, first, last)
        except Exception as error:
            if last - first == 1 or not is_out_of_memory(error):
                raise
        return None

    def _sample(self, noise: Tensor, first: int, last: int) -> Tensor:
        settings, times, pictures = self.settings, last - first, len(self.start)
        numbers = list(range(first * pictures, last * pictures))
        own = settings.sampler in SAMPLERS
        path = self.trajectory
        if path is not None and len(path.clean) > 1:
            path = path.rows(torch.arange(len(path.clean)).repeat(times))
        sampler = background_sampler(
            settings.background,
            self.latent.repeat(times, 1, 1, 1),
            self.mask.repeat(times, 1, 1),
            path,
            sampler=None if own else comfy.samplers.sampler_object(settings.sampler),
            method=settings.sampler if own else "ddim",
            eta=settings.eta,
            repeats=settings.repeats,
            candidates=numbers,
            progressive=settings.progressive,
        )
        show = steps_progress(self.guider.model_patcher, self.total)
        steps = len(self.levels) - 1

        def after_step(step: int, denoised: Tensor, x: Tensor, _: int) -> None:
            self.view, self.step = denoised, first * steps + (step + 1) * times
            show(self.step - 1, denoised, x, self.total)

        samples = self._guider(times, numbers).sample(
            noise[numbers],
            self.start.repeat(times, 1, 1, 1),
            sampler,
            self.levels,
            callback=after_step,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            # A sampler that draws by the batch would draw the same for every candidate.
            seed=(settings.seed + first) % 2**64 if self._draws_by_batch else settings.seed,
        )
        return samples.to(comfy.model_management.intermediate_device())

    def _guider(self, times: int, numbers: list[int]) -> comfy.samplers.CFGGuider:
        """The guider with the inpainting channels, and the rows' candidate numbers where patches see them."""
        guider = copy.copy(self.guider)
        guider.model_options = comfy.model_patcher.create_model_options_clone(guider.model_options)
        guider.model_options.setdefault("transformer_options", {})["inlay_candidates"] = numbers
        if self.channels:
            channels = repeated(self.channels, times)
            guider.original_conds = {
                name: [{**channels, **cond} for cond in conds] for name, conds in guider.original_conds.items()
            }
        return guider
