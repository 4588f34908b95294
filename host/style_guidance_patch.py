"""Style guidance for any sampler (Spin, eq. 5-6): the decoded estimate's Gram matrices drawn to a picture's."""

from collections.abc import Sequence
from dataclasses import dataclass

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..guidance.batches import as_one_batch
from ..guidance.masks import fit_mask, require_region
from ..guidance.normalised import noise_move
from ..guidance.style_loss import GramLoss, StyleLoss
from .clip_guidance_patch import Place
from .decoders import Decoder, approximate_decoder, full_decoder
from .gradient_guidance import Guidance, RawMove, guide
from .gradients import gradient_phase
from .guidance_memory import tell
from .style_extractors import Extractor, clip_vision_extractor, vae_extractor, vgg_extractor

REGIONS = ("whole", "masked", "inside")
# Without the UNet's derivative, dx0/dz_t is 1 / a_t, which reaches 14.6 and more where there is almost only noise.
_LARGEST_FACTOR = 8.0


@dataclass(frozen=True)
class StyleOptions:
    """The widgets. strength_unit: `normalised` is a share of the noise, `raw` the factor s of eq. 6.

    features: vae, vgg or clip_vision. feature_size: of the longer side they see, 0 for the picture's own. region:
    `whole` compares picture and style picture, `masked` the mask's inside with the style picture outside it, `inside`
    the mask's inside with the whole style picture. gradient_steps: moves a step of the sampler.
    """

    strength: float = 0.1
    strength_unit: str = "normalised"
    mode: str = "fast"
    features: str = "vae"
    region: str = "whole"
    feature_size: int = 160
    gradient_steps: int = 1
    start_percent: float = 0.0
    end_percent: float = 1.0


def guide_by_style(
    model: ModelPatcher,
    vae: comfy.sd.VAE,
    style: Tensor,
    mask: Tensor | None,
    vision: comfy.clip_vision.ClipVisionModel | None,
    options: StyleOptions,
) -> ModelPatcher:
    """A clone of the model whose pictures take on the style of the style pictures, (S, H, W, 3) in [0, 1].

    mask: (M, H, W), needed for the regions masked and inside. Raises ValueError for a missing style picture or mask,
    an empty mask, and features that the user has no network for.
    """
    if style is None or len(style) == 0:
        raise ValueError("There is no style picture. Connect one at style_image.")
    if options.region == "whole":
        mask = None
    elif mask is None:
        raise ValueError(f"Region {options.region} needs a mask. Connect one, or set region to whole.")
    else:
        require_region(mask.reshape(-1, *mask.shape[-2:]))
    latent_format = model.model.latent_format
    full = full_decoder(vae, latent_format)
    decoder = full if options.mode == "exact" else approximate_decoder(latent_format) or full
    extractor = _extractor(vae, full.patcher, vision, options)
    place = None if mask is None else Place(vae, mask, None)
    return guide_through(
        model, decoder, extractor, style_target(extractor, style, mask, options.region), place, options
    )


def guide_through(
    model: ModelPatcher,
    decoder: Decoder,
    extractor: Extractor,
    loss: StyleLoss,
    place: Place | None,
    options: StyleOptions,
) -> ModelPatcher:
    """guide_by_style with its parts given. loss: reads its features by the extractor."""
    guidance = Guidance(
        name="Guide by style",
        loss=DecodedStyle(decoder, loss, place),
        strength=options.strength,
        raw_move=_raw_move(options.mode) if options.strength_unit == "raw" else None,
        mode=options.mode,
        start_percent=options.start_percent,
        end_percent=options.end_percent,
        patchers=list(dict.fromkeys((decoder.patcher, extractor.patcher))),
        gradient_steps=options.gradient_steps,
    )
    guided = guide(model, guidance)

    def row_bytes(shape: Sequence[int]) -> float:
        seen = [side * decoder.multiple for side in shape[-2:]]
        return decoder.row_bytes(shape) + extractor.picture_bytes(seen)

    if options.strength != 0:
        tell(guided, row_bytes, through_unet=options.mode == "exact")
    return guided


def style_target(extractor: Extractor, style: Tensor, mask: Tensor | None, region: str) -> GramLoss:
    """The loss whose lowest value is the style of the pictures (S, H, W, 3), for `masked` of what is outside the mask.

    Raises ValueError where nothing is outside the mask, and for pictures with values that are not numbers.
    """
    comfy.model_management.load_models_gpu([extractor.patcher])
    # Computed under the executor's inference mode, used in gradients.
    with gradient_phase(extractor.patcher.model), torch.no_grad():
        pictures = style[..., :3].movedim(-1, 1).float().clone()
        weight = None
        if region == "masked":
            weight = 1 - fit_mask(mask, *pictures.shape[-2:]).to(pictures.device)
            if not weight.flatten(1).any(1).all():
                raise ValueError(
                    "The mask covers the whole style picture and leaves no background to take the style from. "
                    "Give a smaller mask, or set region to inside."
                )
            pictures, weight = as_one_batch(pictures, weight)
        return GramLoss(extractor, pictures, weight, extractor.balanced)


def style_distances(
    model: ModelPatcher,
    vae: comfy.sd.VAE,
    vision: comfy.clip_vision.ClipVisionModel | None,
    pictures: Tensor,
    style: Tensor,
    mask: Tensor | None,
    options: StyleOptions,
) -> Tensor:
    """The loss that guide_by_style follows, of pictures (B, H, W, 3) in [0, 1]: (B,). mask: unused for `whole`."""
    mask = None if options.region == "whole" else mask
    extractor = _extractor(vae, full_decoder(vae, model.model.latent_format).patcher, vision, options)
    loss = style_target(extractor, style, mask, options.region)
    with gradient_phase(extractor.patcher.model), torch.no_grad():
        return loss(pictures[..., :3].movedim(-1, 1).float().clone(), mask)


@dataclass(frozen=True)
class DecodedStyle:
    """The loss of gradient_guidance: any StyleLoss of the decoded estimate, over the mask where there is one."""

    decoder: Decoder
    loss: StyleLoss
    place: Place | None

    def __call__(self, denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        pictures = self.decoder(denoised)
        weight = None if self.place is None else self.place.mask(pictures)
        return self.loss((pictures + 1) / 2, weight)


def _extractor(
    vae: comfy.sd.VAE, patcher: ModelPatcher, vision: comfy.clip_vision.ClipVisionModel | None, options: StyleOptions
) -> Extractor:
    if options.features == "vae":
        return vae_extractor(vae, patcher, options.feature_size)
    return vgg_extractor(options.feature_size) if options.features == "vgg" else clip_vision_extractor(vision)


def _raw_move(mode: str) -> RawMove:
    return noise_move if mode == "exact" else _detached_move


def _detached_move(gradient: Tensor, sigma: Tensor, strength: float) -> Tensor:
    """noise_move, and none at all where 1 / a_t is above _LARGEST_FACTOR."""
    low = (1 + sigma**2).sqrt() <= _LARGEST_FACTOR
    return noise_move(gradient, sigma, strength) * low.reshape(-1, *[1] * (gradient.ndim - 1))
