"""The mask that the model and the background see at each noise level."""

import torch
from torch import Tensor

from ..guidance.masks import progressive_masks

# Above it less than a tenth of a latent's variance is picture: what is where is being decided, and a thing may take up
# all of the cells that its mask touches. Below it such a cell keeps as much background as it holds.
RIM_LEVEL = 3.0


def by_level(extra_args: dict, sigmas: Tensor, shares: Tensor, stages: int = 0) -> dict:
    """The sampler's arguments with a mask that changes with the level; another pack's function then shapes it further.

    The mask that the sampler is given counts whole above RIM_LEVEL, and below it no more than shares, (B, 1, h, w).
    stages: in how many it shrinks from a larger one to itself, see progressive_masks; 0 is off.
    """
    options = extra_args.get("model_options", {})
    previous = options.get("denoise_mask_function")
    levels = sigmas[:-1].tolist()

    def shape(sigma: Tensor, mask: Tensor, extra_options: dict) -> Tensor:
        level = float(sigma.max())
        if level <= RIM_LEVEL:
            mask = torch.minimum(mask, shares)
        if stages:
            # Some samplers ask between two levels: the step that they are in counts.
            step = max(sum(one >= level * (1 - 1e-5) for one in levels) - 1, 0)
            mask = progressive_masks(mask, stages, len(levels))[step]
        return mask if previous is None else previous(sigma, mask, extra_options=extra_options)

    return {**extra_args, "model_options": {**options, "denoise_mask_function": shape}}
