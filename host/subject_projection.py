"""A reference projection of our own, trained beside a subject's LoRA and kept in the same file."""

import copy
from collections.abc import Mapping

import comfy.clip_vision
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..guidance.reference import ReferenceEncoder
from ..guidance.reference_mapper import ReferenceMapper

PREFIX = "inlay_reference."
_BLOCK_NORM = "projection.blocks.{}.norm1.weight"


def trainable_projection(
    encoder: ReferenceEncoder | None, vision: comfy.clip_vision.ClipVisionModel, model: ModelPatcher, seed: int
) -> ReferenceEncoder:
    """A copy of the encoder to train, fp32; without one a norm and a linear layer from the vision's width."""
    if encoder is None:
        width, context = vision.config["hidden_size"], model.model.model_config.unet_config["context_dim"]
        projection = _linear(width, context)
        bound = width**-0.5
        generator = torch.Generator().manual_seed(seed % 2**63)
        with torch.no_grad():
            projection[1].weight.uniform_(-bound, bound, generator=generator)
            projection[1].bias.zero_()
        encoder = ReferenceEncoder(projection, torch.zeros(1, 1, context), width)
    return copy.deepcopy(encoder).float().requires_grad_(True)


def projection_tensors(encoder: ReferenceEncoder) -> dict[str, Tensor]:
    """What a file holds of it."""
    return {PREFIX + key: value.detach().cpu().float().clone() for key, value in encoder.state_dict().items()}


def has_projection(tensors: Mapping[str, Tensor]) -> bool:
    return f"{PREFIX}null" in tensors


def without_projection(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if not key.startswith(PREFIX)}


def load_projection(tensors: Mapping[str, Tensor]) -> ReferenceEncoder:
    """The encoder out of a file's tensors, frozen. Raises ValueError where it is of no kind that Inlay trains."""
    state = {key.removeprefix(PREFIX): value.float() for key, value in tensors.items() if key.startswith(PREFIX)}
    null = state["null"]
    if "projection.1.weight" in state:
        context, width = state["projection.1.weight"].shape
        projection: nn.Module = _linear(width, context)
    elif _BLOCK_NORM.format(0) in state:
        context, width = state["projection.projection.weight"].shape
        blocks = sum(_BLOCK_NORM.format(number) in state for number in range(len(state)))
        projection = ReferenceMapper(blocks, width, context)
    else:
        raise ValueError("The subject's reference projection is of an unknown kind. Train it with Train Subject.")
    encoder = ReferenceEncoder(projection, torch.empty_like(null), width)
    encoder.load_state_dict(state)
    return encoder.eval().requires_grad_(False)


def _linear(width: int, context: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, context))
