"""The demo world's trained models as the host's own objects."""

from dataclasses import dataclass

import comfy.sd
import folder_paths
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..demo.weights import load_part
from ..guidance.reference import ReferenceEncoder
from . import demo_models

VARIANTS = ("text", "inpaint")


@dataclass(frozen=True)
class DemoModels:
    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    clip_vision: ClipVisionModel
    reference_encoder: ReferenceEncoder


def load_demo_models(variant: str) -> DemoModels:
    """variant: text (4 channels, words) or inpaint (9 channels, a reference picture).

    Raises demo.weights.WeightsError if weights are missing or were not trained together.
    """
    clip_weights = load_part("clip")
    text, vision = demo_models.split_clip(clip_weights)
    inpaint = load_part("inpaint")
    unet = load_part("unet") if variant == "text" else demo_models.weights_under(inpaint, "unet.net.")
    clip = demo_models.build_text_encoder(text, folder_paths.get_folder_paths("embeddings"))
    clip.tokenizer.clip_l.known = frozenset(clip_weights["token_ids"].tolist())
    return DemoModels(
        model=demo_models.build_model(unet),
        clip=clip,
        vae=demo_models.build_vae(load_part("vae")),
        clip_vision=demo_models.build_vision(vision),
        reference_encoder=_reference_encoder(inpaint),
    )


def _reference_encoder(inpaint: dict[str, Tensor]) -> ReferenceEncoder:
    null = inpaint["null"]
    width = inpaint["projection.1.weight"].shape[1]
    projection = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, null.shape[-1]))
    encoder = ReferenceEncoder(projection, null, width)
    encoder.projection.load_state_dict(demo_models.weights_under(inpaint, "projection."))
    return encoder.eval().requires_grad_(False)
