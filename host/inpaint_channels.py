"""The extra input channels of inpainting UNets: the mask and the picture with a hole, by the host's own names."""

import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..guidance.masks import latent_mask
from .pictures import encode_picture, pad_mask

GREY = 0.5


def takes_masked_image(model: ModelPatcher) -> bool:
    """Whether the model reads a mask and a masked picture beside the latent, as 9-channel UNets do."""
    return "masked_image" in model.model.concat_keys


def hole(mask: Tensor) -> Tensor:
    """The pixels such a model may not see, (B, H, W) of 0 and 1: the mask rounded as the host rounds it."""
    return mask.round()


def inpaint_channels(vae: comfy.sd.VAE, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What the host expects in the CONDITIONING of such a model. image: (B, H, W, 3). mask: (B, H, W).

    The hole is grey. The mask is handed over on the latent's cells, with every cell that is generated in it.
    """
    gone = hole(mask)
    latent = encode_picture(vae, image.lerp(image.new_tensor(GREY), gone[..., None]))
    cells = latent_mask(pad_mask(gone, vae), *latent.shape[-2:])
    return {"concat_latent_image": latent, "concat_mask": cells}


def repeated(channels: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    """The channels for `times` candidates of each picture."""
    return {name: values.repeat(times, 1, 1, 1) for name, values in channels.items()}
