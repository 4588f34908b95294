"""Pictures and masks at the size that a latent decodes to, whichever way the picture became that latent."""

from math import log2

from torch import Tensor
from torch.nn.functional import pad

from .masks import fit_mask


def fit_decoded(mask: Tensor, height: int, width: int, cell: int) -> Tensor:
    """The mask (B, H, W) of a picture whose latent decodes to height x width, where that picture was.

    cell: pixels of one latent cell. Besides the picture's own size the mask may have any of its aspect. Raises
    ValueError for another aspect.
    """
    h, w = mask.shape[-2:]
    ratios = height / h, width / w
    # A power of two is the picture's size or a halved one, and exact; padded the picture is smaller, cut it is larger.
    for scale in (2.0 ** round(log2(ratios[0])), min(ratios), max(ratios)):
        own = round(scale * h), round(scale * w)
        if _pads_or_cuts(*own, height, width, cell):
            return pad_or_cut(fit_mask(mask, *own)[:, None], height, width, cell)[:, 0]
    return fit_mask(mask, height, width)


def pad_or_cut(planes: Tensor, height: int, width: int, cell: int) -> Tensor | None:
    """Planes (B, C, H, W) padded right and below by reflection, or cut in the middle as the host's VAE Encode cuts.

    None where neither gives height x width.
    """
    h, w = planes.shape[-2:]
    if not _pads_or_cuts(h, w, height, width, cell):
        return None
    if h < height or w < width:
        return pad(planes, (0, width - w, 0, height - h), mode="reflect")
    top, left = (h - height) // 2, (w - width) // 2
    return planes[..., top : top + height, left : left + width]


def _pads_or_cuts(h: int, w: int, height: int, width: int, cell: int) -> bool:
    missing = height - h, width - w
    one_way = min(missing) >= 0 or max(missing) <= 0
    return one_way and all(abs(gap) < min(cell, side) for gap, side in zip(missing, (h, w), strict=True))
