"""What a concept is learned from."""

from dataclasses import dataclass

import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..attention.salient_sources import RECEIVED
from ..training.objectives import Objective
from .concept_text import ConceptText
from .unet_blocks import BlockKey


@dataclass(frozen=True)
class Material:
    """Views are the pictures as they are and, with flips, mirrored.

    conditioning: of the first vectors in the template. images: (P, H, W, 3). latents: (views, P, C, h, w) as VAE.encode
    returns them. masks: (views, P, 1, h, w), None where S is the model's own. pixels: (views, P, 3, H, W) in [-1, 1],
    padded as for the VAE, for a term that looks at them. layers: those S is read from; thresholds: (P,), from where on.
    reading: how, of READINGS.
    """

    model: ModelPatcher
    text: ConceptText
    vae: comfy.sd.VAE
    conditioning: list
    objective: Objective
    images: Tensor
    latents: Tensor
    masks: Tensor | None
    pixels: Tensor | None
    layers: list[BlockKey]
    thresholds: Tensor | None
    reading: str = RECEIVED
