"""Pictures by the host's own sampling with nothing of Inlay in it, for evaluation and benchmarks."""

from collections.abc import Sequence

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..guidance.trajectory import Trajectory
from .pictures import encode_picture

LATENT_CHANNELS = 4
CELL = 8


@torch.no_grad()
def encode_texts(clip: comfy.sd.CLIP, texts: Sequence[str]) -> list:
    """CONDITIONING with one row a text, which the sampler pairs with the rows of its batch."""
    encoded = {text: clip.encode_from_tokens_scheduled(clip.tokenize(text))[0] for text in dict.fromkeys(texts)}
    rows = torch.cat([encoded[text][0] for text in texts])
    pooled = torch.cat([encoded[text][1]["pooled_output"] for text in texts])
    return [[rows, {"pooled_output": pooled}]]


@torch.no_grad()
def generate(
    model: ModelPatcher,
    positive: list,
    negative: list,
    seed: int,
    count: int,
    height: int = 128,
    width: int = 128,
    steps: int = 30,
    cfg: float = 5.0,
) -> Tensor:
    """Latents (count, 4, h, w) of new pictures of height x width pixels: DDIM, the host's `normal` schedule."""
    empty = torch.zeros(count, LATENT_CHANNELS, height // CELL, width // CELL)
    return _sample(model, positive, negative, empty, None, seed, steps, cfg)


@torch.no_grad()
def inpaint_as_the_host(
    model: ModelPatcher,
    positive: list,
    negative: list,
    vae: comfy.sd.VAE,
    image: Tensor,
    mask: Tensor,
    seed: int,
    steps: int = 30,
    cfg: float = 5.0,
) -> Tensor:
    """Latents as VAE Encode, Set Latent Noise Mask and KSampler make them. image: (B, H, W, 3). mask: (B, H, W)."""
    return _sample(model, positive, negative, encode_picture(vae, image), mask[:, None], seed, steps, cfg)


@torch.no_grad()
def sample_plainly(
    model: ModelPatcher, positive: list, negative: list, latent: Tensor, steps: int, cfg: float, seed: int = 0
) -> Tensor:
    """Latents after `steps` steps of DDIM from noise, of the given latent's size."""
    return _sample(model, positive, negative, torch.zeros_like(latent), None, seed, steps, cfg)


def _sample(
    model: ModelPatcher,
    positive: list,
    negative: list,
    latent: Tensor,
    noise_mask: Tensor | None,
    seed: int,
    steps: int,
    cfg: float,
) -> Tensor:
    noise = comfy.sample.prepare_noise(latent, seed, list(range(len(latent))))
    return comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        "ddim",
        "normal",
        positive,
        negative,
        latent,
        noise_mask=noise_mask,
        disable_pbar=True,
        seed=seed,
    ).to(comfy.model_management.intermediate_device())


@torch.no_grad()
def replay(model: ModelPatcher, positive: list, trajectory: Trajectory, end: Tensor) -> Tensor:
    """From the end of an inversion back down its own levels by DDIM, without guidance, to latents.

    end: the latent that invert_latent returns.
    """
    sigmas = torch.cat([trajectory.sigmas.flip(0), torch.zeros(1)])
    return denoise(model, {"positive": positive}, end, sigmas, 1.0)


@torch.no_grad()
def denoise(model: ModelPatcher, conds: dict[str, list], start: Tensor, sigmas: Tensor, cfg: float) -> Tensor:
    """Noisy latents of level sigmas[0], in the scale of VAE.encode, down to clean ones by DDIM; no noise is added.

    conds: positive and, for a cfg other than 1, negative.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds(conds)
    guider.set_cfg(cfg)
    sampler = comfy.samplers.sampler_object("ddim")
    latent = guider.sample(torch.zeros_like(start), start, sampler, sigmas, disable_pbar=True, seed=0)
    return latent.to(comfy.model_management.intermediate_device())
