"""Blended Diffusion as its official code does it, mistakes included: for evaluation and benchmarks only."""

from collections.abc import Callable
from dataclasses import replace

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..guidance.background import blend, mask_cells
from ..guidance.ddim import ddim_step
from ..guidance.normalised import finite_samples, score_move
from ..guidance.trajectory import Trajectory
from .background_sampler import background_sampler
from .blending import BlendModels
from .clip_guidance_patch import ClipOptions, clip_loss, clip_targets
from .gradients import gradient_phase, static_patcher
from .painting import PaintSettings, schedule
from .pictures import decode_picture, encode_picture, pad_mask
from .ranking import rank_pictures, score_pictures


@torch.no_grad()
def paint_with_offset(
    model: ModelPatcher,
    positive: list,
    negative: list,
    vae: comfy.sd.VAE,
    image: Tensor,
    mask: Tensor,
    settings: PaintSettings,
    trajectory: Trajectory | None,
    level_offset: int,
) -> Tensor:
    """Pictures before any paste, with a background that lags so many levels behind the latent: 1 in the official code.

    image: (B, H, W, 3). mask: (B, H, W). Of the settings only those of the sampling count.
    """
    latent = encode_picture(vae, image)
    numbers = list(range(len(latent)))
    sampler = background_sampler(
        *(settings.background, latent, pad_mask(mask, vae), trajectory),
        method=settings.sampler,
        candidates=numbers,
        level_offset=level_offset,
    )
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(settings.cfg)
    noise = comfy.sample.prepare_noise(latent, settings.seed, numbers)
    levels = schedule(model, settings)
    samples = guider.sample(noise, latent, sampler, levels, disable_pbar=True, seed=settings.seed)
    return decode_picture(vae, samples.to(image), *image.shape[1:3])


def official_blend(
    models: BlendModels, image: Tensor, mask: Tensor, text: str, settings: PaintSettings, options: ClipOptions
) -> tuple[Tensor, list[float]]:
    """All candidates, best first, and their scores, by the official structure.

    One candidate after another; at each step one forward of the UNet for the estimate and a second one, through which
    the gradient of CLIP's loss runs. The model is told nothing. image: (1, H, W, 3). mask: (1, H, W).
    """
    vae, vision = models.vae, models.vision
    targets = clip_targets(models.clip, vision, text, None)
    loss = clip_loss(models.model, vae, vision, targets, mask, None, replace(options, mode="exact"))
    patcher = static_patcher(models.model)
    with torch.no_grad():
        empty = models.clip.encode_from_tokens(models.clip.tokenize("")).to(patcher.load_device)
        clean = patcher.model.process_latent_in(encode_picture(vae, image)).to(patcher.load_device)
    comfy.model_management.load_models_gpu([patcher, loss.decoder.patcher, loss.eye], force_full_load=True)
    cells = mask_cells(mask, *clean.shape[-2:]).to(clean)
    levels = schedule(models.model, settings).tolist()
    nets = patcher.model, loss.decoder.patcher.model, loss.eye.model
    with gradient_phase(*nets):
        clean, context = clean.clone(), empty.clone()

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return patcher.model.apply_model(x, sigma, c_crossattn=context)

        paths = [
            _one_candidate(denoise, loss, clean, cells, levels, settings.seed + number, options.strength)
            for number in range(settings.candidates)
        ]
    samples = patcher.model.process_latent_out(torch.cat(paths)).cpu()
    pictures = decode_picture(vae, samples, *image.shape[1:3])
    pictures = torch.where(mask[..., None] > 0, pictures, image)
    best, values, _ = rank_pictures(pictures, score_pictures(pictures, vision, models.clip, text, mask=mask), 0)
    return best, values


def _one_candidate(
    denoise: Callable[[Tensor, Tensor], Tensor],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    clean: Tensor,
    cells: Tensor,
    levels: list[float],
    seed: int,
    strength: float,
) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(clean.shape, generator=generator).to(clean)

    x = clean + levels[0] * noise()
    for sigma, target in zip(levels, levels[1:], strict=False):
        comfy.model_management.throw_exception_if_processing_interrupted()
        level = x.new_full((1,), sigma)
        with torch.no_grad():
            denoised = denoise(x, level)
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(denoise(leaf, level), leaf, level).sum(), leaf)
        gradient, _ = finite_samples(gradient.float())
        denoised = denoised + score_move(gradient, level, strength)
        x = ddim_step(x, denoised, sigma, target, 1.0, noise() if target > 0 else None)
        x = blend(x, clean + sigma * noise() if target > 0 else clean, cells)
    return x
