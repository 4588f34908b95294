"""DDIM inversion of a picture through the host's own sampling, with every patch, hook and control of other packs."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..guidance.ddim import invert
from ..guidance.trajectory import Trajectory
from .models import model_id, prediction_kind
from .pictures import encode_picture
from .progress import steps_progress

POOLED_WIDTH = 1280


def empty_conditioning(model: ModelPatcher) -> list:
    """The host's CONDITIONING of zeros: no text at all, where there is no text encoder to encode an empty prompt."""
    config = model.model.model_config.unet_config
    width = config.get("context_dim")
    if not isinstance(width, int):
        raise ValueError("This model needs a text to be inverted. Connect `positive` with an empty prompt.")
    return [[torch.zeros(1, 77, width), {"pooled_output": torch.zeros(1, POOLED_WIDTH)}]]


def inversion_sigmas(model: ModelPatcher, steps: int, sigmas: Tensor | None = None) -> Tensor:
    """The levels of an inversion, ascending and above 0: the host's `normal` schedule, or given ones in any order."""
    if sigmas is None:
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    levels = torch.unique(sigmas.detach().float().cpu())
    levels = levels[(levels > 0) & torch.isfinite(levels)]
    if len(levels) == 0:
        raise ValueError("The sigmas hold no noise level above 0. Connect a scheduler with at least one step.")
    return levels


@torch.no_grad()
def invert_latent(
    model: ModelPatcher,
    latent: Tensor,
    height: int,
    width: int,
    positive: list | None = None,
    sigmas: Tensor | None = None,
    steps: int = 50,
    cfg: float = 1.0,
    precision: torch.dtype = torch.float16,
) -> tuple[Trajectory, Tensor]:
    """The latent's path to noise, and its end as a latent that a sampler can start from without noise.

    latent: (B, C, h, w) as VAE.encode returns it, of a picture of height x width pixels. positive: CONDITIONING,
    zeros where None. sigmas: levels to visit instead of `steps` of the normal schedule. cfg: against zeros, 1 needs
    one forward a step. precision: of the stored path. Raises ValueError for a model without variance-preserving
    noise and where the path does not stay finite.
    """
    prediction = prediction_kind(model)
    levels = inversion_sigmas(model, steps, sigmas)
    lowest = float(model.get_model_object("model_sampling").sigma_min)
    noises: list[Tensor] = []
    clean = None

    def climb(model_k, x, sigmas, extra_args, callback, disable):
        nonlocal clean
        clean = x.to("cpu", torch.float32)
        rows = x.new_ones(len(x))
        for index, latents, denoised in invert(
            lambda x, sigma: model_k(x, sigma * rows, **extra_args), x, levels.tolist(), lowest
        ):
            noises.append(((latents - x) / float(levels[index])).to("cpu", precision))
            state = {"sigma": levels[index], "sigma_hat": levels[index]}
            callback({"i": index, "x": latents, "denoised": denoised, **state})
        return latents

    # The host counts steps between sigmas; the first one here starts from level 0, which no model can be asked for.
    schedule = torch.cat([levels.new_tensor([min(lowest, float(levels[0]))]), levels])
    guider = comfy.samplers.CFGGuider(model)
    empty = empty_conditioning(model) if positive is None or cfg != 1 else None
    guider.inner_set_conds({"positive": empty if positive is None else positive})
    if cfg != 1:
        guider.inner_set_conds({"negative": empty})
    guider.set_cfg(cfg)
    latent = latent.to(torch.float32)
    end = guider.sample(
        torch.zeros_like(latent),
        latent,
        comfy.samplers.KSAMPLER(climb),
        schedule,
        callback=steps_progress(model, len(levels)),
        disable_pbar=True,
        seed=0,
    )
    if not torch.isfinite(end).all():
        raise ValueError(
            "The inversion ended in values that are not numbers. Lower cfg, or run the model in higher precision."
        )
    path = Trajectory(levels, torch.stack(noises), clean, prediction, model_id(model), height, width)
    return path, end.to(comfy.model_management.intermediate_device())


def invert_image(model: ModelPatcher, vae: comfy.sd.VAE, image: Tensor, **options: object) -> tuple[Trajectory, Tensor]:
    """`invert_latent` of a picture (B, H, W, 3) of any size. Raises as encode_picture does."""
    prediction_kind(model)
    latent = encode_picture(vae, image)
    return invert_latent(model, latent, image.shape[1], image.shape[2], **options)
