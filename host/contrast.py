"""CDS's contrastive gradient: PatchNCE between two branches' self-attention features, back through the UNet."""

import comfy.samplers
import torch
from torch import Tensor

from ..guidance.contrastive import patch_nce
from .branches import Forward
from .gradients import gradient_phase, ordinary, plain_attention
from .unet_blocks import grid_of, with_patches

# Half precision would lose the small gradients of a loss of order 1.
LOSS_SCALE = 1024.0


def contrast_gradient(
    forward: Forward, target: Tensor, source: Tensor, noise: Tensor, sigma: Tensor, generator: torch.Generator
) -> Tensor:
    """d/d(target) of PatchNCE, summed over the decoder's self-attention outputs of the conditional rows.

    target, source: (B, C, h, w), noised alike; the forward's first text is the source's, the second the target's.
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
        (gradient,) = torch.autograd.grad(LOSS_SCALE * torch.stack(losses).sum(), latent)
    return gradient / LOSS_SCALE
