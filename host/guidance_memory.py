"""What a guidance keeps for its gradient beside the UNet's own step, told with the model to whoever plans a batch."""

from collections.abc import Callable, Sequence

import comfy.clip_vision
from comfy.model_patcher import ModelPatcher

from .clip_pairs import picture_side

RowBytes = Callable[[Sequence[int]], float]

_KEY = "inlay_guidance_bytes"
# Values kept per token, channel and layer: counted 12 for GELU and 17 for QuickGELU; the rest is for the way back.
_VALUES_KEPT = 20
# The UNet's activations kept for backward, above the once that everybody reserves.
_UNET_AGAIN = 5


def tell(model: ModelPatcher, row_bytes: RowBytes) -> None:
    """row_bytes: of a row's latent shape (C, h, w). Several guidances of one model add up."""
    model.model_options.setdefault(_KEY, []).append(row_bytes)


def guidance_bytes(model: ModelPatcher, shape: Sequence[int]) -> float:
    """What all guidances on the model keep for one row of latent shape (C, h, w)."""
    return sum(row_bytes(shape) for row_bytes in model.model_options.get(_KEY, []))


def view_bytes(vision: comfy.clip_vision.ClipVisionModel) -> float:
    """What one view keeps in the vision model; of a host that does not tell its shape, what ViT-L/14 would."""
    config = getattr(vision, "config", {})
    tokens = (picture_side(vision) // config.get("patch_size", 14)) ** 2 + 1
    values = tokens * config.get("hidden_size", 1024) * config.get("num_hidden_layers", 24) * _VALUES_KEPT
    return values * vision.dtype.itemsize


def unet_bytes(model: ModelPatcher, shape: Sequence[int]) -> float:
    """What a gradient through the UNet keeps of a row and its unconditional twin."""
    return _UNET_AGAIN * model.model.memory_required([2, *shape])
