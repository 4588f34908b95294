"""The transformer blocks of a ComfyUI UNet (SD1.x, SD2.x, SDXL), for patches: the host hands them no module."""

from collections.abc import Callable, Iterator, Mapping

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.pixart.pixartms import PixArtMS
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST
from comfy.patcher_extension import WrappersMP
from torch import nn

BlockKey = tuple[str, int, int]

BLOCKS = "inlay_blocks"
# Set in the options of attention calls that Inlay adds to the UNet's own: whoever reads attention maps skips them.
EXTRA_CALL = "inlay_extra_call"


def transformer_blocks(unet: nn.Module) -> dict[BlockKey, nn.Module]:
    """Every BasicTransformerBlock under the key by which patches are called: (part, layer, depth)."""
    parts = {"input": unet.input_blocks, "middle": [unet.middle_block], "output": unet.output_blocks}
    return {
        (part, index, depth): block
        for part, layers in parts.items()
        for index, layer in enumerate(layers)
        if layer is not None
        for module in layer
        for depth, block in enumerate(getattr(module, "transformer_blocks", ()))
    }


def require_unet(model: ModelPatcher, job: str, usable: str = "an SD1.x, SD2.x or SDXL") -> None:
    """Raises ValueError unless the model is a UNet with self- and cross-attention.

    job: what it is wanted for. usable: the models that the job takes, with their article.
    """
    unet = model.get_model_object("diffusion_model")
    if isinstance(unet, PixArtMS):
        raise ValueError(f"PixArt's blocks take no patches of the host's for {job}. Use {usable} model.")
    flow = isinstance(model.get_model_object("model_sampling"), CONST)
    if flow or not isinstance(unet, UNetModel) or not transformer_blocks(unet):
        raise ValueError(
            f"{type(model.model).__name__} has no separate cross-attention for {job} (flow-matching and "
            f"joint-attention models do not). Use {usable} model."
        )


def add_block_handover(model: ModelPatcher) -> None:
    """Gives every patch of this model the blocks of the UNet that calls it, for `block_of`. Once is enough.

    It is not the closure's model that runs: the host may sample on another clone, on another device.
    """
    if not model.get_wrappers(WrappersMP.DIFFUSION_MODEL, BLOCKS):
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, BLOCKS, _hand_over)


def _hand_over(executor, x, timesteps=None, context=None, y=None, control=None, transformer_options=None, **rest):
    options = {**(transformer_options or {}), BLOCKS: transformer_blocks(executor.class_obj)}
    return executor(x, timesteps, context, y, control, options, **rest)


def block_of(step: Mapping) -> nn.Module:
    """The block that is running. step: the options (`extra_options`) that the host gives to a patch."""
    return step[BLOCKS][(*step["block"], step["block_index"])]


def grid_of(step: Mapping, tokens: int) -> tuple[int, int] | None:
    """(height, width) of the block's features, or None where they are not this many tokens (merged or tiled)."""
    height, width = step["activations_shape"][2:]
    return (height, width) if height * width == tokens else None


def entries(options: Mapping, batch: int) -> Iterator[tuple[int, range]]:
    """Each condition in a batch of rows: (its index in the guider's list, its rows), negative first as a rule."""
    indices = options.get("cond_or_uncond", [0])
    size = batch // len(indices)
    for number, index in enumerate(indices):
        yield index, range(number * size, (number + 1) * size)


def with_patches(
    options: Mapping, first: Mapping[str, Callable] | None = None, last: Mapping[str, Callable] | None = None
) -> dict:
    """The options of one UNet call with a patch of each name put before, or after, those of all other packs."""
    patches = dict(options.get("patches", {}))
    for name, patch in (first or {}).items():
        patches[name] = [patch, *patches.get(name, [])]
    for name, patch in (last or {}).items():
        patches[name] = [*patches.get(name, []), patch]
    return {**options, "patches": patches}
