"""A trained subject put on its base model, with the conditioning that asks for it."""

from collections.abc import Mapping

import comfy.clip_vision
import comfy.lora
import comfy.lora_convert
import comfy.sd
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..guidance.reference import ReferenceEncoder
from .adapter_hooks import inject
from .lora_files import patched_otherwise, require_base
from .notice import show_sentence
from .reference_conditioning import reference_conditioning
from .subject_projection import has_projection, load_projection, without_projection
from .subject_telling import CONNECT_ITS_OWN
from .text_width import require_width
from .tokens import encode_text

WAYS = ("weights", "bypass")
OTHER_LORAS = (
    "The subject was trained on its base with LoRAs on it, and this model does not have just these. "
    "Load the same ones before it, each with the same strength."
)
OF_TEXT_ENCODERS = (
    "The LoRA changes a text encoder too, which this node leaves as it is. Load it on the CLIP with Load LoRA."
)


def load_subject(
    model: ModelPatcher, lora: Mapping[str, Tensor], strength: float, way: str = "weights", other_weights: bool = False
) -> ModelPatcher:
    """A clone of the model with the LoRA on it; at strength 0 a clone without any patch.

    way: `weights` adds it to the weights, as the host's own loader does; `bypass` adds its output to the layers'
    outputs, which a quantised base needs whose weights cannot be added to. Says so where the base had other LoRAs on it
    in training. Raises ValueError for a LoRA of another base.
    """
    require_base(model, lora, other_weights)
    if strength == 0:
        return model.clone()
    if patched_otherwise(model, lora):
        show_sentence(OTHER_LORAS)
    tensors = comfy.lora_convert.convert_lora(without_projection(lora))
    loaded = comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(model.model, {}))
    if not loaded:
        raise ValueError("The file changes no layer of this model. Load the LoRA's own base, or choose another file.")
    if any(key.startswith("lora_te") for key in tensors):
        show_sentence(OF_TEXT_ENCODERS)
    patched = model.clone()
    if way == "weights":
        patched.add_patches(loaded, strength)
        return patched
    adapters = {
        key.removesuffix(".weight"): adapter
        for key, adapter in loaded.items()
        if isinstance(adapter, WeightAdapterBase)
    }
    if len(adapters) < len(loaded):
        left = len(loaded) - len(adapters)
        show_sentence(f"The LoRA changes {left} weights in ways that bypass cannot. Set way to weights to have them.")
    inject(patched, adapters, strength)
    return patched


def subject_conditioning(
    model: ModelPatcher,
    lora: Mapping[str, Tensor],
    encoder: ReferenceEncoder | None,
    vision: comfy.clip_vision.ClipVisionModel | None,
    reference: Tensor | None,
    clip: comfy.sd.CLIP | None,
    mask: Tensor | None = None,
) -> tuple[list | ExecutionBlocker, list | ExecutionBlocker]:
    """Positive and negative: the reference, cut out by its mask if there is one, or the prompt it was trained under.

    A projection that was trained with the subject takes the encoder's place. Where neither can be made, what depends on
    them is not run, and says why. Raises ValueError where the model does not read such tokens.
    """
    own = has_projection(lora)
    if reference is not None and vision is not None and (own or encoder is not None):
        encoder = load_projection(lora) if own else encoder
        told = reference_conditioning(encoder, vision, reference, mask)
        require_width(model, told[0][0][0], CONNECT_ITS_OWN)
        return told
    prompt = getattr(lora, "metadata", {}).get("inlay.prompt")
    if clip is not None and prompt:
        positive = encode_text(clip, prompt)
        require_width(model, positive[0][0], CONNECT_ITS_OWN)
        return positive, encode_text(clip, "")
    parts = "reference and clip_vision" if own else "reference, reference_encoder and clip_vision"
    needed = "clip" if prompt else parts
    blocked = ExecutionBlocker(f"Load Subject: connect {needed} to use positive and negative.")
    return blocked, blocked
