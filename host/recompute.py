"""Gradient checkpointing of a UNet's blocks: their activations are computed again in backward instead of kept.

And how much is kept.
"""

from collections.abc import Callable

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint


def recompute_blocks(model: ModelPatcher) -> None:
    """Puts the blocks of this clone's UNet under checkpointing, as object patches, around what is patched there."""
    unet = model.get_model_object("diffusion_model")
    for name, module in unet.named_modules():
        if isinstance(module, (ResBlock, SpatialTransformer)):
            key = f"diffusion_model.{name}.forward"
            wrap = _residual if isinstance(module, ResBlock) else _transformer
            model.add_object_patch(key, wrap(model.get_model_object(key)))


def bytes_kept(forward: Callable[[], Tensor], network: nn.Module) -> int:
    """Of what one forward keeps for backward, the network's own weights aside."""
    own = {weight.untyped_storage().data_ptr() for weight in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}

    def see(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    # The result holds all of it, so that no two share a place.
    with saved_tensors_hooks(see, lambda tensor: tensor):
        result = forward()
    total = sum(size for place, size in kept.items() if place not in own)
    del result
    return total


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
