"""How much a backward pass keeps of a UNet's forward, in the host's own unit: what it reserves for the forward."""

import comfy.model_management

# Counted for bf16 without recomputing: where the host counts on flash attention 9 for SD1.5 at 512 pixels (741 MiB
# against 82) and 19 for SDXL at 1024; where it does not, it reserves much more, and they are 1.2 and 2.5.
_KEPT_UNDER_FLASH, _KEPT = 20, 3
_LEAST_FACTOR = 6


def activations_kept() -> int:
    """What backward keeps of a row, in rows of a plain forward."""
    flash = comfy.model_management.xformers_enabled() or comfy.model_management.pytorch_attention_flash_attention()
    return _KEPT_UNDER_FLASH if flash else _KEPT


def backward_factor() -> int:
    """How many times a plain step's memory to ask of the host for a forward and its backward."""
    return max(_LEAST_FACTOR, 1 + activations_kept())
