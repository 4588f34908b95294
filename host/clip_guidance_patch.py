"""CLIP guidance for any sampler (Blended Diffusion): the score of the masked, decoded estimate."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import comfy.clip_vision
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..guidance.augment import random_warps, warp_copies
from ..guidance.clip_losses import background_loss, clip_distance, mixed_estimate, range_loss
from ..guidance.masks import require_region
from ..guidance.metrics import lpips
from ..guidance.normalised import score_move
from ..guidance.region_view import grey_outside, masked_view
from .clip_pairs import embed_pictures, embed_prepared, embed_text, picture_side, prepare_pictures, require_vision
from .clip_place import Place
from .clip_probe import tell_if_apart
from .decoders import Decoder, approximate_decoder, full_decoder, require_fit
from .feature_nets import LPIPSNet, load_lpips
from .gradient_guidance import Guidance, guide
from .gradients import differentiable_layers, static_patcher
from .guidance_memory import cast_bytes, perceptual_bytes, tell, view_bytes

logger = logging.getLogger("inlay")


@dataclass(frozen=True)
class ClipOptions:
    """The widgets. strength_unit: `normalised` is a share of the noise, `raw` the weight of the loss itself (1000).

    mode: `exact` takes the gradient through the UNet, `fast` at the clean estimate, `place` too but decodes only what
    is around the mask. range_weight and background_weight count relative to CLIP's distance: 0.05, and for algorithm 1
    about 10.
    """

    strength: float = 0.1
    strength_unit: str = "normalised"
    mode: str = "fast"
    distance: str = "spherical"
    augmentations: int = 8
    view: str = "masked"
    range_weight: float = 0.05
    background_weight: float = 0.0
    mix: bool = True
    start_percent: float = 0.0
    end_percent: float = 1.0


def guide_by_clip(
    model: ModelPatcher,
    vae: comfy.sd.VAE,
    clip: comfy.sd.CLIP | None,
    vision: comfy.clip_vision.ClipVisionModel,
    text: str,
    reference: Tensor | None,
    mask: Tensor,
    image: Tensor | None,
    options: ClipOptions,
) -> ModelPatcher:
    """A clone of the model drawn towards the words, or the reference pictures, inside the mask.

    Without words and reference there is no guidance at all, which is how Blended Diffusion removes things. Raises
    ValueError for a text encoder that is no pair with the vision model, an empty mask, and a background weight without
    the picture.
    """
    require_region(mask.reshape(-1, *mask.shape[-2:]))
    targets = clip_targets(clip, vision, text, reference)
    if targets is None:
        return model.clone()
    return guide_to_targets(model, vae, vision, targets, mask, image, options)


def guide_to_targets(
    model: ModelPatcher,
    vae: comfy.sd.VAE,
    vision: comfy.clip_vision.ClipVisionModel,
    targets: Tensor,
    mask: Tensor,
    image: Tensor | None,
    options: ClipOptions,
    nets: "ClipNets | None" = None,
) -> ModelPatcher:
    """The same towards unit embeddings: (K, D), which every sample follows, or (B, K, D), each sample its own.

    nets: those of clip_nets, for callers that guide many times.
    """
    loss = clip_loss(model, vae, vision, targets, mask, image, options, nets)
    guidance = Guidance(
        name="Guide by CLIP",
        loss=loss,
        strength=options.strength,
        raw_move=score_move if options.strength_unit == "raw" else None,
        mode="exact" if options.mode == "exact" else "fast",
        start_percent=options.start_percent,
        end_percent=options.end_percent,
        patchers=(loss.decoder.patcher, loss.eye),
    )
    guided = guide(model, guidance)
    if options.strength != 0:
        tell(guided, loss.row_bytes, through_unet=options.mode == "exact", once=cast_bytes(loss.eye.model))
    return guided


def clip_loss(
    model: ModelPatcher,
    vae: comfy.sd.VAE,
    vision: comfy.clip_vision.ClipVisionModel,
    targets: Tensor,
    mask: Tensor,
    image: Tensor | None,
    options: ClipOptions,
    nets: "ClipNets | None" = None,
) -> "ClipLoss":
    """The loss that guide_to_targets follows. Raises ValueError for a background weight without the picture."""
    if options.background_weight > 0 and image is None:
        raise ValueError("The background loss needs the picture. Connect it at image, or set background_weight to 0.")
    if options.background_weight > 0 and (mask.reshape(-1, mask.shape[-2] * mask.shape[-1]).amin(1) > 0).any():
        raise ValueError(
            "The mask covers the whole picture, so there is no background to hold. Leave a part black, or set "
            "background_weight to 0."
        )
    nets = nets or clip_nets(model, vae, vision, options)
    return ClipLoss(*nets, targets, Place(vae, mask, image), _perceptual(options), options)


def clip_nets(
    model: ModelPatcher, vae: comfy.sd.VAE, vision: comfy.clip_vision.ClipVisionModel, options: ClipOptions
) -> "ClipNets":
    """Raises ValueError for a VAE that cannot decode the model's latents."""
    latent_format = model.model.latent_format
    require_fit(vae, latent_format)
    decoder = None if options.mode == "exact" else approximate_decoder(latent_format)
    return ClipNets(vision, static_patcher(vision.patcher), decoder or full_decoder(vae, latent_format))


def clip_targets(
    clip: comfy.sd.CLIP | None, vision: comfy.clip_vision.ClipVisionModel, text: str, reference: Tensor | None
) -> Tensor | None:
    """Unit embeddings (K, D) of the words and of each reference picture, None for neither."""
    found = []
    if text.strip() or reference is not None:
        require_vision(vision)
    if text.strip():
        found.append(embed_text(clip, vision, text)[None])
        tell_if_apart(clip, vision)
    if reference is not None:
        found.append(embed_pictures(vision, reference))
    # Embedded under the executor's inference mode, used in gradients.
    with torch.inference_mode(False):
        return torch.cat(found).clone() if found else None


class ClipNets(NamedTuple):
    """CLIP's vision model, its weights where they stay for a gradient, and the decoder."""

    vision: comfy.clip_vision.ClipVisionModel
    eye: ModelPatcher
    decoder: Decoder


@dataclass(frozen=True)
class ClipLoss:
    """The loss of gradient_guidance: one value a sample."""

    vision: comfy.clip_vision.ClipVisionModel
    eye: ModelPatcher
    decoder: Decoder
    targets: Tensor
    place: Place
    perceptual: Callable[[Tensor, Tensor, Tensor], Tensor] | None
    options: ClipOptions

    def __call__(self, denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        latent = mixed_estimate(denoised, x, sigma) if self.options.mix else denoised
        pictures = self.decoder(latent) if self._whole else self.place.decode(self.decoder, latent)
        mask = self.place.mask(pictures)
        loss = self._distance(pictures, mask, _generator(sigma))
        # The decoded picture is looked at once: a second decoding for x0 alone would double the cost of a step.
        if self.options.range_weight > 0:
            loss = loss + self.options.range_weight * range_loss(pictures)
        if self.options.background_weight > 0:
            background = background_loss(pictures, self.place.picture(pictures), mask, self.perceptual)
            loss = loss + self.options.background_weight * background
        return loss

    def row_bytes(self, shape: Sequence[int]) -> float:
        """About what a row of latent shape (C, h, w) keeps for the gradient."""
        share = 1.0 if self._whole else self.place.share(*shape[-2:])
        views = (self.options.augmentations + 1) * view_bytes(self.vision)
        perceptual = 0.0 if self.perceptual is None else perceptual_bytes(self.place.pixels(*shape[-2:]))
        return share * self.decoder.row_bytes(shape) + views + perceptual

    @property
    def _whole(self) -> bool:
        """Whether all of the latent is decoded: the background's loss looks at everything."""
        return self.options.mode != "place" or self.options.background_weight > 0

    def _distance(self, pictures: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        seen = masked_view((pictures + 1) / 2, mask, picture_side(self.vision), self.options.view)
        copies = warp_copies(seen, random_warps(self.options.augmentations, generator))
        count, batch = copies.shape[:2]
        copies = copies.flatten(0, 1).to(self.eye.load_device)
        shown = grey_outside(copies[:, :3], copies[:, 3])
        with differentiable_layers(self.eye.model):
            embeddings = embed_prepared(self.eye.model, prepare_pictures(self.vision, shown))
        values = clip_distance(
            embeddings.unflatten(0, (count, batch)), self.targets.to(embeddings), self.options.distance
        )
        return values.to(pictures.device)


def _perceptual(options: ClipOptions) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """LPIPS of the background where the user has VGG's; the squared error alone otherwise."""
    if options.background_weight == 0:
        return None
    try:
        net: LPIPSNet = load_lpips("vgg")
    except ValueError as error:
        logger.warning("Guide by CLIP: the background is held by the squared error alone, without LPIPS. %s", error)
        return None

    def distance(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        net.to(a.device)
        return lpips(net.stages, list(net.linear), a, b, weight)

    return distance


def _generator(sigma: Tensor) -> torch.Generator:
    """Other views in each step, the same for every candidate however they are chunked: the sampler's seed is not."""
    return torch.Generator().manual_seed(round(float(sigma.flatten()[0]) * 2**16))
