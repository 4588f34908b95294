"""How many candidates are sampled at once, and which samplers must take them one by one."""

import inspect
import math

import comfy.k_diffusion.sampling
import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .guidance_memory import bytes_once, guidance_bytes

HEADROOM = 1.5


def candidates_that_fit(model: ModelPatcher, latent: Tensor, wanted: int) -> int:
    """How many of the wanted candidates fit into memory at once, at least 1, in parts of about the same size.

    latent: (B, C, h, w), one row a picture; each candidate needs them all, twice for CFG, and once for what guidance by
    CLIP keeps. The models that guide are loaded too, and what they keep for any number of rows is there once.
    """
    rows, *shape = latent.shape
    each = model.model.memory_required([2 * rows, *shape]) * HEADROOM + rows * guidance_bytes(model, shape)
    beside = [one for one in model.get_additional_models() if one.load_device == model.load_device]
    to_load = sum(max(0, one.model_size() - one.loaded_size()) for one in (model, *beside))
    free = comfy.model_management.get_free_memory(model.load_device) - to_load - bytes_once(model)
    fit = min(max(1, int(free // each)), wanted)
    return math.ceil(wanted / math.ceil(wanted / fit))


def draws_by_batch(sampler: str) -> bool:
    """Whether a host sampler draws noise for a whole batch, so that a candidate's would depend on its neighbours."""
    function = getattr(comfy.k_diffusion.sampling, f"sample_{sampler}", None)
    return function is not None and "noise_sampler" in inspect.signature(function).parameters
