"""What a guidance keeps for its gradient beside the UNet's own step, told with the model to whoever plans a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.clip_vision
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from .activations import backward_factor
from .clip_pairs import picture_side

RowBytes = Callable[[Sequence[int]], float]

_KEY = "inlay_guidance_bytes"
# Values kept per token, channel and layer: counted 12 for GELU and 17 for QuickGELU; the rest is for the way back.
_VALUES_KEPT = 20
_FP32_BYTES = 4
# Of LPIPS with VGG16, per pixel of the picture: counted 489.
_PERCEPTUAL_VALUES = 520
# Of VGG19 as far as style is read from it, per pixel that it sees: counted 382.
_VGG19_VALUES = 450


@dataclass(frozen=True)
class _Told:
    row_bytes: RowBytes
    through_unet: bool
    once: float


def tell(model: ModelPatcher, row_bytes: RowBytes, through_unet: bool, once: float = 0.0) -> None:
    """row_bytes: of a row's latent shape (C, h, w), beside the UNet. once: bytes whatever the number of rows.

    Several guidances of one model add up.
    """
    model.model_options.setdefault(_KEY, []).append(_Told(row_bytes, through_unet, once))


def guidance_bytes(model: ModelPatcher, shape: Sequence[int]) -> float:
    """What all guidances on the model keep for one row of latent shape (C, h, w) and its unconditional twin."""
    told = model.model_options.get(_KEY, [])
    kept = sum(one.row_bytes(shape) for one in told)
    # They share one forward of the UNet, whose own memory everybody reserves.
    if any(one.through_unet for one in told):
        kept += (backward_factor() - 1) * model.model.memory_required([2, *shape])
    return kept


def bytes_once(model: ModelPatcher) -> float:
    """What all guidances on the model keep beside that, whatever the number of rows."""
    return sum(one.once for one in model.model_options.get(_KEY, []))


def perceptual_bytes(pixels: int) -> float:
    """What LPIPS keeps of one picture."""
    return pixels * _PERCEPTUAL_VALUES * _FP32_BYTES


def vgg19_bytes(pixels: int) -> float:
    """What VGG19 keeps of one picture as it sees it."""
    return pixels * _VGG19_VALUES * _FP32_BYTES


def view_bytes(vision: comfy.clip_vision.ClipVisionModel) -> float:
    """What one view keeps in the vision model; of a host that does not tell its shape, what ViT-L/14 would.

    All of it is fp32, whatever the weights are: the views come in fp32, and the host casts weights to their input.
    """
    config = getattr(vision, "config", {})
    tokens = (picture_side(vision) // config.get("patch_size", 14)) ** 2 + 1
    values = tokens * config.get("hidden_size", 1024) * config.get("num_hidden_layers", 24) * _VALUES_KEPT
    return values * _FP32_BYTES


def cast_bytes(net: nn.Module) -> float:
    """The fp32 copies of weights of other types, which backward reads again: one of each, however many the views."""
    return sum(float(it.numel() * _FP32_BYTES) for it in net.parameters() if it.dtype != torch.float32)
