"""The whole paint job: a picture, a mask and a text to finished candidates with the picture's own background."""

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import node_helpers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..guidance.batches import as_one_batch
from ..guidance.masks import dilate, fit_mask, latent_mask, require_region
from ..guidance.paste import fill_smoothly, paste_back
from ..guidance.samplers import SAMPLERS
from ..guidance.trajectory import Trajectory
from .background_sampler import background_sampler
from .cancelled import keep_pictures
from .candidates import candidates_that_fit, draws_by_batch
from .decoder_tuning import decode_tuned
from .inpaint_channels import hole, inpaint_channels, repeated, takes_masked_image
from .inversion import invert_latent
from .pictures import decode_picture, encode_picture, pad_mask
from .progress import steps_progress

logger = logging.getLogger("inlay")

SAMPLER_NAMES = [*SAMPLERS, *(name for name in comfy.samplers.SAMPLER_NAMES if name not in SAMPLERS)]
SCHEDULER_NAMES = list(comfy.samplers.SCHEDULER_NAMES)
TUNED = "decoder tuning"
PASTES = ("feather", "exact", "none", TUNED)


@dataclass(frozen=True)
class PaintSettings:
    """What the paint job does. background: inverted, renoised, fixed or none. sampler: guidance.samplers.SAMPLERS or
    any of the host's. repeats: of each step (ours only). paste: one of PASTES; feather: pixels. at_once: candidates in
    one batch, 0 for as many as fit. eta: ddim's, 0 to 1. progressive: stages of a mask that shrinks to itself, 0: none.
    """

    steps: int = 30
    cfg: float = 5.0
    seed: int = 0
    candidates: int = 1
    background: str = "inverted"
    sampler: str = "ddim"
    scheduler: str = "normal"
    denoise: float = 1.0
    repeats: int = 1
    inversion_steps: int = 50
    paste: str = "feather"
    feather: int = 4
    colour_match: str = "none"
    at_once: int = 0
    eta: float = 0.0
    progressive: int = 0


def schedule(model: ModelPatcher, settings: PaintSettings) -> Tensor:
    """The sigmas that the host's KSampler would take, (n + 1,) descending."""
    sampler = comfy.samplers.KSampler(
        model, settings.steps, model.load_device, settings.sampler, settings.scheduler, settings.denoise
    )
    return sampler.sigmas.cpu()


@torch.no_grad()
def paint(
    model: ModelPatcher,
    positive: list,
    negative: list,
    vae: comfy.sd.VAE,
    image: Tensor,
    mask: Tensor,
    settings: PaintSettings,
    trajectory: Trajectory | None = None,
    guider: comfy.samplers.CFGGuider | None = None,
    sigmas: Tensor | None = None,
) -> tuple[Tensor, dict]:
    """Candidates (n, H, W, 3) of the picture's size, and their LATENT before the paste.

    image: (B, H, W, 3) in [0, 1]. mask: (B or 1, H, W), 1 = generate. n = candidates * B: all pictures of the first
    candidate, then of the second. trajectory: of this picture; without one, background `inverted` inverts it with the
    negative conditioning at cfg 1. guider: paints instead of model, positive, negative and cfg. sigmas: instead of
    steps, scheduler and denoise. A candidate does not depend on the others nor on at_once. Raises ValueError with what
    to do for bad input.
    """
    if settings.repeats > 1 and settings.sampler not in SAMPLERS:
        raise ValueError("Repeats need ddim, ddpm or euler. Choose one of these samplers, or set repeats to 1.")
    image = image[..., :3].float()
    height, width = image.shape[1:3]
    mask = fit_mask(mask, height, width).to(image.device)
    require_region(mask)
    image, mask = as_one_batch(image, mask)
    levels = schedule(model, settings) if sigmas is None else sigmas.detach().float().cpu()
    if len(levels) < 2:
        raise ValueError("There is no step to sample. Raise steps or denoise, or connect two sigmas or more.")
    if guider is None:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(settings.cfg)
    painter = guider.model_patcher
    from_noise = float(levels[0]) >= float(painter.get_model_object("model_sampling").sigma_max) * (1 - 1e-4)

    channels, source = {}, image
    if takes_masked_image(painter):
        channels = inpaint_channels(vae, image, mask)
        if from_noise:
            # Such a model is not to see what it replaces, and the VAE would spread it into the cells around.
            source = fill_smoothly(image, 1 - hole(mask))
    latent = encode_picture(vae, source)
    padded = pad_mask(mask, vae)
    if settings.background == "inverted" and trajectory is None:
        empty = node_helpers.conditioning_set_values(negative, channels)
        trajectory, _ = invert_latent(model, latent, height, width, empty, steps=settings.inversion_steps)

    # The host adds the latent to the noise at the highest level too; in the mask that would show the old content.
    inside = dilate(latent_mask(padded, *latent.shape[-2:]), settings.progressive).to(latent)
    start = latent * (1 - inside) if from_noise else latent

    def finish(samples: Tensor, tune: bool = settings.paste == TUNED) -> Tensor:
        times = len(samples) // len(image)
        own, place = image.repeat(times, 1, 1, 1), mask.repeat(times, 1, 1)
        if tune:
            picture = decode_tuned(vae, samples, own, place)
        else:
            picture = decode_picture(vae, samples, height, width).to(image)
        if settings.paste == "none":
            return picture
        feather = settings.feather if settings.paste == "feather" else 0
        return paste_back(own, picture, place, feather, settings.colour_match)

    job = _Job(settings, guider, latent, start, padded, trajectory, levels, channels)
    images, samples = [], []
    try:
        for part in job.parts():
            samples.append(part)
            images.append(finish(part))
    except comfy.model_management.InterruptProcessingException:
        reached = samples[len(images) :]
        if job.view is not None and job.view.isfinite().all():
            reached.append(painter.model.process_latent_out(job.view.float().cpu()))
        images += [finish(part, tune=False) for part in reached]
        if images:
            keep_pictures(torch.cat(images), "inlay_cancelled", job.step, job.total)
        raise
    samples = torch.cat(samples)
    return torch.cat(images), {"samples": samples, "batch_index": list(range(len(samples)))}


@dataclass
class _Job:
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

    def parts(self) -> Iterator[Tensor]:
        """Latents of the candidates in order, (k * B, C, h, w) on the host's device for intermediate results."""
        wanted, name = self.settings.candidates, self.settings.sampler
        alone = name not in SAMPLERS and draws_by_batch(name)
        fit = candidates_that_fit(self.guider.model_patcher, self.latent, wanted)
        size = 1 if alone else self.settings.at_once or fit
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
        except comfy.model_management.OOM_EXCEPTION:
            if last - first == 1:
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
            seed=settings.seed if own else settings.seed + first,
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
