"""Back into the original's pixels: exact outside the mask, a feather inside it, the seam's colour matched and shown."""

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from .batches import as_one_batch
from .masks import dilate, erode, fit_mask, same_aspect

BAND = 8
COLOUR_MATCHES = ("none", "smooth", "mean_std")


def distance_inside(mask: Tensor, limit: int) -> Tensor:
    """Euclidean distance in pixels from each pixel to the nearest one outside, at most limit. Exact.

    mask: (B, H, W), inside where > 0. Beyond the picture's edge nothing counts as outside. Returns (B, H, W) fp32.
    """
    squared = torch.where(mask > 0, math.inf, 0.0)
    # The lower envelope of parabolas is separable: columns first, then rows.
    for dim in (1, 2):
        size = mask.shape[dim]
        best = squared.clone()
        for shift in range(1, min(limit, size)):
            step = squared + shift * shift
            near, far = slice(0, size - shift), slice(shift, size)
            for into, out_of in ((near, far), (far, near)):
                view = best.movedim(dim, 0)[into]
                torch.minimum(view, step.movedim(dim, 0)[out_of], out=view)
        squared = best
    return squared.sqrt().clamp(max=limit)


def feather_mask(mask: Tensor, feather: int) -> Tensor:
    """The weight of the edited picture: 0 wherever the mask is, rising over `feather` pixels inside it.

    mask: (B, H, W) in [0, 1]. A mask too small for it gets half of its own inner radius instead. Returns (B, H, W).
    """
    if feather == 0:
        return mask
    distance = distance_inside(mask, 2 * feather + 2)
    width = (distance.amax((1, 2), keepdim=True) / 2).clamp(max=feather)
    ramp = (distance / (width + 1)).clamp(0, 1)
    return mask * ramp * ramp * (3 - 2 * ramp)


def fill_smoothly(values: Tensor, known: Tensor) -> Tensor:
    """Values where known, elsewhere a smooth continuation of them (pull-push over a pyramid of averages).

    values: (B, H, W, C). known: (B, H, W), weights in [0, 1]. Returns (B, H, W, C); zeros if nothing is known.
    """
    weight = known[:, None].to(values.dtype)
    sums = values.movedim(-1, 1) * weight
    return _push(sums, weight).movedim(1, -1)


def _push(sums: Tensor, weight: Tensor) -> Tensor:
    height, width = sums.shape[-2:]
    if min(height, width) == 1:
        mean = sums.sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp(min=1e-6)
        return mean.expand_as(sums)
    odd = (0, width % 2, 0, height % 2)
    coarse = _push(avg_pool2d(pad(sums, odd), 2), avg_pool2d(pad(weight, odd), 2))
    coarse = interpolate(coarse, scale_factor=2, mode="bilinear")[..., :height, :width]
    return sums + (1 - weight) * coarse


def match_colour(original: Tensor, edited: Tensor, mask: Tensor, kind: str) -> Tensor:
    """The edited picture with its colours brought to the original's, as the band around the mask tells them.

    original, edited: (B, H, W, 3). mask: (B, H, W). The band is the BAND pixels just outside, where both pictures show
    the same thing. kind: `mean_std` matches each channel's mean and deviation there; `smooth` takes off the local
    difference, continued smoothly into the mask. Without a band (a full mask) the edited picture comes back as it is.
    """
    inside = (mask > 0).float()
    band = dilate(inside, BAND) - inside
    if not band.any():
        return edited
    if kind == "smooth":
        difference = fill_smoothly(original - edited, band)
        kernel = 2 * BAND + 1
        blurred = avg_pool2d(difference.movedim(-1, 1), kernel, 1, BAND, count_include_pad=False)
        return edited + blurred.movedim(1, -1)
    weight = band[..., None] / band.sum((1, 2))[:, None, None, None].clamp(min=1)
    (want, want_std), (have, have_std) = (_moments(picture, weight) for picture in (original, edited))
    # A band almost without texture says nothing about contrast.
    gain = torch.where(have_std > 0.02, want_std / have_std.clamp(min=0.02), 1.0).clamp(0.5, 2)
    return torch.where(band.any(2).any(1)[:, None, None, None], (edited - have) * gain + want, edited)


def _moments(picture: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    mean = (picture * weight).sum((1, 2), keepdim=True)
    return mean, ((picture - mean).square() * weight).sum((1, 2), keepdim=True).sqrt()


def paste_back(original: Tensor, edited: Tensor, mask: Tensor, feather: int = 0, colour_match: str = "none") -> Tensor:
    """The edited picture inside the mask, the original's very pixels outside it.

    original, edited: (B, H, W, 3) in [0, 1]. mask: (B, H, W) in [0, 1]; soft values mix. feather: pixels, inside the
    mask only. colour_match: none, mean_std, smooth (see match_colour). Where the mask is 0 the result equals the
    original bit for bit. Returns (B, H, W, 3) of the original's dtype.
    """
    if colour_match != "none":
        edited = match_colour(original.float(), edited.float(), mask, colour_match).clamp(0, 1)
    weight = feather_mask(mask, feather)[..., None]
    mixed = torch.lerp(original.float(), edited.float(), weight)
    return torch.where(weight > 0, mixed.to(original.dtype), original)


def paste_pictures(
    original: Tensor, edited: Tensor, mask: Tensor, feather: int, colour_match: str
) -> tuple[Tensor, Tensor]:
    """paste_back for batches that go together and sizes of the same aspect; the picture and its seam_picture.

    Raises ValueError where the edited picture or the mask has another aspect, or the batches do not go together.
    """
    original, edited = original[..., :3], edited[..., :3].to(original)
    height, width = original.shape[1:3]
    h, w = edited.shape[1:3]
    if not same_aspect(h, w, height, width):
        raise ValueError(
            f"The edited picture is {w} x {h} pixels and the original {width} x {height}. "
            "Give an edit of the original's size, or of the same aspect."
        )
    if (h, w) != (height, width):
        resized = interpolate(edited.movedim(-1, 1), (height, width), mode="bicubic", antialias=True)
        edited = resized.clamp(0, 1).movedim(1, -1)
    mask = fit_mask(mask, height, width).to(original.device)
    original, edited, mask = as_one_batch(original, edited, mask)
    pasted = paste_back(original, edited, mask, feather, colour_match)
    return pasted, seam_picture(pasted, mask)


def seam_steps(picture: Tensor, mask: Tensor) -> Tensor:
    """How much the picture jumps across the mask's border: the largest step, averaged over the channels, (B, H, W).

    picture: (B, H, W, 3). mask: (B, H, W), inside where > 0. Zero wherever a pixel has no neighbour across the border.
    """
    steps = torch.zeros_like(mask, dtype=torch.float32)
    inside = mask > 0
    for dim in (1, 2):
        size = mask.shape[dim] - 1
        before, after = picture.narrow(dim, 0, size).float(), picture.narrow(dim, 1, size).float()
        jump = (before - after).abs().mean(-1) * (inside.narrow(dim, 0, size) ^ inside.narrow(dim, 1, size))
        for start in (0, 1):
            side = steps.narrow(dim, start, size)
            side.copy_(torch.maximum(side, jump))
    return steps


def seam_picture(picture: Tensor, mask: Tensor) -> Tensor:
    """The picture in dim grey with its seam in red, brighter where it jumps more. Returns (B, H, W, 3) in [0, 1]."""
    steps = dilate(seam_steps(picture, mask), 1)
    border = dilate((mask > 0).float(), 1) - erode((mask > 0).float(), 1)
    grey = (picture.float().mean(-1) * 0.4) * (1 - border)
    red = (grey + border * (0.2 + 4 * steps)).clamp(0, 1)
    return torch.stack([red, grey, grey], -1)
