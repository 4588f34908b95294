"""Masks: 1 = generate, 0 = keep. From the picture's pixels to the latent's cells."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d, interpolate, max_pool2d

# Of a cell's strongest pixel, for its average.
MOSTLY = 0.75


def fit_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """The mask at the picture's size, (B, height, width) in [0, 1].

    mask: (H, W), (B, H, W) or (B, 1, H, W). The same aspect in another size is resized. Raises ValueError for another
    aspect and for values that are not numbers.
    """
    mask = mask.reshape(-1, *mask.shape[-2:]).float()
    if not torch.isfinite(mask).all():
        raise ValueError("The mask holds values that are not numbers. Check the node that made it.")
    h, w = mask.shape[-2:]
    if not same_aspect(h, w, height, width):
        raise ValueError(
            f"The mask is {w} x {h} pixels and the picture {width} x {height}. "
            "Give a mask of the picture's size, or of the same aspect."
        )
    if h >= height and w >= width:
        mask = adaptive_avg_pool2d(mask, (height, width))
    else:
        mask = interpolate(mask[:, None], (height, width), mode="bilinear")[:, 0]
    return mask.clamp(0, 1)


def same_aspect(h: int, w: int, height: int, width: int) -> bool:
    """Whether one size is the other one scaled, each side rounded by up to half a pixel."""
    return abs(h * width - w * height) <= max(height + width, h + w) / 2


def require_region(mask: Tensor) -> None:
    """Raises ValueError where a mask of the batch (B, H, W) has nothing to generate."""
    for number, one in enumerate(mask, 1):
        if not one.any():
            which = "The mask" if len(mask) == 1 else f"Mask {number} of {len(mask)}"
            raise ValueError(f"{which} is empty. Paint at least one pixel of the place to fill.")


def latent_mask(mask: Tensor, height: int, width: int, cover: str = "any") -> Tensor:
    """The mask on the latent's cells, (B, 1, height, width) in [0, 1].

    mask: (B, H, W) in [0, 1]. cover: `any` takes the strongest pixel of each cell, so that the generated cells contain
    the whole pixel mask and no rim of the old content is left inside it; `area` takes the cell's average; `share` is
    `area`, but `any` where no cell around is mostly mask, so that thin masks and small ones are not diluted.
    """
    strongest = adaptive_max_pool2d(mask[:, None], (height, width))
    if cover == "any":
        return strongest
    average = adaptive_avg_pool2d(mask[:, None], (height, width))
    # Not a rounding below what all of a cell holds.
    average = torch.where(average >= strongest * (1 - 1e-6), strongest, average)
    if cover == "area":
        return average
    mostly = (average >= MOSTLY * strongest) & (strongest > 0)
    return torch.where(dilate(mostly.float(), 1) > 0, average, strongest)


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Grown by a square of 2 * radius + 1 pixels. mask: (..., H, W); radius 0 returns it as it is."""
    if radius == 0:
        return mask
    flat = mask.reshape(-1, 1, *mask.shape[-2:])
    # Rows, then columns: a square is both, and a large one at once would look at each pixel's whole surroundings.
    rows = max_pool2d(flat, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    return max_pool2d(rows, (2 * radius + 1, 1), stride=1, padding=(radius, 0)).reshape(mask.shape)


def erode(mask: Tensor, radius: int) -> Tensor:
    """Shrunk by a square of 2 * radius + 1 pixels; the picture's edge does not shrink it."""
    return 1 - dilate(1 - mask, radius)


def progressive_masks(mask: Tensor, stages: int, steps: int) -> list[Tensor]:
    """One latent mask per step, thin masks first much larger (Blended Latent Diffusion's progressive shrinking).

    mask: (B, 1, h, w). The stages are dilations by squares of 3 + 2i cells, i = stages - 1 ... 0, then the mask itself,
    which the last step has even where there are fewer steps than stages.
    """
    ladder = [dilate(mask, i + 1) for i in reversed(range(stages))] + [mask]
    span = steps // (stages + 1) + 1
    return [ladder[step // span] for step in range(steps - 1)] + [mask]
