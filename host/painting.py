"""The whole paint job: a picture, a mask and a text to finished candidates with the picture's own background."""

from functools import partial

import comfy.model_management
import comfy.samplers
import comfy.sd
import node_helpers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..guidance.batches import as_one_batch
from ..guidance.masks import dilate, fit_mask, latent_mask, require_region
from ..guidance.paste import fill_smoothly, paste_back
from ..guidance.samplers import SAMPLERS
from ..guidance.start import start_latent
from ..guidance.trajectory import Trajectory
from .candidate_run import CandidateRun
from .decoder_tuning import decode_tuned
from .inpaint_channels import hole, inpaint_channels, takes_masked_image
from .inversion import invert_latent
from .kept_work import CANCELLED, best_effort, keep_each, keep_pictures
from .models import model_id
from .paint_settings import SAMPLER_NAMES, SCHEDULER_NAMES, TUNED, PaintSettings, schedule
from .pictures import decode_picture, encode_picture, pad_mask

__all__ = ["SAMPLER_NAMES", "SCHEDULER_NAMES", "PaintSettings", "paint", "schedule"]


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
    sigma_max = float(painter.get_model_object("model_sampling").sigma_max)
    # Some schedulers begin below the greatest level even where the whole of it is asked for.
    from_noise = settings.denoise > 0.9999 if sigmas is None else float(levels[0]) >= sigma_max * (1 - 1e-4)

    channels, source = {}, image
    if takes_masked_image(painter):
        channels = inpaint_channels(vae, image, mask)
        if from_noise:
            # Such a model is not to see what it replaces, and the VAE would spread it into the cells around.
            source = fill_smoothly(image, 1 - hole(mask))
    latent = encode_picture(vae, source)
    padded = pad_mask(mask, vae)
    if settings.background == "inverted" and trajectory is not None:
        trajectory.check_picture(height, width)
    elif settings.background == "inverted":
        if painter is not model and model_id(painter) != model_id(model):
            raise ValueError(
                "The guider paints with another model than the one that would invert the picture. "
                "Connect the guider's own model, or choose the background renoised."
            )
        empty = node_helpers.conditioning_set_values(negative, channels)
        trajectory, _ = invert_latent(model, latent, height, width, empty, steps=settings.inversion_steps)

    inside = dilate(latent_mask(padded, *latent.shape[-2:]), settings.progressive).to(latent)
    start = start_latent(settings.start, latent, inside) if from_noise else latent

    def finish(part: Tensor, tune: bool = settings.paste == TUNED, rows: slice = slice(None)) -> Tensor:
        times = len(part) // len(image)
        own, place = image.repeat(times, 1, 1, 1)[rows], mask.repeat(times, 1, 1)[rows]
        samples = part[rows]
        if tune:
            picture = decode_tuned(vae, samples, own, place)
        else:
            picture = decode_picture(vae, samples, height, width).to(image)
        if settings.paste == "none":
            return picture
        feather = settings.feather if settings.paste == "feather" else 0
        return paste_back(own, picture, place, feather, settings.colour_match)

    job = CandidateRun(settings, guider, latent, start, padded, trajectory, levels, channels)
    images, samples = [], []
    try:
        for part in job.parts():
            samples.append(part)
            images.append(finish(part))
    except comfy.model_management.InterruptProcessingException:
        reached = samples[len(images) :]
        if job.view is not None and job.view.isfinite().all():
            reached.append(painter.model.process_latent_out(job.view.float().cpu()))
        with best_effort():
            images += [finish(part, tune=False) for part in reached]
        if images:
            with best_effort():
                keep_pictures(torch.cat(images), CANCELLED, job.step, job.total)
        raise
    except Exception:
        # What is finished may have taken hours.
        rows = ((part, slice(row, row + 1)) for part in samples[len(images) :] for row in range(len(part)))
        keep_each(images, [partial(finish, part, False, row) for part, row in rows], job.step, job.total)
        raise
    samples = torch.cat(samples)
    return torch.cat(images), {"samples": samples, "batch_index": list(range(len(samples)))}
