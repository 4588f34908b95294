"""Latents to pictures with a gradient: no clamp, no rounding, no silent tiling."""

import logging
from collections.abc import Callable, Sequence

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.taesd.taesd
import folder_paths
import torch
from torch import Tensor

from .gradients import static_patcher
from .safe_files import SAFE, read_whole

# Kept for backward against what the host reserves to decode: counted 2.6 for SD's VAE; the rest is for the way back.
_VAE_FACTOR = 3
# The small decoder, fp32: counted 2200 a pixel.
_TAESD_BYTES = 2600 * 64
_TAESD_MULTIPLE = 8
_PICKLED = (
    "models/vae_approx/%s is pickled and is not opened, so the full decoder is used, which is slower. Put "
    "%s.safetensors there, which the TAESD project publishes too (madebyollin on Hugging Face)."
)
_REPLACE = "Put the TAESD project's file in its place, or remove it: the full decoder is used then."

logger = logging.getLogger("inlay")


class Decoder:
    """Decodes latents of the sampler's scale, differentiably.

    patcher: what the host has to load before a call; its `.model` is what gradient_phase has to normalise.
    row_bytes: about what a row of latent shape (C, h, w) keeps for its gradient. multiple: pixels of a latent cell's
    side. Called with (B, C, h, w); gives (B, 3, H, W), about [-1, 1], not clamped, fp32 or better.
    """

    def __init__(
        self,
        patcher: comfy.model_patcher.ModelPatcher,
        decode: Callable[[Tensor], Tensor],
        row_bytes: Callable[[Sequence[int]], float],
        multiple: int,
    ) -> None:
        self.patcher = patcher
        self.row_bytes = row_bytes
        self.multiple = multiple
        self._decode = decode

    def __call__(self, latent: Tensor) -> Tensor:
        pictures = self._decode(latent)
        return pictures.to(torch.promote_types(pictures.dtype, torch.float32))


def full_decoder(vae: comfy.sd.VAE, latent_format: comfy.latent_formats.LatentFormat) -> Decoder:
    """The VAE's own decoder. Raises ValueError for a VAE that cannot decode pictures of this model's latents."""
    require_fit(vae, latent_format)
    patcher = static_patcher(vae.patcher)

    def decode(latent: Tensor) -> Tensor:
        return patcher.model.decode(latent_format.process_out(latent).to(vae.device, vae.vae_dtype))

    def row_bytes(shape: Sequence[int]) -> float:
        return _VAE_FACTOR * vae.memory_used_decode((1, *shape), vae.vae_dtype)

    return Decoder(patcher, decode, row_bytes, vae.spacial_compression_decode())


def require_fit(vae: comfy.sd.VAE | None, latent_format: comfy.latent_formats.LatentFormat) -> None:
    """Raises ValueError for a VAE that cannot decode pictures of these latents."""
    if vae is None:
        raise ValueError("There is no VAE. This checkpoint holds none: load one with Load VAE and connect it.")
    vae.throw_exception_if_invalid()
    if vae.latent_channels != latent_format.latent_channels or vae.latent_dim != 2:
        raise ValueError(
            f"This VAE has {vae.latent_channels} latent channels and the model {latent_format.latent_channels}. "
            "Connect the VAE that belongs to the model."
        )


def approximate_decoder(latent_format: comfy.latent_formats.LatentFormat) -> Decoder | None:
    """The small decoder that the host previews with, from safetensors in models/vae_approx; None where there is none.

    Raises ValueError for a file that is damaged or of another network.
    """
    name, channels = latent_format.taesd_decoder_name, latent_format.latent_channels
    if not name or channels not in (4, 16):
        return None
    files = [file for file in folder_paths.get_filename_list("vae_approx") if file.startswith(name)]
    safe = [file for file in files if file.lower().endswith(SAFE)]
    if not safe:
        if files:
            logger.warning(_PICKLED, files[0], name)
        return None
    weights, _ = read_whole(folder_paths.get_full_path_or_raise("vae_approx", safe[0]), _REPLACE)
    with torch.inference_mode(False):
        net = comfy.taesd.taesd.TAESD(latent_channels=channels)
        try:
            net.taesd_decoder.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f'The file "{safe[0]}" is of another network than the small decoder. {_REPLACE}'
            ) from error
        net.requires_grad_(False)
    return decoder_of_taesd(net)


def decoder_of_taesd(net: comfy.taesd.taesd.TAESD) -> Decoder:
    device = comfy.model_management.get_torch_device()
    patcher = comfy.model_patcher.ModelPatcher(net, device, comfy.model_management.unet_offload_device())

    def decode(latent: Tensor) -> Tensor:
        return net.decode(latent.to(device, torch.float32))

    return Decoder(patcher, decode, lambda shape: _TAESD_BYTES * shape[-2] * shape[-1], _TAESD_MULTIPLE)
