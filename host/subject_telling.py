"""What a subject is told by in training: tokens of reference pictures, or encoded prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import comfy.clip_vision
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..guidance.reference import ReferenceEncoder
from .concept_region_patch import stack_contexts
from .gradients import ordinary
from .reference_conditioning import encode_pooled, null_token, pooled_states
from .tokens import encode_text


@dataclass(frozen=True)
class Teller:
    """The user's models: encoder and vision for references, clip for prompts."""

    encoder: ReferenceEncoder | None = None
    vision: comfy.clip_vision.ClipVisionModel | None = None
    clip: comfy.sd.CLIP | None = None


@dataclass(frozen=True)
class Condition:
    """contexts: (K, T, C), which rows share. pooled: (K, P) of SDXL. empty, empty_pooled: of no condition, (1, ...)."""

    contexts: Tensor
    empty: Tensor
    pooled: Tensor | None = None
    empty_pooled: Tensor | None = None


def tell_by_references(teller: Teller, references: Sequence[Tensor]) -> Condition:
    """One token a view, of its own reference (3, S, S)."""
    tokens = encode_pooled(teller.encoder, pooled_states(teller.vision, torch.stack(list(references))))
    return Condition(tokens, null_token(teller.encoder))


def tell_by_texts(teller: Teller, texts: Sequence[str]) -> Condition:
    """One context a text; nothing is told by the empty prompt."""
    encoded = {text: encode_text(teller.clip, text)[0] for text in dict.fromkeys([*texts, ""])}
    with torch.inference_mode(False):
        rows = [ordinary(encoded[text][0]).float().cpu() for text in [*texts, ""]]
        contexts = stack_contexts(rows)
        pooled = [encoded[text][1].get("pooled_output") for text in [*texts, ""]]
        if any(one is None for one in pooled):
            return Condition(contexts[:-1], contexts[-1:])
        stacked = torch.cat([ordinary(one).float().cpu() for one in pooled])
    return Condition(contexts[:-1], contexts[-1:], stacked[:-1], stacked[-1:])


def read_prompts(text: str, photos: int) -> list[str]:
    """One prompt a photo, of one line for all or a line for each. Raises ValueError for another number, or none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError('There is no prompt. Name the subject by a rare word, such as "a photo of sks couch".')
    if len(lines) not in (1, photos):
        raise ValueError(f"There are {len(lines)} prompts for {photos} photos. Give one line, or one for each photo.")
    return lines * photos if len(lines) == 1 else lines


def require_width(model: ModelPatcher, condition: Condition) -> None:
    """Raises ValueError where the model does not read such contexts."""
    wanted, found = model.model.model_config.unet_config.get("context_dim"), condition.contexts.shape[-1]
    if wanted != found:
        raise ValueError(
            f"The condition has {found} values a token and {type(model.model).__name__} takes {wanted}. "
            "Connect the reference encoder or the CLIP that belongs to the model."
        )
