"""The best of many pictures, by CLIP."""

import comfy.clip_vision
import comfy.sd
import torch
from torch import Tensor

from ..guidance.masks import fit_mask, require_region
from ..guidance.region_view import cut_out
from .clip_pairs import embed_pictures, embed_text, picture_side, require_vision
from .clip_probe import tell_if_apart


def score_pictures(
    images: Tensor,
    vision: comfy.clip_vision.ClipVisionModel,
    clip: comfy.sd.CLIP | None = None,
    text: str = "",
    reference: Tensor | None = None,
    mask: Tensor | None = None,
    outside: str = "grey",
) -> Tensor:
    """Cosine of each IMAGE (B, H, W, 3) to the words or the reference pictures, (B,) in [-1, 1], more is better.

    Several references count with their mean, words and references with the mean of both. With a mask only the square
    around it is looked at, see cut_out. Raises ValueError without a vision model, without anything to compare with, and
    for an empty mask.
    """
    require_vision(vision)
    targets = []
    if text.strip():
        if clip is None:
            raise ValueError("There are words to compare with but no CLIP. Connect a text encoder with a projection.")
        targets.append(embed_text(clip, vision, text)[None])
        tell_if_apart(clip, vision)
    if reference is not None:
        targets.append(embed_pictures(vision, reference))
    if not targets:
        raise ValueError("There is nothing to compare with. Give a text and its CLIP, or a reference picture.")
    if mask is not None:
        images = look_inside(images, mask, picture_side(vision), outside)
    embeddings = embed_pictures(vision, images)
    return torch.stack([(embeddings @ target.T).mean(1) for target in targets]).mean(0)


def look_inside(images: Tensor, mask: Tensor, size: int, outside: str = "grey") -> Tensor:
    """The square around the mask of each IMAGE, (B, size, size, 3). Raises ValueError for an empty mask."""
    mask = fit_mask(mask, *images.shape[1:3])
    require_region(mask)
    if len(mask) not in (1, len(images)):
        raise ValueError(f"There are {len(mask)} masks and {len(images)} pictures. Give one mask, or one per picture.")
    return cut_out(images[..., :3].movedim(-1, 1).float(), mask.to(images.device), size, outside).movedim(1, -1)


def rank_pictures(images: Tensor, scores: Tensor, keep: int) -> tuple[Tensor, list[float], list[int]]:
    """The first `keep` pictures, best first (0: all), with their scores and their places in the batch."""
    order = scores.argsort(descending=True, stable=True)[: keep or None]
    return images[order.to(images.device)], scores[order].tolist(), order.tolist()
