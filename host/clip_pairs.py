"""CLIP's two halves as one: the host's CLIP_VISION, and a text encoder whose projection ends in the same space."""

import math
from collections.abc import Iterator

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

_PAIRS = {
    768: "the full clip-vit-large-patch14 file in both Load CLIP and Load CLIP Vision",
    1024: "clip_h of an SD2.x checkpoint with the ViT-H-14 file in Load CLIP Vision",
    1280: "clip_g of an SDXL checkpoint with the ViT-bigG-14 file in Load CLIP Vision",
}


def is_dino(vision: comfy.clip_vision.ClipVisionModel) -> bool:
    return vision.model_type.startswith("dino")


def is_clip(vision: comfy.clip_vision.ClipVisionModel) -> bool:
    return vision.model_type == "clip_vision_model" and projection_width(vision) is not None


def projection_width(vision: comfy.clip_vision.ClipVisionModel) -> int | None:
    """The width of CLIP's common space, None for an encoder that has none (DINO, SigLIP)."""
    projection = getattr(vision.model, "visual_projection", None)
    return projection.weight.shape[0] if isinstance(projection, nn.Module) else None


def require_vision(vision: comfy.clip_vision.ClipVisionModel | None) -> None:
    """Raises ValueError for the None that Load Checkpoint gives where there is no vision model."""
    if vision is None:
        raise ValueError("There is no CLIP_VISION: this checkpoint holds none. Load one with Load CLIP Vision.")


def picture_side(vision: comfy.clip_vision.ClipVisionModel) -> int:
    """The side of the square that it sees, in pixels; of an encoder of any size the largest that its patches fill."""
    if vision.image_size > 0:
        return vision.image_size
    return math.isqrt(vision.config["num_patches"]) * vision.config["patch_size"]


def prepare_pictures(
    vision: comfy.clip_vision.ClipVisionModel, pictures: Tensor, stretch: bool = False, clamp: bool = False
) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] to the encoder's input: its size, mean and deviation. Differentiable.

    As the host's own preprocessing but without its rounding, whose gradient is 0. The longer side is cropped at the
    centre, or squeezed with `stretch`. `clamp` cuts what bicubic resizing overshoots, and its gradient with it.
    """
    size = picture_side(vision)
    height, width = pictures.shape[-2:]
    if (height, width) != (size, size):
        scale = size / min(height, width)
        target = (size, size) if stretch else (round(scale * height), round(scale * width))
        pictures = interpolate(pictures, target, mode="bicubic", antialias=True)
        top, left = ((side - size) // 2 for side in pictures.shape[-2:])
        pictures = pictures[..., top : top + size, left : left + size]
    if clamp:
        pictures = pictures.clamp(0, 1)
    return (pictures - _channels(vision.image_mean, pictures)) / _channels(vision.image_std, pictures)


def embed_prepared(vision_model: nn.Module, prepared: Tensor, unit: bool = True) -> Tensor:
    """Embeddings (B, D), fp32 or better, of what prepare_pictures gave. The caller loads the model.

    unit: of length 1. A gradient needs gradient_phase and differentiable_layers around it. Raises ValueError for an
    encoder that the host gives no embedding of the whole picture, only of its patches (SigLIP).
    """
    embedding = vision_model(pixel_values=prepared, intermediate_output=-2)[2]
    if embedding.ndim != 2:
        raise ValueError("This CLIP_VISION gives no embedding of a whole picture (SigLIP). Load CLIP's or DINOv2.")
    embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
    return normalize(embedding, dim=-1) if unit else embedding


def embed_pictures(
    vision: comfy.clip_vision.ClipVisionModel, images: Tensor, chunk: int = 16, unit: bool = True
) -> Tensor:
    """Embeddings (B, D) of IMAGE (B, H, W, 3), without a gradient, on the CPU. unit: of length 1.

    DINO gives its class token, CLIP the projected one. Raises ValueError for values that are not numbers.
    """
    if not torch.isfinite(images).all():
        raise ValueError("The pictures hold values that are not numbers. Check the node that made them.")
    comfy.model_management.load_model_gpu(vision.patcher)
    with torch.no_grad():
        parts = (part.to(vision.load_device).float() for part in images[..., :3].movedim(-1, 1).split(chunk))
        seen = [embed_prepared(vision.model, prepare_pictures(vision, part, clamp=True), unit) for part in parts]
    return torch.cat(seen).cpu()


def embed_text(clip: comfy.sd.CLIP, vision: comfy.clip_vision.ClipVisionModel, text: str) -> Tensor:
    """The text's unit embedding (D,) in the vision model's space, fp32, on the CPU.

    Raises ValueError where the two are no pair, where the text encoder has no projection of its own, and for a text
    longer than the encoder takes.
    """
    name, encoder = _partner(clip, vision)
    tokens = clip.tokenize(text)[name]
    if len(tokens) != 1:
        raise ValueError(
            f"The text fills {len(tokens)} x {encoder.max_length} tokens and CLIP compares one. Shorten the text."
        )
    device = clip.load_model({name: tokens}).load_device
    encoder.reset_clip_options()
    # The projection is applied below, for encoders that return it and for those that do not.
    encoder.set_clip_options({"projected_pooled": False, "execution_device": device})
    try:
        with torch.no_grad():
            pooled = encoder.encode_token_weights(tokens)[1].to(device)
            projected = encoder.transformer.text_projection(pooled)[0]
    finally:
        encoder.reset_clip_options()
    return normalize(projected.float(), dim=-1).cpu()


def require_pair(clip: comfy.sd.CLIP, vision: comfy.clip_vision.ClipVisionModel) -> None:
    """Raises the ValueError that embed_text would raise, before anything is computed."""
    _partner(clip, vision)


def _partner(clip: comfy.sd.CLIP, vision: comfy.clip_vision.ClipVisionModel) -> tuple[str, nn.Module]:
    """The key and the encoder, of those inside the CLIP, that share the vision model's space."""
    if clip is None:
        raise ValueError("There is no text encoder: this checkpoint holds none. Load one with Load CLIP.")
    width = projection_width(vision)
    if width is None:
        raise ValueError(
            f"This CLIP_VISION ({vision.model_type}) has no space in common with words. "
            f"Load a CLIP pair: {_PAIRS[768]}."
        )
    file = _PAIRS.get(width, f"a text encoder with a text_projection of width {width}, from the same CLIP")
    encoders = list(_text_encoders(clip))
    same_width = [(name, it) for name, it in encoders if it.transformer.text_projection.weight.shape[0] == width]
    if not same_width:
        widths = ", ".join(str(it.transformer.text_projection.weight.shape[0]) for _, it in encoders) or "no CLIP"
        raise ValueError(
            f"The text encoder ({widths}) and the vision model ({width}) are no CLIP pair. To compare words and "
            f"pictures load {file}."
        )
    for name, encoder in same_width:
        if _is_real(encoder.transformer.text_projection.weight):
            return name, encoder
    raise ValueError(
        "This text encoder came without its text_projection, as in every SD1.x checkpoint, so its words cannot be "
        f"compared with pictures. Load {file}."
    )


def _text_encoders(clip: comfy.sd.CLIP) -> Iterator[tuple[str, nn.Module]]:
    for name, module in clip.cond_stage_model.named_children():
        if hasattr(getattr(module, "transformer", None), "text_projection"):
            yield name.removeprefix("clip_"), module


def _is_real(weight: Tensor) -> bool:
    """Whether it was loaded. A missing one is what the memory held, or an identity in files of old hosts."""
    weight = weight.detach().float().cpu()
    if not torch.isfinite(weight).all() or weight.abs().max() >= 10:
        return False
    # Fresh memory is zero in whole pages, and values of other types read as floats are denormal: every row of a
    # projection that was trained, or drawn, has a norm far from both.
    norms = weight.norm(dim=1)
    return bool(norms.min() > 1e-4) and not torch.equal(weight, torch.eye(weight.shape[0]))


def _channels(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype)[:, None, None]
