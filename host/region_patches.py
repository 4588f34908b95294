"""Region guidance on ComfyUI's UNets (SD1.x, SD2.x, SDXL): patches around each block's own attention."""

from collections.abc import Iterable

from comfy.ldm.pixart.pixartms import PixArtMS
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..attention.region_guidance import Part, attend_alone, cross_attend
from .area_conds import add_places
from .pixart_region import guide_pixart
from .regions import REGIONS, Form, Outside, Plan, Region, build_guidance
from .unet_blocks import EXTRA_CALL, add_block_handover, block_of, grid_of, require_unet, with_patches

_SELF = "inlay_region_self_attention"
_ATTENDED = "inlay_region_attended"
_QUERIES = "inlay_region_queries"
_CROSS = "inlay_region_cross_attention"


def guide_region(
    model: ModelPatcher,
    regions: Iterable[Region],
    outside: Outside = "zero",
    null_text: Tensor | None = None,
    outside_text: Tensor | None = None,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    form: Form = "region",
) -> ModelPatcher:
    """A clone of the model whose texts act only in their regions (Spin's ARG, eq. 3-4), for UNets and PixArt.

    Regions add to those that the model already has; overlaps average. outside, of the last call: nothing (`zero`), the
    empty text (`null`, null_text) or outside_text (`text`; None: the sampler's positive) acts on all other tokens; with
    `text` the negative rows read their own there. null_text, outside_text: (1 or B, L, C). With zero, null_text serves
    the area conditions that no region touches. form: `masked_output` is the alternative that the paper rejects, plain
    attention with its output masked. Raises ValueError for an empty mask or one with NaN, null without null_text,
    start after end, and a model without separate self- and cross-attention.
    """
    added = build_guidance(model, regions, outside, null_text, outside_text, (start_percent, end_percent), form)
    pixart = isinstance(model.get_model_object("diffusion_model"), PixArtMS)
    if not pixart:
        require_unet(model, "region guidance", "an SD1.x, SD2.x, SDXL or PixArt")
    guided = model.clone()
    options = guided.model_options["transformer_options"]
    options[REGIONS] = (*options.get(REGIONS, ()), added)
    add_places(guided)
    if pixart:
        guide_pixart(guided)
    else:
        add_block_handover(guided)
        if not guided.get_wrappers(WrappersMP.DIFFUSION_MODEL, REGIONS):
            guided.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, REGIONS, _patch_call)
    return guided


def _patch_call(executor, x, timesteps=None, context=None, y=None, control=None, transformer_options=None, **rest):
    plan = Plan.of(transformer_options, len(x), tuple(x.shape[-2:]))
    if plan is not None:
        plan.read(context, context.shape[-1])
        transformer_options = _Patches(plan).around(transformer_options)
    return executor(x, timesteps, context, y, control, transformer_options, **rest)


class _Patches:
    """The patches of one call of a UNet. What they hand on lies in `step`, a dict that one block's patches share."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def around(self, options: dict) -> dict:
        # Nearest to what the block itself computes, so that the order of the nodes does not matter.
        first = {"attn1_output_patch": self.keep_attended, "attn2_patch": self.exchange_queries}
        last = {
            "attn1_patch": self.keep_self_attention,
            "middle_patch": self.prepare_queries,
            "attn2_output_patch": self.place,
        }
        return with_patches(options, first, last)

    def keep_self_attention(self, n, context, value, step):
        step[_SELF] = n, context, value
        return n, context, value

    def keep_attended(self, n, step):
        step[_ATTENDED] = n
        return n

    def prepare_queries(self, x, step):
        grid = grid_of(step, x.shape[1])
        # A block whose tokens were merged has no grid to lay a mask on: it stays as it is.
        if grid is None:
            return x
        layout = self.plan.layout(grid, x.device, x.dtype)
        block = block_of(step)
        options = {**step, EXTRA_CALL: True}

        def self_attention(queries, keys, values):
            return block.attn1(queries, context=keys, value=values, transformer_options=options)

        queries = {}
        n, context, value = step[_SELF]
        # Merged or tiled for self-attention only (ToMe, HyperTile), tokens cannot be picked: their queries stay plain.
        if n.shape == x.shape and min(context.shape[1], value.shape[1]) >= x.shape[1]:
            for number, part in enumerate(layout.parts):
                if part.alone:
                    alone = attend_alone(part, x, step[_ATTENDED], self_attention, n, context, value)
                    queries[number] = block.norm2(alone)
        step[_QUERIES] = layout, queries
        return x

    # Cross-attention acts per query: with the queries exchanged, the block's own attn2, and every other pack's patch
    # on it, computes CA(SA(f'), v).
    def exchange_queries(self, n, context, value, step):
        if _QUERIES not in step:
            return n, context, value
        layout, queries = step[_QUERIES]
        step[_CROSS] = n, context
        for number, part in enumerate(layout.parts):
            if part.shared and number in queries:
                n = n.index_put(part.index, queries[number])
        read = self.plan.first_texts(layout, context)
        return n, read, value if read is context else read

    def place(self, n, step):
        if _QUERIES not in step:
            return n
        layout, queries = step[_QUERIES]
        plain, context = step[_CROSS]
        block = block_of(step)

        def further(number: int, part: Part) -> Tensor:
            asked = queries[number] if number in queries else plain[part.index]
            text = self.plan.text_of(part, context)
            return block.attn2(asked, context=text, transformer_options={**step, EXTRA_CALL: True})

        return cross_attend(n, layout.parts, further)
