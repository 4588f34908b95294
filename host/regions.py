"""The regions on a model and the texts that act there, for each batch that the sampler makes."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy.utils import repeat_to_batch_size
from torch import Tensor
from torch.nn.functional import pad

from ..attention.region_guidance import Layout, Part, Text, lay_out, region_tokens
from ..guidance.masks import fit_mask
from .area_conds import PLACES, Area, Places
from .unet_blocks import entries

REGIONS = "inlay_regions"
Outside = Literal["zero", "null", "text"]
Form = Literal["region", "masked_output"]

# Pixels per latent cell and side, in every family that region guidance knows.
CELL = 8


@dataclass(frozen=True, eq=False)
class Region:
    """A place and its text. mask: (H, W), or (B, H, W) with one per picture of the batch, in [0, 1], 1 inside.

    text: (1 or B, L, C), a CONDITIONING's tensor; None takes the sampler's positive.
    """

    mask: Tensor
    text: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Guidance:
    """Regions that came onto the model together. sigmas: (first, last) noise level at which they act, None: all."""

    regions: tuple[Region, ...]
    outside: Outside
    null_text: Tensor | None
    outside_text: Tensor | None
    sigmas: tuple[float, float] | None
    form: Form
    layouts: dict = field(default_factory=dict)

    def at(self, sigma: Tensor | None) -> bool:
        # Reading a level waits for the GPU, so not without need.
        if self.sigmas is None or sigma is None:
            return True
        first, last = self.sigmas
        return last <= sigma.flatten()[0].item() <= first


def build_guidance(
    model: ModelPatcher,
    regions: Iterable[Region],
    outside: Outside,
    null_text: Tensor | None,
    outside_text: Tensor | None,
    percents: tuple[float, float],
    form: Form,
) -> Guidance:
    """Checks the arguments of guide_region; raises ValueError as it says."""
    regions = tuple(Region(_checked(region.mask), region.text) for region in regions)
    if outside == "null" and null_text is None:
        raise ValueError("Outside = null needs the encoder of the empty text. Connect clip, or choose zero.")
    start, end = percents
    if start > end:
        raise ValueError(f"start_percent {start:g} comes after end_percent {end:g}. Give the smaller one first.")
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    sigmas = None if percents == (0, 1) else (to_sigma(start), to_sigma(end))
    return Guidance(regions, outside, null_text, outside_text, sigmas, form)


def _checked(mask: Tensor) -> Tensor:
    mask = mask.detach().reshape(-1, *mask.shape[-2:]).float().cpu()
    if not torch.isfinite(mask).all():
        raise ValueError("The region mask holds values that are not numbers. Check the node that made it.")
    if not (mask > 0).flatten(1).any(1).all():
        raise ValueError("The region mask is empty. Paint at least one pixel of the place to fill.")
    return mask


def text_of_conditioning(conditioning: list) -> Tensor:
    """(B, L, C), the text of a CONDITIONING. Raises ValueError for several combined ones."""
    if len(conditioning) != 1:
        raise ValueError(
            f"A region takes one text and the conditioning holds {len(conditioning)}. "
            "Write them in one prompt, or add a Guide Region for each."
        )
    return conditioning[0][0]


def empty_text(clip: CLIP) -> Tensor:
    """(1, L, C), the empty text."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(""))[0][0]


class Plan:
    """What the active regions of a model ask of one call of its network.

    rows: the batch's size. size: (height, width) of its latents, which an area condition crops.
    """

    def __init__(self, guidances: tuple[Guidance, ...], options: Mapping, rows: int, size: tuple[int, int]):
        self.guidances = guidances
        self.rows = rows
        self.places = options.get(PLACES, Places(size, {}, 0))
        self.entries = list(entries(options, rows))
        self.areas = self.places.of(options, len(self.entries))
        self.pictures = rows // len(self.entries)
        wanted = [region.text for one in guidances for region in one.regions]
        wanted += [text for one in guidances for text in (one.null_text, one.outside_text)]
        self._sources = list({id(text): text for text in wanted if text is not None}.values())
        self._texts: list[Tensor] = []

    @classmethod
    def of(cls, options: Mapping, rows: int, size: tuple[int, int]) -> "Plan | None":
        """The plan for one call of the network, None where no region acts."""
        sigma = options.get("sigmas")
        active = tuple(one for one in options.get(REGIONS, ()) if one.at(sigma))
        return cls(active, options, rows, size) if active else None

    def layout(self, grid: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Layout:
        """What acts where on features of (height, width) = grid."""
        known = self.guidances[-1].layouts
        batch = (self.guidances, tuple(self.entries), tuple(self.areas), self.places.size, self.places.positive)
        key = (batch, grid, device, dtype)
        if key not in known:
            # Kept for later calls, which may want gradients.
            with torch.inference_mode(False):
                parts = self._parts(grid)
                layout = lay_out(parts, self.rows, grid[0] * grid[1], self._outside(parts))
                known[key] = Layout(tuple(part.to(device, dtype) for part in layout.parts), layout.texts)
        return known[key]

    def read(self, like: Tensor, width: int, embed: Callable[[Tensor], Tensor] = lambda text: text) -> None:
        """Makes the texts ready, once. like: of their device and type. embed: what the network does to a text first.

        Raises ValueError for texts that are not `width` numbers wide.
        """
        if self._texts:
            return
        for text in self._sources:
            if text.shape[-1] != width:
                raise ValueError(
                    f"A region's text is {text.shape[-1]} numbers wide and this model reads {width}. "
                    "Encode it with the CLIP that belongs to the model."
                )
            self._texts.append(repeat_to_batch_size(embed(text.to(like.device, like.dtype).clone()), self.pictures))

    def text_of(self, part: Part, own: Tensor) -> Tensor:
        """(r, L, C) for the rows of a part. own: (rows, L, C), the sampler's."""
        return own[part.rows] if part.text is None else self._texts[part.text][part.rows % self.pictures]

    def first_texts(self, layout: Layout, own: Tensor) -> Tensor:
        """(rows, L', C), what the block's own cross-attention reads. own: (rows, L, C), the sampler's."""
        if all(text is None for text in layout.texts):
            return own
        texts = [
            own[row] if text is None else self._texts[text][row % self.pictures]
            for row, text in enumerate(layout.texts)
        ]
        # Attention to a text repeated is attention to the text; the host evens out lengths in the same way.
        length = math.lcm(*map(len, texts))
        return torch.stack([text.repeat(length // len(text), 1) for text in texts])

    def _name(self, text: Tensor | None) -> Text:
        return next((name for name, source in enumerate(self._sources) if source is text), None)

    def _parts(self, grid: tuple[int, int]) -> list[Part]:
        parts = []
        for one in self.guidances:
            for region in one.regions:
                masks = fit_to_latent(region.mask, *self.places.size)
                for (picture, area, text), rows in self._alike(region, len(masks)).items():
                    tokens = region_tokens(_crop(masks[picture], area), *grid)
                    parts.append(Part(torch.tensor(rows), tokens, text, alone=one.form == "region"))
        return parts

    def _alike(self, region: Region, masks: int) -> dict[tuple[int, Area, Text], list[int]]:
        """The rows that a region treats alike: same mask of its batch, same area, same text."""
        # A sampler that paints several candidates repeats the whole batch, its pictures in the same order.
        if self.pictures % masks:
            raise ValueError(
                f"There are {masks} region masks for {self.pictures} pictures. Give one mask, or one for each picture."
            )
        alike: dict[tuple[int, Area, Text], list[int]] = {}
        for (index, rows), area in zip(self.entries, self.areas, strict=True):
            text = self._name(region.text) if index == self.places.positive else None
            for picture, row in enumerate(rows):
                alike.setdefault((picture % masks, area, text), []).append(row)
        return alike

    def _outside(self, parts: Iterable[Part]) -> dict[int, Text]:
        last = self.guidances[-1]
        if last.outside == "text":
            positive = [row for index, rows in self.entries if index == self.places.positive for row in rows]
            return dict.fromkeys(range(self.rows)) | dict.fromkeys(positive, self._name(last.outside_text))
        if last.null_text is None:
            return {}
        rows = set(range(self.rows))
        if last.outside == "zero":
            # Only where no region touches the row's crop, which lies in another place altogether.
            rows -= {row for part in parts if len(part.tokens) for row in part.rows.tolist()}
        return dict.fromkeys(rows, self._name(last.null_text))


def cell_offset(size: tuple[int, int], latent: tuple[int, int]) -> tuple[int, int] | None:
    """(top, left): where in a picture of size (H, W) the first of a latent's (h, w) cells lies.

    Such a picture was padded right and below (by us) or cropped all round (by the host's VAE Encode) to whole cells.
    None where the sizes are a cell or more apart: it was resized.
    """
    surplus = [pixels - cells * CELL for pixels, cells in zip(size, latent, strict=True)]
    if max(map(abs, surplus)) >= CELL:
        return None
    top, left = (max(pixels, 0) // 2 for pixels in surplus)
    return top, left


def fit_to_latent(mask: Tensor, height: int, width: int) -> Tensor:
    """The masks (B, H, W) on the pixels of a latent of height x width cells, as `cell_offset` has it, or resized.

    Raises ValueError for another aspect.
    """
    offset = cell_offset(tuple(mask.shape[1:]), (height, width))
    height, width = height * CELL, width * CELL
    if offset is None:
        return fit_mask(mask, height, width)
    top, left = offset
    cropped = mask[:, top : top + height, left : left + width]
    below, right = height - cropped.shape[1], width - cropped.shape[2]
    return pad(cropped[:, None], (0, right, 0, below), mode="reflect")[:, 0]


def _crop(mask: Tensor, area: Area) -> Tensor:
    top, left, height, width = (side * CELL for side in area)
    return mask[top : top + height, left : left + width]
