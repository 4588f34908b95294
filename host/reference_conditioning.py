"""A reference picture as the CONDITIONING of an inpainting model that is told what to paint by a picture."""

import comfy.clip_vision
import comfy.model_management
import torch
from torch import Tensor

from ..attention.boxes import bounding_box
from ..guidance.crops import crop_square, square_around
from ..guidance.masks import fit_mask, require_region
from ..guidance.reference import ReferenceEncoder
from .clip_pairs import prepare_pictures
from .inversion import POOLED_WIDTH

CROP_MARGIN = 1.15


def require_pair(
    encoder: ReferenceEncoder | None, vision: comfy.clip_vision.ClipVisionModel | None, fresh: bool = False
) -> None:
    """Raises ValueError where the encoder was not trained on this kind of vision model.

    fresh: lets the encoder be missing, because one is about to be trained.
    """
    if vision is None or (encoder is None and not fresh):
        raise ValueError("A reference needs both clip_vision and reference_encoder. Connect them.")
    if vision.model_type != "clip_vision_model":
        raise ValueError(
            f"The vision model is a {vision.model_type} and the reference encoder takes CLIP's. "
            "Load a CLIP vision file."
        )
    width = vision.config["hidden_size"]
    if encoder is not None and width != encoder.width:
        raise ValueError(
            f"The CLIP vision model is {width} wide and the reference encoder takes {encoder.width}. "
            "Load the CLIP vision that the encoder was trained with (Paint-by-Example: ViT-L/14)."
        )


@torch.no_grad()
def pooled_states(vision: comfy.clip_vision.ClipVisionModel, pictures: Tensor, chunk: int = 16) -> Tensor:
    """The class token after its norm, before the projection: (B, C) fp32 on the CPU. pictures: (B, 3, H, W)."""
    comfy.model_management.load_model_gpu(vision.patcher)
    tower, device = vision.model.vision_model, vision.load_device
    parts = [tower(prepare_pictures(vision, part.to(device).float(), clamp=True))[2] for part in pictures.split(chunk)]
    return torch.cat(parts).float().cpu()


@torch.no_grad()
def encode_pooled(encoder: ReferenceEncoder, pooled: Tensor) -> Tensor:
    """Context tokens (B, 1, D) fp32 on the CPU."""
    return encoder(pooled.to(encoder.null.device, encoder.null.dtype)).float().cpu()


def null_token(encoder: ReferenceEncoder) -> Tensor:
    """What stands for no reference: (1, 1, D) fp32 on the CPU."""
    return encoder.null.detach().float().cpu().clone()


def no_pooled(rows: int) -> Tensor:
    """What SDXL reads of a text beside its tokens, where there is no text: zeros (rows, 1280). Others do not look."""
    return torch.zeros(rows, POOLED_WIDTH)


def reference_conditioning(
    encoder: ReferenceEncoder,
    vision: comfy.clip_vision.ClipVisionModel,
    reference: Tensor,
    mask: Tensor | None = None,
) -> tuple[list, list]:
    """Positive and negative CONDITIONING, one row a reference, which the sampler pairs with the rows of its batch.

    reference: (B, H, W, 3) in [0, 1]. mask: (B or 1, H, W), 1 on the thing: a square around it is cut out, CROP_MARGIN
    times its longer side, as Train Subject does; without one the whole picture is the reference. Raises ValueError for
    parts that do not go together, an empty mask, and values that are not numbers.
    """
    require_pair(encoder, vision)
    pictures = reference[..., :3].movedim(-1, 1).float()
    if not torch.isfinite(pictures).all():
        raise ValueError("The reference holds values that are not numbers. Check the node that made it.")
    if mask is not None:
        pictures = _cut_out(pictures, fit_mask(mask, *pictures.shape[-2:]), vision.image_size)
    tokens = encode_pooled(encoder, pooled_states(vision, pictures))
    silence = null_token(encoder).expand_as(tokens).clone()
    positive, negative = ([[one, {"pooled_output": no_pooled(len(one))}]] for one in (tokens, silence))
    return positive, negative


def _cut_out(pictures: Tensor, mask: Tensor, size: int) -> Tensor:
    require_region(mask)
    if len(mask) not in (1, len(pictures)):
        raise ValueError(f"There are {len(mask)} masks for {len(pictures)} references. Give one, or one per reference.")
    masks = mask.expand(len(pictures), -1, -1)
    squares = [square_around(bounding_box(one >= one.max() / 2), CROP_MARGIN) for one in masks]
    return torch.cat([crop_square(one[None], square, size) for one, square in zip(pictures, squares, strict=True)])
