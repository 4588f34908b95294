"""Every metric that the given pictures and nets allow, and the reason for every other one."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import torch
from torch import Tensor

from ..guidance import metrics
from ..guidance.masks import fit_mask
from ..guidance.region_view import grey_outside
from .clip_pairs import embed_pictures, embed_text, is_clip, is_dino, picture_side
from .clip_probe import tell_if_apart
from .feature_nets import load_lpips
from .ranking import look_inside

# The least side that the net's poolings leave something of.
_LPIPS_LEAST = {"vgg": 16, "alex": 31}
NAMES = ("psnr", "ssim", "mse", "lpips", "clip_i", "clip_t", "dino", "fid")


@dataclass(frozen=True)
class Measurement:
    """One metric's mean over the pictures; NaN with a reason where it could not be computed."""

    name: str
    value: float
    note: str = ""

    def line(self) -> str:
        if math.isnan(self.value):
            return f"{self.name}: not computed. {self.note}"
        return f"{self.name}: {self.value:.5g}{self.note}"


@dataclass(frozen=True)
class Subject:
    """What is measured and with what. Pictures are IMAGE, masks (B, H, W); each may be None but the images."""

    images: Tensor
    original: Tensor | None
    mask: Tensor | None
    reference: Tensor | None
    clip: comfy.sd.CLIP | None
    text: str
    vision: comfy.clip_vision.ClipVisionModel | None
    region: str
    lpips_net: str


def measure(subject: Subject) -> dict[str, Measurement]:
    """All of NAMES. Raises ValueError for pictures and masks that do not fit each other."""
    subject = _fitted(subject)
    weight = metrics.region_weight(subject.mask, subject.region)
    seen = _Seen(subject, weight)
    done: dict[str, Callable[[], tuple[Tensor | float, str]]] = {
        "psnr": lambda: (seen.against_original(metrics.psnr), " dB"),
        "ssim": lambda: (seen.against_original(metrics.ssim), ""),
        "mse": lambda: (seen.against_original(metrics.mse), ""),
        "lpips": seen.lpips,
        "clip_i": seen.clip_i,
        "clip_t": seen.clip_t,
        "dino": seen.dino,
        "fid": seen.fid,
    }
    return {name: _measured(name, compute) for name, compute in done.items()}


def report(results: dict[str, Measurement], subject: Subject) -> str:
    """One line per metric under a line that says what was measured."""
    pictures = "1 picture" if len(subject.images) == 1 else f"the mean of {len(subject.images)} pictures"
    where = "the whole picture" if subject.region == "whole" else f"{subject.region} the mask"
    return "\n".join([f"{where}, {pictures}", *(result.line() for result in results.values())])


def _measured(name: str, compute: Callable[[], tuple[Tensor | float, str]]) -> Measurement:
    try:
        value, note = compute()
    except ValueError as error:
        return Measurement(name, math.nan, str(error))
    mean = float(torch.as_tensor(value, dtype=torch.float64).mean())
    return Measurement(name, mean, "The region is too small for it." if math.isnan(mean) else note)


def _fitted(subject: Subject) -> Subject:
    images, original, mask = subject.images[..., :3].float(), subject.original, subject.mask
    if not torch.isfinite(images).all():
        raise ValueError("The pictures hold values that are not numbers. Check the node that made them.")
    if original is not None:
        original = original[..., :3].float().to(images.device)
        if original.shape[1:3] != images.shape[1:3] or len(original) not in (1, len(images)):
            sizes = [f"{len(it)} of {it.shape[2]} x {it.shape[1]}" for it in (images, original)]
            raise ValueError(f"The pictures ({sizes[0]}) and the originals ({sizes[1]}) do not fit each other.")
        original = original.expand_as(images)
    if mask is not None:
        mask = fit_mask(mask, *images.shape[1:3]).to(images.device)
        if len(mask) not in (1, len(images)):
            raise ValueError(
                f"There are {len(mask)} masks and {len(images)} pictures. Give one mask, or one per picture."
            )
        mask = mask.expand(len(images), -1, -1)
    return Subject(**{**vars(subject), "images": images, "original": original, "mask": mask})


class _Seen:
    """The pictures as each kind of metric looks at them. Each method raises ValueError with its reason."""

    def __init__(self, subject: Subject, weight: Tensor | None) -> None:
        self.subject = subject
        self.weight = weight

    def against_original(self, metric: Callable[..., Tensor]) -> Tensor:
        return metric(*self._pair(), self.weight)

    def lpips(self) -> tuple[Tensor, str]:
        pictures, originals = self._pair()
        name, device = self.subject.lpips_net, comfy.model_management.get_torch_device()
        least = _LPIPS_LEAST[name]
        if min(pictures.shape[-2:]) < least:
            raise ValueError(f"LPIPS with {name} needs pictures of at least {least} x {least} pixels.")
        net = load_lpips(name).to(device)
        weights = [None] * len(self.subject.images) if self.weight is None else self.weight[:, None].to(device)
        with torch.no_grad():
            values = [
                metrics.lpips(net.stages, list(net.linear), one[None].to(device), its[None].to(device), weight).cpu()
                for one, its, weight in zip(pictures, originals, weights, strict=True)
            ]
        return torch.cat(values), f" ({name})"

    def _pair(self) -> tuple[Tensor, Tensor]:
        """The pictures and their originals, (B, 3, H, W)."""
        original = self.subject.original
        if original is None:
            raise ValueError("It needs the original picture.")
        if not torch.isfinite(original).all():
            raise ValueError("The original holds values that are not numbers. Check the node that made it.")
        return self.subject.images.movedim(-1, 1), original.movedim(-1, 1)

    def clip_i(self) -> tuple[Tensor, str]:
        self._require(is_clip, "It needs CLIP's vision model at clip_vision")
        return self._likeness(), ""

    def dino(self) -> tuple[Tensor, str]:
        self._require(is_dino, "It needs DINOv2 at clip_vision")
        return self._likeness(), f" ({self.subject.vision.model_type})"

    def clip_t(self) -> tuple[Tensor, str]:
        self._require(is_clip, "It needs CLIP's vision model at clip_vision")
        if not self.subject.text.strip() or self.subject.clip is None:
            raise ValueError("It needs a text and its CLIP.")
        words = embed_text(self.subject.clip, self.subject.vision, self.subject.text)
        tell_if_apart(self.subject.clip, self.subject.vision)
        return self._embeddings() @ words, ""

    def fid(self) -> tuple[float, str]:
        self._require(lambda _: True, "It needs features: connect clip_vision")
        # A cut square would compare places with whole pictures.
        both = (embed_pictures(self.subject.vision, it, unit=False) for it in (self.subject.images, self._others()))
        value = metrics.frechet(*both)
        return value, (
            f" (whole pictures, {self.subject.vision.model_type} features: not comparable with Inception's FID)"
        )

    def _require(self, fits: Callable[[comfy.clip_vision.ClipVisionModel], bool], reason: str) -> None:
        vision = self.subject.vision
        if vision is None or not fits(vision):
            given = "nothing is there" if vision is None else f"{vision.model_type} is there"
            raise ValueError(f"{reason}; {given}.")

    def _others(self) -> Tensor:
        if self.subject.reference is None:
            raise ValueError("It needs the reference pictures.")
        return self.subject.reference

    def _likeness(self) -> Tensor:
        return (self._embeddings() @ embed_pictures(self.subject.vision, self._others()).T).mean(1)

    def _embeddings(self) -> Tensor:
        images = self.subject.images
        if self.subject.region == "inside":
            images = look_inside(images, self.weight, picture_side(self.subject.vision))
        elif self.subject.region == "outside":
            images = grey_outside(images.movedim(-1, 1), self.weight).movedim(1, -1)
        return embed_pictures(self.subject.vision, images)
