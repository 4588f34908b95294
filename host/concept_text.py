"""A prompt with one concept in it: its vectors as tokens of the host's text encoders, SD1's, SD2's or SDXL's two."""

import re
from collections.abc import Mapping, Sequence

import comfy.sd
import comfy.sd1_clip
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..training.concept import Vectors, initial_vectors
from .gradients import static_patcher

ENCODERS = ("l", "h", "g")
# A prompt's 77 places less its start and its end.
MOST_TOKENS = 75
# Stands for the concept in a text that it is learned in.
SLOT = "{}"
# The host's tokens before and after the concept, by encoder.
Sentence = tuple[dict[str, list], dict[str, list]]


class ConceptText:
    """What `embedding:name` in a prompt would be to this CLIP, for vectors that are not in a file yet.

    template: the text around the concept, `{}`; one a line, for all pictures or for one each. patcher: what has to be
    loaded before `encode`; its `.model` is what the gradient goes through. Raises ValueError for a missing CLIP, for
    text encoders that are no CLIP, and for a line that does not hold the concept once, outside brackets.
    """

    def __init__(self, clip: comfy.sd.CLIP | None, template: str = SLOT) -> None:
        if clip is None:
            raise ValueError("There is no text encoder. Connect the model's clip.")
        self.clip = clip
        self.patcher: ModelPatcher = static_patcher(clip.patcher)
        self.empty = clip.tokenize("")
        if not set(self.empty) <= set(ENCODERS):
            raise ValueError(
                f"This text encoder ({', '.join(self.empty)}) takes no learned concept. Use SD1.x, SD2.x or SDXL."
            )
        lines = [line for line in template.splitlines() if line.strip()] or [SLOT]
        self.lines = [self.sentence(line) for line in lines]

    def sentence(self, text: str) -> Sentence:
        """The text around the concept. Raises ValueError where it does not hold `{}` once, outside brackets."""
        if text.count(SLOT) != 1:
            raise ValueError(
                f'"{text}" does not hold {SLOT} once. Write {SLOT} where the thing is named, for example: a '
                f"photo of {SLOT} on a beach."
            )
        # Brackets weight what is in them, which the sides alone would not show.
        before = comfy.sd1_clip.escape_important(text.partition(SLOT)[0])
        if before.count("(") != before.count(")"):
            raise ValueError(
                f'"{text}" holds {SLOT} inside brackets, which would weight it. Write it outside of them, and put the '
                "weight into a prompt of your own, such as (embedding:my-cat:1.3)."
            )
        before, after = (self._words(side) for side in text.split(SLOT))
        return before, after

    def _words(self, text: str) -> dict[str, list]:
        """{encoder: the host's tokens of the text, without start, end and filling}."""
        sides = self.clip.tokenize(text, return_word_ids=True)
        return {name: [token[:2] for chunk in sides[name] for token in chunk if token[2] != 0] for name in self.empty}

    def start(self, tokens: int, word: str, seed: int) -> Vectors:
        """{clip_l: (tokens, C), ...} fp32 to start from: the word's own vectors, or the table's statistics."""
        for line in self.lines:
            self.require_room(tokens, line)
        words = self._words(word.strip()) if word.strip() else {}
        generator = torch.Generator().manual_seed(seed)
        vectors = {}
        for name in self.empty:
            table = getattr(self.patcher.model, f"clip_{name}").transformer.get_input_embeddings().weight
            ids = [token for token, _ in words.get(name, ())]
            known = [token.to(table) if isinstance(token, Tensor) else table[token] for token in ids]
            known = torch.stack(known) if known else None
            vectors[f"clip_{name}"] = initial_vectors(table, tokens, known, generator)
        return vectors

    def require_room(self, tokens: int, sentence: Sentence) -> None:
        """Raises ValueError where the concept and the words around it are more than a prompt takes."""
        words = max(sum(len(side[name]) for side in sentence) for name in self.empty)
        if not 1 <= tokens <= MOST_TOKENS - words:
            beside = f" beside {words} of its sentence" if words else ""
            raise ValueError(
                f"A concept of {tokens} tokens{beside} does not fit into a prompt. Use 1 to {MOST_TOKENS - words}."
            )

    def tokens(self, vectors: Mapping[str, Tensor], sentence: Sentence) -> dict[str, list]:
        """The host's tokens of the sentence."""
        before, after = sentence
        sequences = {}
        for name, ((start, *rest),) in self.empty.items():
            own = [*before[name], *((vector, 1.0) for vector in vectors[f"clip_{name}"]), *after[name]]
            sequences[name] = [[start, *own, *rest[: len(rest) - len(own)]]]
        return sequences

    def encode(
        self, vectors: Mapping[str, Tensor] | None = None, lines: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(conditioning, pooled output) with their gradients, a row a line; of the empty prompt without vectors.

        lines: of the template, None for all.

        Unlike CLIP.encode_from_tokens it does not ask for the encoder to be loaded, which could unload the UNet.
        """
        net = self.patcher.model
        net.reset_clip_options()
        if self.clip.layer_idx is not None:
            net.set_clip_options({"layer": self.clip.layer_idx})
        net.set_clip_options({"execution_device": self.patcher.load_device})
        chosen = self.lines if lines is None else [self.lines[line] for line in lines]
        prompts = [self.empty] if vectors is None else [self.tokens(vectors, line) for line in chosen]
        texts, pooled = zip(*(net.encode_token_weights(prompt)[:2] for prompt in prompts), strict=True)
        return torch.cat(texts), None if pooled[0] is None else torch.cat(pooled)

    def line_of(self, picture: int, pictures: int, example: int) -> int:
        """The line that an example is told in: the picture's own where there are as many, else they take turns."""
        return picture if len(self.lines) == pictures else example % len(self.lines)

    def conditioning(self, vectors: Mapping[str, Tensor], sentence: Sentence | None = None) -> list:
        """The host's CONDITIONING of the sentence, of the template's first line for None."""
        with torch.no_grad():
            return self.clip.encode_from_tokens_scheduled(self.tokens(vectors, sentence or self.lines[0]))


def spoken(text: str, name: str) -> str:
    """The text with `embedding:name` for `{}`, spaced so that the host reads it as it is encoded here.

    The host takes a name up to the next white space, less commas at its end, and sees it only behind a space.
    """
    before, after = text.split(SLOT)
    left = "" if not before or before[-1] in " \n" else " "
    right = "" if re.match(r",*(\s|$)", after) else " "
    return f"{before}{left}embedding:{name}{right}{after}"
