"""Region guidance on PixArt, whose blocks the host gives no patches: their forward is an object patch."""

from collections.abc import Sequence
from functools import partial

from comfy.ldm.pixart.blocks import t2i_modulate
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..attention.region_guidance import Part, attend_alone, cross_attend
from .regions import REGIONS, Plan


class _Call:
    """What the blocks of the running model have to know; empty between calls."""

    plan: Plan | None = None
    # Not those that were patched: a copy of the model carries the same patches.
    blocks: Sequence[nn.Module] = ()
    embedder: nn.Module

    def around(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **rest):
        self.plan = Plan.of(transformer_options, len(x), tuple(x.shape[-2:]))
        net = executor.class_obj.diffusion_model
        self.blocks, self.embedder = net.blocks, net.y_embedder
        try:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **rest)
        finally:
            self.plan, self.blocks = None, ()
            del self.embedder


def guide_pixart(model: ModelPatcher) -> None:
    """Makes the blocks of this model follow its regions. Once is enough.

    Raises ValueError where another pack has replaced the blocks.
    """
    if model.get_wrappers(WrappersMP.APPLY_MODEL, REGIONS):
        return
    call = _Call()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, REGIONS, call.around)
    for number in range(len(model.get_model_object("diffusion_model").blocks)):
        key = f"diffusion_model.blocks.{number}.forward"
        if key in model.object_patches:
            raise ValueError("Another node has replaced the blocks of this PixArt model. Use only one of the two.")
        model.add_object_patch(key, partial(_forward, number, call))


def _forward(number: int, call: _Call, x: Tensor, y: Tensor, t: Tensor, mask=None, HW=None, **rest) -> Tensor:
    """PixArt's block: x + SA, + CA, + MLP, each of the outer two scaled, shifted and gated by the noise level.

    x: (B, N, C). y: (1, B * L, C), the texts of all rows. t: (B, 6 C). HW: the latent's size, cells of two by two.
    """
    block = call.blocks[number]
    grid = HW[0] // 2, HW[1] // 2
    if call.plan is None or grid[0] * grid[1] != x.shape[1]:
        return type(block).forward(block, x, y, t, mask, HW, **rest)
    plan = call.plan
    plan.read(x, call.embedder.y_proj.fc1.in_features, lambda text: call.embedder(text, False))
    layout = plan.layout(grid, x.device, x.dtype)
    own = y.reshape(len(x), -1, y.shape[-1])

    table = block.scale_shift_table[None].to(x) + t.reshape(len(x), 6, -1)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = table.chunk(6, dim=1)
    n = t2i_modulate(block.norm1(x), shift, scale)
    attended = gate * block.attn(n, HW=HW)
    x = x + attended

    def alone(part: Part) -> Tensor:
        # Compressed keys and values are cells of the whole picture, of which a region cannot be picked.
        if not part.alone or block.attn.sr_ratio > 1:
            return x[part.index]
        return attend_alone(part, x, attended, lambda q, *_: gate[part.rows] * block.attn(q), n, n, n)

    queries = [alone(part) for part in layout.parts]
    exchanged = x
    for part, asked in zip(layout.parts, queries, strict=True):
        if part.shared:
            exchanged = exchanged.index_put(part.index, asked)
    crossed = block.cross_attn(exchanged, plan.first_texts(layout, own).reshape(1, -1, y.shape[-1]), mask)

    def further(which: int, part: Part) -> Tensor:
        return block.cross_attn(queries[which], plan.text_of(part, own).reshape(1, -1, y.shape[-1]))

    x = x + cross_attend(crossed, layout.parts, further)
    return x + gate_mlp * block.mlp(t2i_modulate(block.norm2(x), shift_mlp, scale_mlp))
