"""A copy of the VAE's decoder fitted to the picture outside the mask (Blended Latent Diffusion's reconstruction)."""

import copy
import logging

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from .gradients import gradient_phase, static_patcher
from .out_of_memory import is_out_of_memory
from .pictures import decode_picture

logger = logging.getLogger("inlay")

STEPS = 75
LEARNING_RATE = 1e-4
BACKGROUND_WEIGHT = 100.0
# Activations kept for backward, gradients and Adam's moments, against what the host reserves to decode.
_MEMORY_FACTOR = 6


def decode_tuned(vae: comfy.sd.VAE, samples: Tensor, original: Tensor, mask: Tensor, steps: int = STEPS) -> Tensor:
    """Pictures (B, H, W, 3) in [0, 1] by a decoder of each picture's own, on the original's device.

    samples: (B, C, h, w) as VAE.decode takes them. original: (B, H, W, 3). mask: (B, H, W), 1 = generated. The loss is
    mse(new m, edit m) + 100 mse(new (1 - m), original (1 - m)) in [-1, 1], the edit being what the untuned decoder
    shows; Adam. The VAE itself never changes, so nothing has to be put back on errors or on cancel. A picture whose
    tuning does not fit into memory is decoded plainly, with a warning. Raises ValueError for a VAE whose decoder cannot
    be tuned.
    """
    parts = (getattr(vae.first_stage_model, name, None) for name in ("encoder", "decoder"))
    if not all(isinstance(part, nn.Module) for part in parts) or vae.latent_dim != 2:
        raise ValueError("This VAE has no decoder that can be tuned. Choose paste `exact` or `feather`.")
    if not torch.isfinite(samples).all():
        raise ValueError(
            "Sampling ended in values that are not numbers. Lower cfg or the guidance strength, "
            "or run the model in higher precision."
        )
    patcher = static_patcher(vae.patcher)
    memory = vae.memory_used_decode((1, *samples.shape[1:]), torch.float32) * _MEMORY_FACTOR
    pictures = []
    for number, (sample, *row) in enumerate(zip(samples, original, mask, strict=True), 1):
        picture = _if_it_fits(patcher, memory, sample, *row, steps)
        if picture is None:
            comfy.model_management.soft_empty_cache()
            logger.warning(
                "Out of memory while tuning the decoder to picture %d of %d: its background is pasted without it.",
                *(number, len(samples)),
            )
            picture = decode_picture(vae, sample[None], *original.shape[1:3])[0]
        pictures.append(picture.to(original))
    return torch.stack(pictures)


def _if_it_fits(patcher: ModelPatcher, memory: float, *job: object) -> Tensor | None:
    """None where memory runs out. What failed has let go of its own by then."""
    try:
        comfy.model_management.load_models_gpu([patcher], memory_required=memory, force_full_load=True)
        return _tuned(patcher.model, patcher.load_device, *job)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None


def _tuned(net: nn.Module, device: torch.device, sample: Tensor, original: Tensor, mask: Tensor, steps: int) -> Tensor:
    height, width = mask.shape
    with torch.inference_mode(False):
        own = copy.deepcopy(net, {id(net.encoder): nn.Identity()}).to(device, torch.float32)
        latent = sample[None].clone().to(device, torch.float32)
        picture = original.movedim(-1, 0)[None].clone().to(device, torch.float32) * 2 - 1
        inside = mask[None, None].clone().to(device, torch.float32)

    def decode() -> Tensor:
        return own.decode(latent)[..., :height, :width]

    progress = comfy.utils.ProgressBar(steps)
    with gradient_phase(own):
        with torch.no_grad():
            edit = decode()
        own.decoder.requires_grad_(True)
        optimizer = torch.optim.Adam(own.decoder.parameters(), lr=LEARNING_RATE)
        for _ in range(steps):
            comfy.model_management.throw_exception_if_processing_interrupted()
            new = decode()
            background = mse_loss(new * (1 - inside), picture * (1 - inside))
            loss = mse_loss(new * inside, edit * inside) + BACKGROUND_WEIGHT * background
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.update(1)
        with torch.no_grad():
            return ((decode()[0] + 1) / 2).clamp(0, 1).movedim(0, -1)
