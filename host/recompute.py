"""Gradient checkpointing of a UNet's blocks: their activations are computed again in backward instead of kept."""

from collections.abc import Callable

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recompute_blocks(model: ModelPatcher) -> None:
    """Puts the blocks of this clone's UNet under checkpointing, as object patches, around what is patched there."""
    unet = model.get_model_object("diffusion_model")
    for name, module in unet.named_modules():
        if isinstance(module, (ResBlock, SpatialTransformer)):
            key = f"diffusion_model.{name}.forward"
            wrap = _residual if isinstance(module, ResBlock) else _transformer
            model.add_object_patch(key, wrap(model.get_model_object(key)))


def _residual(forward: Callable) -> Callable:
    def run(x: Tensor, emb: Tensor) -> Tensor:
        return checkpoint(forward, x, emb, use_reentrant=False)

    return run


def _transformer(forward: Callable) -> Callable:
    def run(x: Tensor, context: Tensor | None = None, transformer_options: dict | None = None) -> Tensor:
        # The UNet goes on writing its place into these options; the second run needs this block's.
        step = dict(transformer_options or {})
        return checkpoint(lambda x, context: forward(x, context, dict(step)), x, context, use_reentrant=False)

    return run
