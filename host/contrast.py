"""CDS's contrastive gradient: PatchNCE between two branches' self-attention features, back through the UNet."""

import logging

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..guidance.contrastive import patch_nce
from .activations import backward_factor
from .backward_room import make_room
from .branches import Forward
from .gradients import gradient_phase, ordinary, plain_attention, static_patcher
from .guidance_memory import tell
from .unet_blocks import grid_of, with_patches

logger = logging.getLogger("inlay")

# Half precision would lose the small gradients of a loss of order 1.
LOSS_SCALE = 1024.0


def with_backward(model: ModelPatcher) -> ModelPatcher:
    """A clone that the host loads fully, with room for the activations of a backward pass."""
    patched = static_patcher(model)
    make_room(patched, backward_factor(), whole=True)
    # Of a picture's four rows the gradient keeps the two that the texts tell: half of what each of its latents would.
    tell(patched, lambda shape: (backward_factor() - 1) * model.model.memory_required([1, *shape]), through_unet=False)
    return patched


def contrast_gradient(
    forward: Forward, target: Tensor, source: Tensor, noise: Tensor, sigma: Tensor, generator: torch.Generator
) -> Tensor:
    """d/d(target) of each picture's PatchNCE, summed over the decoder's self-attention outputs of the conditional rows.

    target, source: (B, C, h, w), noised alike; the forward's first text is the source's, the second the target's. A
    picture whose gradient overflows in half precision gets none this time, with a warning. Raises ValueError where
    another pack's patch lets no gradient through.
    """
    features: list[tuple[Tensor, int, int]] = []

    def keep(n: Tensor, step: dict) -> Tensor:
        grid = grid_of(step, n.shape[1])
        if step["block"][0] == "output" and grid is not None:
            features.append((n, *grid))
        return n

    with gradient_phase(forward.network):
        latent = target.clone().requires_grad_()
        noise, sigma, source = (value.clone() for value in (noise, sigma, source))
        noised = torch.cat([source, latent]) + sigma * torch.cat([noise, noise])
        options = plain_attention(ordinary(forward.options))
        options["transformer_options"] = with_patches(options["transformer_options"], last={"attn1_output_patch": keep})
        conds = [ordinary(forward.guider.conds["positive"])]
        comfy.samplers.calc_cond_batch(forward.network, conds, noised, sigma.repeat(len(noised)), options)
        losses = []
        for kept, height, width in features:
            of_source, of_target = kept.chunk(2)
            losses.append(patch_nce(of_target, of_source, height, width, generator))
        # patch_nce is the mean over pictures, and a picture's pull must not depend on its company.
        loss = LOSS_SCALE * len(target) * torch.stack(losses).sum()
        if not loss.requires_grad:
            raise ValueError(
                "The method cds needs a gradient through the model, and a patch on it lets none through. "
                "Remove that patch, or use another method."
            )
        (gradient,) = torch.autograd.grad(loss, latent)
    finite = gradient.flatten(1).isfinite().all(1)
    if not finite.all():
        logger.warning("The contrast's gradient overflowed at noise level %.3g, so it is left out there.", float(sigma))
    return torch.where(finite[:, None, None, None], gradient / LOSS_SCALE, 0)
