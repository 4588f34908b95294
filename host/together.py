"""What of a model's rows may go together, or be left out."""

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .activations import activations_kept

# Of the device's whole memory. What happens to be free would let the same seed give another result.
SHARE = 0.8
_PATCHES = ("patches", "patches_replace", "wrappers", "callbacks", "optimized_attention_override")


def patched(model: ModelPatcher) -> bool:
    """Whether another pack's patch is on the model's blocks or around them. A LoRA, which changes weights, is none."""
    options = model.model_options
    told = options.get("transformer_options", {})
    return (
        any(told.get(name) for name in _PATCHES) or "model_function_wrapper" in options or any(model.wrappers.values())
    )


def plain(model: ModelPatcher) -> bool:
    """Whether it runs and is guided as the host does it: rows told the same give the same, and no patch counts them."""
    return not patched(model) and not any(name.startswith("sampler_") for name in model.model_options)


def examples_together(model: ModelPatcher, latent: Tensor, wanted: int, beside: float = 0) -> int:
    """As many of the wanted noised latents (1, C, h, w) as fit with a backward pass, at least 1.

    beside: bytes that something else keeps of each for its own backward pass.
    Each has a noise level of its own. A patch of another pack may know one level a forward only: 1 where there is any.
    """
    if patched(model):
        return 1
    each = model.model.memory_required([activations_kept(), *latent.shape[1:]]) + beside
    room = SHARE * comfy.model_management.get_total_memory(model.load_device) - model.model_size()
    return max(1, min(wanted, int(room // each)))
