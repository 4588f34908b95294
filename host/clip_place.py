"""Where CLIP guidance looks: the mask and the picture at the size that the sampled latents decode to."""

import comfy.sd
import torch
from torch import Tensor

from ..guidance.decoded_size import fit_decoded, pad_or_cut
from ..guidance.masks import fit_mask, require_region
from ..guidance.windows import decode_windows, window_share
from .decoders import Decoder


class Place:
    """The mask, in any size of the picture's aspect, and the picture, padded as by Inlay or cut as by VAE Encode."""

    def __init__(self, vae: comfy.sd.VAE, mask: Tensor, image: Tensor | None) -> None:
        self._cell = vae.spacial_compression_encode()
        self._picture = None
        with torch.inference_mode(False):
            self._mask = mask.reshape(-1, *mask.shape[-2:]).float().clone()
            if image is not None:
                self._mask = fit_mask(self._mask, *image.shape[1:3])
                self._picture = image[..., :3].movedim(-1, 1).float().clone() * 2 - 1

    def decode(self, decoder: Decoder, latent: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) of latents, decoded around the mask and mid-grey elsewhere."""
        mask = self._fitted(*(side * self._cell for side in latent.shape[-2:]))
        _require_turns(latent, mask, "masks")
        return decode_windows(decoder, latent, mask)

    def share(self, height: int, width: int) -> float:
        """How much of a latent of height x width cells `decode` decodes, 0 to 1, mean of the masks."""
        return window_share(self._fitted(height * self._cell, width * self._cell), height, width)

    def pixels(self, height: int, width: int) -> int:
        """How many pixels a latent of height x width cells decodes to."""
        return height * width * self._cell**2

    def mask(self, pictures: Tensor) -> Tensor:
        """(B, H, W) for decoded pictures (B, 3, H, W)."""
        return _for_each(pictures, self._fitted(*pictures.shape[-2:]), "masks")

    def picture(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1]."""
        height, width = pictures.shape[-2:]
        fitted = pad_or_cut(self._picture, height, width, self._cell)
        if fitted is None:
            raise ValueError(
                f"The background's picture does not fit the latent, which decodes to {width} x {height}. "
                "Connect the picture that the latent was encoded from."
            )
        return _for_each(pictures, fitted, "background pictures")

    def _fitted(self, height: int, width: int) -> Tensor:
        mask = fit_decoded(self._mask, height, width, self._cell)
        require_region(mask)  # all of it may lie in what was cut
        return mask


def _require_turns(rows: Tensor, given: Tensor, what: str) -> None:
    if len(rows) % len(given):
        raise ValueError(f"There are {len(given)} {what} and {len(rows)} latents. Give one, or one for each latent.")


def _for_each(pictures: Tensor, given: Tensor, what: str) -> Tensor:
    _require_turns(pictures, given, what)
    return given.to(pictures).repeat(len(pictures) // len(given), *[1] * (given.ndim - 1))
