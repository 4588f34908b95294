"""SECR on the cross-attention of every block of a ComfyUI UNet (SD1.x, SD2.x, SDXL)."""

import math
from collections.abc import Sequence

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..attention.boxes import Box
from ..attention.concept_region import cell_mask, insert_concept, mask_boxes, single_boxes
from ..guidance.masks import fit_mask
from .area_conds import PLACES, add_places
from .regions import CELL, cell_offset
from .unet_blocks import EXTRA_CALL, add_block_handover, block_of, entries, grid_of, require_unet

OUTSIDES = ("ca", "raw")
ROWS = ("both", "conditional")

# In the dict that the patches of one block call share: the first region of the call, and the queries already given
# to a concept.
_FIRST = "inlay_concept_first"
_TAKEN = "inlay_concept_taken"


def concept_region(
    model: ModelPatcher,
    concepts: Sequence[Tensor | None],
    boxes: Sequence[Box],
    size: tuple[int, int],
    outside: str = "ca",
    rows: str = "both",
) -> ModelPatcher:
    """A clone of the model that attends to the concept alone inside the box.

    concepts: contexts (1, L, C), one for all pictures of the sampler's batch or one each, None for a picture to leave
    alone. boxes: one for all pictures or one each, in pixels of a picture of size (H, W). outside: `ca` is the
    prompt's ordinary cross-attention, `raw` the block's own features through the output layer (the authors' code).
    rows: `both`, conditional and unconditional alike, so that cfg cannot strengthen the concept (the authors' code), or
    `conditional` ones alone. Raises ValueError for a model without a UNet and for concepts of another width.
    """
    require_unet(model, "concept regions")
    width = model.model.model_config.unet_config.get("context_dim")
    for concept in concepts:
        if concept is not None and concept.shape[-1] != width:
            raise ValueError(
                f"The concept's text is {concept.shape[-1]} wide and the model takes {width}. "
                "Encode it with the CLIP that belongs to the model."
            )
    region = _Region(concepts, boxes, size, outside == "raw", rows == "both")
    patched = model.clone()
    add_block_handover(patched)
    add_places(patched)
    patched.set_model_attn2_patch(region.enter)
    patched.set_model_attn2_output_patch(region.leave)
    return patched


def add_concept_region(
    model: ModelPatcher,
    concept: list,
    mask: Tensor,
    bbox: Box | Sequence | None = None,
    outside: str = "ca",
    rows: str = "both",
) -> ModelPatcher:
    """`concept_region` from what sockets carry. concept: CONDITIONING. mask: (B, H, W), its bounding box is the region;
    bbox: instead of it, in the mask's pixels. Raises ValueError for an empty mask, a box outside of it, and where
    there is not exactly one text and one box a picture.
    """
    if len(concept) != 1:
        raise ValueError(
            f"The concept holds {len(concept)} texts where one is needed. Encode the phrase alone, without combining."
        )
    mask = fit_mask(mask, *mask.shape[-2:])
    if bbox is None:
        boxes = mask_boxes(mask)
    else:
        listed = not isinstance(bbox, dict) and any(not isinstance(one, dict) for one in bbox)
        boxes = single_boxes(bbox, len(bbox) if listed else 1, *mask.shape[-2:])
    return concept_region(model, concept[0][0].split(1), boxes, tuple(mask.shape[-2:]), outside, rows)


def stack_contexts(contexts: Sequence[Tensor]) -> Tensor:
    """Contexts (B, L, C) as one batch. Shorter ones are repeated, which leaves the attention to them as it is."""
    length = math.lcm(*(context.shape[1] for context in contexts))
    return torch.cat([context.repeat(1, length // context.shape[1], 1) for context in contexts])


def on_latent(
    boxes: Sequence[Box], size: tuple[int, int], latent: tuple[int, int]
) -> tuple[list[Box], tuple[int, int]]:
    """Boxes of a picture of size (H, W) in the pixels of a latent of (h, w) cells, and that size.

    As they are, with the picture's own size, where it was resized.
    """
    offset = cell_offset(size, latent)
    if offset is None:
        return list(boxes), size
    top, left = offset
    moved = [{**box, "x": box["x"] - left, "y": box["y"] - top} for box in boxes]
    return moved, (latent[0] * CELL, latent[1] * CELL)


class _Region:
    def __init__(
        self, concepts: Sequence[Tensor | None], boxes: Sequence[Box], size: tuple[int, int], raw: bool, both: bool
    ) -> None:
        given = [concept for concept in concepts if concept is not None]
        self.boxes, self.size, self.raw, self.both = list(boxes), size, raw, both
        self.key = f"inlay_concept_{id(self)}"
        self.places: dict[tuple, tuple[Tensor, Tensor, Tensor]] = {}
        self.everywhere = both and len(given) == len(concepts)
        # Under the executor's inference mode these would be tensors that autograd refuses.
        with torch.inference_mode(False):
            self.active = torch.tensor([concept is not None for concept in concepts])
            self.contexts = stack_contexts([given[0] if concept is None else concept for concept in concepts]).clone()

    def enter(self, n: Tensor, context: Tensor, value: Tensor | None, step: dict) -> tuple:
        """attn2_patch: keeps the queries, and of a `raw` region lets the block itself attend to the concept."""
        if grid_of(step, n.shape[1]) is None:
            return n, context, value
        step[self.key] = n
        if step.setdefault(_FIRST, self.key) == self.key and self.raw and self.everywhere:
            # Refuses what does not fit before the contexts are laid out for it.
            self._places(n, step)
            context = value = self._contexts(n)
        return n, context, value

    def leave(self, attended: Tensor, step: dict) -> Tensor:
        """attn2_output_patch: the concept inside the box, what `outside` says elsewhere."""
        if self.key not in step:
            return attended
        n = step.pop(self.key)
        attn2 = block_of(step).attn2
        tokens, inside, active = self._places(n, step)
        done = step[_FIRST] == self.key and self.raw and self.everywhere
        if done or len(tokens) == 0:
            concept = attended[:, tokens]
        else:
            options = {**step, EXTRA_CALL: True}
            concept = attn2(n[:, tokens], context=self._contexts(n), transformer_options=options)
        taken = step.get(_TAKEN, torch.zeros_like(inside))
        if self.raw:
            attended = torch.where((taken | ~active)[..., None], attended, attn2.to_out(n))
        step[_TAKEN] = taken | inside
        return insert_concept(attended, concept, tokens, inside)

    def _contexts(self, n: Tensor) -> Tensor:
        self.contexts = self.contexts.to(n)
        return self.contexts.repeat(len(n) // len(self.contexts), 1, 1)

    def _places(self, n: Tensor, step: dict) -> tuple[Tensor, Tensor, Tensor]:
        """Queries in any row's box (n,), the box of each row (R, N), and the rows that have a concept (R, 1)."""
        grid, conditions = grid_of(step, n.shape[1]), list(entries(step, len(n)))
        areas = step[PLACES].of(step, len(conditions))
        told = tuple(self.both or index == step[PLACES].positive for index, _ in conditions)
        key = grid, step[PLACES].size, *areas, *told, len(n), n.device
        if key not in self.places:
            pictures = len(n) // len(conditions)
            self._check(step[PLACES].size, pictures)
            with torch.inference_mode(False):
                latent = step[PLACES].size
                boxes, size = on_latent(self.boxes, self.size, latent)
                masks = [cell_mask(boxes, size, grid, latent, area).flatten(1) for area in areas]
                active = self.active.repeat(len(n) // len(self.active))[:, None]
                active = active & torch.tensor(told).repeat_interleave(pictures)[:, None]
                inside = torch.cat([mask.repeat(pictures // len(mask), 1) for mask in masks]) & active
                tokens = inside.any(0).nonzero()[:, 0]
                self.places[key] = tokens.to(n.device), inside.to(n.device), active.to(n.device)
        return self.places[key]

    def _check(self, latent: tuple[int, int], pictures: int) -> None:
        (height, width), (h, w) = self.size, latent
        if abs(height * w - width * h) > max(height, width):
            raise ValueError(
                f"The region is drawn on {width} x {height} pixels, another aspect than the {w} x {h} latent. "
                "Draw it on the picture that is sampled."
            )
        for what, count in (("boxes", len(self.boxes)), ("concepts", len(self.active))):
            if pictures % count:
                raise ValueError(
                    f"The region has {count} {what} and the sampler works on {pictures} pictures. "
                    "Give one for all of them, or one each."
                )
