"""What a subject is told by in training: tokens of reference pictures, or encoded prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import comfy.clip_vision
import comfy.sd
import torch
from torch import Tensor

from ..guidance.reference import ReferenceEncoder
from .concept_region_patch import stack_contexts
from .gradients import ordinary
from .reference_conditioning import encode_pooled, no_pooled, null_token, pooled_states
from .tokens import encode_text

# Of a condition of another width than the model's.
CONNECT_ITS_OWN = "Connect the reference encoder or the CLIP that belongs to the model."


@dataclass(frozen=True)
class Teller:
    """The user's models: encoder and vision for references, clip for prompts."""

    encoder: ReferenceEncoder | None = None
    vision: comfy.clip_vision.ClipVisionModel | None = None
    clip: comfy.sd.CLIP | None = None


@dataclass(frozen=True)
class Condition:
    """contexts: (K, T, C), which rows share. pooled: (K, P) of SDXL. empty, empty_pooled: of no condition, (1, ...).

    projection: where it is trained, it makes each row's context of its vision state, (K, W), anew.
    """

    contexts: Tensor
    empty: Tensor
    pooled: Tensor | None = None
    empty_pooled: Tensor | None = None
    projection: ReferenceEncoder | None = None
    states: Tensor | None = None

    def told(self, which: Tensor, silent: Tensor) -> Tensor:
        """Contexts (B, T, C) of the rows, those of silent (B,) being told nothing."""
        contexts, empty = self.contexts, self.empty
        if self.projection is not None:
            empty = self.projection.null
            return unless(silent, self.projection(self.states[which].to(empty.device)), empty)
        return unless(silent, contexts[which], empty)

    def told_pooled(self, which: Tensor, silent: Tensor) -> Tensor | None:
        return None if self.pooled is None else unless(silent, self.pooled[which], self.empty_pooled)


def unless(silent: Tensor, given: Tensor, empty: Tensor) -> Tensor:
    """Row by row, what is given or what stands for nothing."""
    return torch.where(silent.view(-1, *[1] * (given.ndim - 1)).to(given.device), empty, given)


def tell_by_references(
    teller: Teller, references: Sequence[Tensor], projection: ReferenceEncoder | None = None
) -> Condition:
    """One token a view, of its own reference (3, S, S). projection: trained along, in place of the teller's."""
    states = pooled_states(teller.vision, torch.stack(list(references)))
    encoder = teller.encoder if projection is None else projection
    tokens, empty = encode_pooled(encoder, states), null_token(encoder)
    learned = None if projection is None else ordinary(states)
    return Condition(tokens, empty, no_pooled(len(tokens)), no_pooled(1), projection, learned)


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
    if not text.strip():
        raise ValueError('There is no prompt. Name the subject by a rare word, such as "a photo of sks couch".')
    return _one_each(text, photos, "prompts for {} photos")


def read_class_prompts(text: str, pictures: int) -> list[str]:
    """The same of the class pictures."""
    if not text.strip():
        raise ValueError(
            "There is no class_prompt. Say what the class images show without the rare word, such as "
            '"a photo of a couch", or disconnect them.'
        )
    return _one_each(text, pictures, "class prompts for {} class images")


def _one_each(text: str, count: int, what: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) not in (1, count):
        raise ValueError(f"There are {len(lines)} {what.format(count)}. Give one line, or one for each.")
    return lines * count if len(lines) == 1 else lines
