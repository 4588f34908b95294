"""Feature maps of pictures for style losses: the VAE's own encoder, VGG19, or any CLIP_VISION."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .clip_pairs import prepare_pictures
from .feature_nets import IMAGENET_MEAN, IMAGENET_STD, load_features
from .gradients import differentiable_layers, static_patcher
from .guidance_memory import vgg19_bytes, view_bytes

FEATURES = ("vae", "vgg", "clip_vision")
# relu1_1, relu2_1, relu3_1, relu4_1, relu5_1 in torchvision's `features`.
_VGG19_STAGES = (1, 6, 11, 20, 29)
# Blocks of a vision transformer, as shares of its depth: texture and colour are in the first two thirds.
_DEPTHS = (0, 1 / 6, 1 / 3, 1 / 2, 2 / 3)
# VGG19 halves four times before its last layer.
_LEAST_SIDE = 32
# Kept for backward against what the host reserves to encode: counted 1.75 for SD's VAE; the rest is for the way back.
_VAE_FACTOR = 2


class Extractor:
    """Called with pictures (B, 3, H, W), about [0, 1], gives maps (B, C_l, h_l, w_l). Differentiable.

    patcher: what the host has to load before a call; its `.model` is what gradient_phase has to normalise.
    balanced: whether the layers have no common scale. picture_bytes: about what a picture of (H, W) keeps for its
    gradient.
    """

    def __init__(
        self,
        patcher: ModelPatcher,
        balanced: bool,
        read: Callable[[Tensor], list[Tensor]],
        picture_bytes: Callable[[Sequence[int]], float],
    ) -> None:
        self.patcher = patcher
        self.balanced = balanced
        self.picture_bytes = picture_bytes
        self._read = read

    def __call__(self, pictures: Tensor) -> list[Tensor]:
        return self._read(pictures)


def vae_extractor(vae: comfy.sd.VAE, patcher: ModelPatcher, size: int) -> Extractor:
    """Every level of the VAE's encoder before it is halved, and the last block. patcher: of this VAE, to be shared.

    size: of the longer side that the encoder sees, pixels, 0 for the picture's own. Raises ValueError for a VAE whose
    encoder has no levels.
    """
    levels = getattr(getattr(patcher.model, "encoder", None), "down", None)
    if not isinstance(levels, nn.ModuleList):
        raise ValueError(
            f"The encoder of this VAE ({type(patcher.model).__name__}) has no levels to read the style from. "
            "Set features to vgg or clip_vision, or connect a full VAE."
        )

    def read(pictures: Tensor) -> list[Tensor]:
        encoder = patcher.model.encoder
        ends = [(level.attn or level.block)[-1] for level in encoder.down]
        shown = fit_size(pictures, size) * 2 - 1
        with _outputs([*ends, encoder.mid.block_2]) as maps:
            encoder(shown.to(vae.device, vae.vae_dtype))
        return maps

    def picture_bytes(sides: Sequence[int]) -> float:
        return _VAE_FACTOR * vae.memory_used_encode((1, 3, *_fitted(sides, size)), vae.vae_dtype)

    return Extractor(patcher, True, read, picture_bytes)


def vgg_extractor(size: int) -> Extractor:
    """relu1_1 to relu5_1 of VGG19 with the user's weights from models/vgg, fp32. size: as for vae_extractor.

    Raises ValueError with the sentence that says which file is missing, of another network, or how to convert it.
    """
    return extractor_of_vgg(load_features("vgg19"), size)


def extractor_of_vgg(features: nn.Sequential, size: int) -> Extractor:
    """features: torchvision's frozen `features` of VGG19, fp32."""
    net = features[: _VGG19_STAGES[-1] + 1]
    device = comfy.model_management.get_torch_device()
    patcher = ModelPatcher(net, device, comfy.model_management.unet_offload_device())

    def read(pictures: Tensor) -> list[Tensor]:
        shown = fit_size(pictures, size).to(device, torch.float32)
        mean, deviation = (shown.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        with _outputs(net[index] for index in _VGG19_STAGES) as maps:
            net((shown - mean) / deviation)
        return maps

    def picture_bytes(sides: Sequence[int]) -> float:
        return vgg19_bytes(math.prod(_fitted(sides, size)))

    return Extractor(patcher, False, read, picture_bytes)


def clip_vision_extractor(vision: comfy.clip_vision.ClipVisionModel | None) -> Extractor:
    """What the attention of five of the blocks reads of the picture's patches, at the model's own size.

    After the norm, which tames the few huge channels of such models. Raises ValueError where there is no model.
    """
    if vision is None:
        raise ValueError("There is no CLIP_VISION. Connect one at extractor, or set features to vae or vgg.")
    patcher = static_patcher(vision.patcher)

    def read(pictures: Tensor) -> list[Tensor]:
        blocks = max((part for part in patcher.model.modules() if isinstance(part, nn.ModuleList)), key=len)
        chosen = dict.fromkeys(int(len(blocks) * depth) for depth in _DEPTHS)
        norms = [getattr(blocks[index], "layer_norm1", None) or blocks[index].norm1 for index in chosen]
        shown = prepare_pictures(vision, pictures.to(patcher.load_device), stretch=True)
        with differentiable_layers(patcher.model), _outputs(norms) as tokens:
            patcher.model(pixel_values=shown, intermediate_output=-2)
        return [_patches(each) for each in tokens]

    return Extractor(patcher, True, read, lambda sides: view_bytes(vision))


def fit_size(pictures: Tensor, size: int) -> Tensor:
    """Pictures with the longer side at most that long (0: as it is) and the shorter one at least 32. Differentiable."""
    target = _fitted(pictures.shape[-2:], size)
    if target == list(pictures.shape[-2:]):
        return pictures
    return interpolate(pictures, target, mode="bilinear", antialias=True)


def _fitted(sides: Sequence[int], size: int) -> list[int]:
    """Of (H, W), what fit_size makes of them."""
    scale = max(min(1.0, size / max(sides)) if size else 1.0, _LEAST_SIDE / min(sides))
    return [round(side * scale) for side in sides]


def _patches(tokens: Tensor) -> Tensor:
    """The square grid of patches, (B, C, g, g), without the class and register tokens before it."""
    side = math.isqrt(tokens.shape[1])
    return tokens[:, -side * side :].mT.unflatten(2, (side, side))


@contextmanager
def _outputs(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that fills with what these modules give, in the order in which they run."""
    found: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda _, __, output: found.append(output)) for module in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
