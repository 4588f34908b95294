"""Pictures of any size through the host's VAE and back to their own size."""

import comfy.sd
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad


def encode_picture(vae: comfy.sd.VAE, image: Tensor) -> Tensor:
    """The latent that VAE.encode returns for the picture, padded right and below to the VAE's multiple by reflection.

    image: (B, H, W, C >= 3) in [0, 1]. Raises ValueError for a missing VAE, a picture smaller than one cell of it, and
    a latent that is not finite.
    """
    right, below = _padding(vae, image.shape[1], image.shape[2])
    padded = pad(image[..., :3].movedim(-1, 1), (0, right, 0, below), mode="reflect").movedim(1, -1)
    latent = vae.encode(padded)
    if not torch.isfinite(latent).all():
        raise ValueError(
            "The VAE turned the picture into values that are not numbers. "
            "Check the picture, or run the VAE in higher precision (--fp32-vae or --bf16-vae)."
        )
    return latent


def decode_picture(vae: comfy.sd.VAE, latent: Tensor, height: int, width: int) -> Tensor:
    """The picture (B, height, width, 3) in [0, 1], cropped to the size it had before encode_picture.

    Raises ValueError for a missing VAE, and for a latent or a picture that is not finite.
    """
    _require(vae)
    if not torch.isfinite(latent).all():
        raise ValueError(
            "Sampling ended in values that are not numbers. Lower cfg or the guidance strength, "
            "or run the model in higher precision."
        )
    picture = vae.decode(latent)[:, :height, :width]
    if not torch.isfinite(picture).all():
        raise ValueError(
            "The VAE decoded the result to values that are not numbers. "
            "Run the VAE in higher precision (--fp32-vae or --bf16-vae)."
        )
    return picture


def scaled_down(pictures: Tensor, longest: int) -> Tensor:
    """The pictures (B, H, W, C) in [0, 1] with the longer side at most `longest` pixels; smaller ones as they are.

    0 leaves every size. The aspect is kept, to a pixel.
    """
    height, width = pictures.shape[1:3]
    longer = max(height, width)
    if longest == 0 or longer <= longest:
        return pictures
    size = [max(1, round(side * longest / longer)) for side in (height, width)]
    return interpolate(pictures.movedim(-1, 1), size, mode="bicubic", antialias=True).clamp(0, 1).movedim(1, -1)


def pad_mask(mask: Tensor, vae: comfy.sd.VAE) -> Tensor:
    """The mask (B, H, W) padded as encode_picture pads a picture of its size."""
    right, below = _padding(vae, mask.shape[1], mask.shape[2])
    return pad(mask[:, None], (0, right, 0, below), mode="reflect")[:, 0]


def _padding(vae: comfy.sd.VAE, height: int, width: int) -> tuple[int, int]:
    """Pixels to add right and below."""
    _require(vae)
    multiple = vae.spacial_compression_encode()
    if min(height, width) < multiple:
        raise ValueError(
            f"The picture is {width} x {height} pixels, too small for this VAE. "
            f"Give one of at least {multiple} x {multiple}."
        )
    return -width % multiple, -height % multiple


def _require(vae: comfy.sd.VAE | None) -> None:
    if vae is None:
        raise ValueError("There is no VAE. This checkpoint holds none: load one with Load VAE and connect it.")
