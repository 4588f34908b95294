"""CLIP guidance for any sampler (Blended Diffusion): the score of the masked, decoded estimate."""

from collections.abc import Callable
from dataclasses import dataclass

import comfy.clip_vision
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..guidance.augment import random_warps, warp_copies
from ..guidance.clip_losses import background_loss, clip_distance, mixed_estimate, range_loss
from ..guidance.masks import fit_mask, require_region
from ..guidance.metrics import lpips
from ..guidance.normalised import score_move
from ..guidance.region_view import grey_outside, masked_view
from ..guidance.windows import decode_windows
from .clip_pairs import embed_pictures, embed_prepared, embed_text, prepare_pictures
from .decoders import Decoder, approximate_decoder, full_decoder
from .feature_nets import LPIPSNet, load_lpips
from .gradient_guidance import Guidance, guide
from .gradients import differentiable_layers, static_patcher
from .pictures import pad_mask


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
) -> ModelPatcher:
    """The same towards unit embeddings: (K, D), which every sample follows, or (B, K, D), each sample its own."""
    loss = clip_loss(model, vae, vision, targets, mask, image, options)
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
    return guide(model, guidance)


def clip_loss(
    model: ModelPatcher,
    vae: comfy.sd.VAE,
    vision: comfy.clip_vision.ClipVisionModel,
    targets: Tensor,
    mask: Tensor,
    image: Tensor | None,
    options: ClipOptions,
) -> "ClipLoss":
    """The loss that guide_to_targets follows. Raises ValueError for a background weight without the picture."""
    if options.background_weight > 0 and image is None:
        raise ValueError("The background loss needs the picture. Connect it at image, or set background_weight to 0.")
    latent_format = model.model.latent_format
    decoder = full_decoder(vae, latent_format)
    if options.mode != "exact":
        decoder = approximate_decoder(latent_format) or decoder
    eye = static_patcher(vision.patcher)
    return ClipLoss(vision, eye, decoder, targets, Place(vae, mask, image), _perceptual(options), options)


def clip_targets(
    clip: comfy.sd.CLIP | None, vision: comfy.clip_vision.ClipVisionModel, text: str, reference: Tensor | None
) -> Tensor | None:
    """Unit embeddings (K, D) of the words and of each reference picture, None for neither."""
    found = []
    if text.strip():
        found.append(embed_text(clip, vision, text)[None])
    if reference is not None:
        found.append(embed_pictures(vision, reference))
    # Embedded under the executor's inference mode, used in gradients.
    with torch.inference_mode(False):
        return torch.cat(found).clone() if found else None


class Place:
    """The mask and the picture at the decoded size, whichever size of the same aspect they came in."""

    def __init__(self, vae: comfy.sd.VAE, mask: Tensor, image: Tensor | None) -> None:
        with torch.inference_mode(False):
            self._mask = mask.reshape(-1, *mask.shape[-2:]).float().clone()
            if image is not None:
                self._mask = fit_mask(self._mask, *image.shape[1:3])
                planes = pad_mask(image[..., :3].movedim(-1, 1).flatten(0, 1).float().clone(), vae)
                image = planes.unflatten(0, (-1, 3)) * 2 - 1
        self._padded = pad_mask(self._mask, vae)
        self._picture = image

    def decode(self, decoder: Decoder, latent: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) of latents, decoded around the mask and mid-grey elsewhere."""
        _require_turns(latent, self._padded, "masks")
        return decode_windows(decoder, latent, self._padded)

    def mask(self, pictures: Tensor) -> Tensor:
        """(B, H, W) for decoded pictures (B, 3, H, W)."""
        size = pictures.shape[-2:]
        mask = self._padded if self._padded.shape[-2:] == size else fit_mask(self._mask, *size)
        return _for_each(pictures, mask, "masks")

    def picture(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1]."""
        if self._picture.shape[-2:] != pictures.shape[-2:]:
            height, width = pictures.shape[-2:]
            raise ValueError(
                f"The background's picture does not fit the latent, which decodes to {width} x {height}. "
                "Connect the picture that the latent was encoded from."
            )
        return _for_each(pictures, self._picture, "background pictures")


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
        # The background's loss looks at everything.
        whole = self.options.mode != "place" or self.options.background_weight > 0
        pictures = self.decoder(latent) if whole else self.place.decode(self.decoder, latent)
        mask = self.place.mask(pictures)
        loss = self._distance(pictures, mask, _generator(sigma))
        # The decoded picture is looked at once: a second decoding for x0 alone would double the cost of a step.
        if self.options.range_weight > 0:
            loss = loss + self.options.range_weight * range_loss(pictures)
        if self.options.background_weight > 0:
            background = background_loss(pictures, self.place.picture(pictures), mask, self.perceptual)
            loss = loss + self.options.background_weight * background
        return loss

    def _distance(self, pictures: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        seen = masked_view((pictures + 1) / 2, mask, self.vision.image_size, self.options.view)
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


def _require_turns(rows: Tensor, given: Tensor, what: str) -> None:
    if len(rows) % len(given):
        raise ValueError(f"There are {len(given)} {what} and {len(rows)} latents. Give one, or one for each latent.")


def _for_each(pictures: Tensor, given: Tensor, what: str) -> Tensor:
    _require_turns(pictures, given, what)
    return given.to(pictures).repeat(len(pictures) // len(given), *[1] * (given.ndim - 1))


def _perceptual(options: ClipOptions) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """LPIPS of the background where the user has VGG's; the squared error alone otherwise."""
    if options.background_weight == 0:
        return None
    try:
        net: LPIPSNet = load_lpips("vgg")
    except ValueError:
        return None

    def distance(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        net.to(a.device)
        return lpips(net.stages, list(net.linear), a, b, weight)

    return distance


def _generator(sigma: Tensor) -> torch.Generator:
    """Other views in each step, the same for every candidate however they are chunked: the sampler's seed is not."""
    return torch.Generator().manual_seed(round(float(sigma.flatten()[0]) * 2**16))
