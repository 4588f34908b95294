"""Where the words of a concept stand in a prompt, by the text encoder's own tokenizer."""

import re

import comfy.sd
from torch import Tensor

from ..attention.words import Token, find_phrase


def concept_positions(clip: comfy.sd.CLIP, prompt: str, concept: str) -> list[int]:
    """Positions of the concept's tokens in the prompt's conditioning, sorted.

    concept: words that stand in the prompt in this order, or `embedding:name`; several such phrases between commas.
    Every occurrence counts. Raises ValueError for a missing CLIP and for a phrase that the prompt does not hold.
    """
    if clip is None:
        raise ValueError("There is no text encoder to find words with. Connect the model's clip.")
    if not _phrases(concept):
        raise ValueError("No word to look for is given. Name a word of the prompt.")
    for text in (prompt, concept):
        require_learned(clip, text)
    name = _reading_encoder(clip, prompt)
    for phrase in _phrases(concept):
        if not _phrase_positions(clip, prompt, phrase, name):
            known = ", ".join(dict.fromkeys(re.findall(r"embedding:[^\s,()]+|[^\W\d_]+", prompt))) or "none"
            raise ValueError(f'The prompt does not hold "{phrase}". Name one of its words: {known}.')
    return sorted(_phrase_positions(clip, prompt, concept, name))


def require_learned(clip: comfy.sd.CLIP, text: str) -> None:
    """Raises ValueError for an `embedding:name` that this encoder does not find, and would leave out."""
    for phrase in dict.fromkeys(re.findall(r"embedding:(?:\\.|[^\s,():])+", text)):
        chunks = (chunk for encoder in clip.tokenize(phrase).values() for chunk in encoder)
        if not any(isinstance(token, Tensor) for chunk in chunks for token, *_ in chunk):
            raise ValueError(
                f"There is no learned concept {phrase} for this text encoder. "
                "Check its name, or train it for this model."
            )


def _phrases(concept: str) -> list[str]:
    return [phrase.strip() for phrase in concept.split(",") if phrase.strip()]


def _phrase_positions(clip: comfy.sd.CLIP, prompt: str, concept: str, name: str) -> set[int]:
    """Where one encoder reads the concept's phrases."""
    words = _words(clip, prompt, name)
    told = ([token for _, token in _words(clip, phrase, name)] for phrase in _phrases(concept))
    return {position for tokens in told for position in find_phrase(words, tokens)}


def tokens_without(clip: comfy.sd.CLIP, prompt: str, concept: str) -> dict[str, list]:
    """The prompt's tokens with the concept's left out, for each encoder. Raises as concept_positions."""
    concept_positions(clip, prompt, concept)
    tokens = clip.tokenize(prompt)
    for name, chunks in tokens.items():
        gone, start = _phrase_positions(clip, prompt, concept, name), 0
        kept = []
        for chunk in chunks:
            left = [entry for number, entry in enumerate(chunk, start) if number not in gone]
            # The last of a chunk is its padding, or the end that pads in CLIP's own way.
            kept.append(left + [chunk[-1]] * (len(chunk) - len(left)))
            start += len(chunk)
        tokens[name] = kept
    return tokens


def _reading_encoder(clip: comfy.sd.CLIP, prompt: str) -> str:
    """The encoder whose token positions are those of the conditioning.

    An encoder leaves out a learned concept that was not made for it, and all that follows moves up; of SDXL's two it
    is then the other one.
    """
    tokens = clip.tokenize(prompt)
    for name in (name for name in ("l", "h", "g") if name in tokens):
        vectors = [token for chunk in tokens[name] for token, *_ in chunk if isinstance(token, Tensor)]
        width = getattr(clip.tokenizer, f"clip_{name}").embedding_size
        if all(vector.shape[-1] == width for vector in vectors):
            return name
    raise ValueError(
        "The prompt's positions are unknown: a learned concept in it, or the text encoder, belongs to another model. "
        "Use the model's own."
    )


def _words(clip: comfy.sd.CLIP, text: str, name: str) -> list[tuple[int, Token]]:
    """(position, token) of everything but start, end and padding."""
    chunks = clip.tokenize(text, return_word_ids=True)[name]
    flat = [entry for chunk in chunks for entry in chunk]
    return [(position, token) for position, (token, _, word) in enumerate(flat) if word != 0]


def encode_text(clip: comfy.sd.CLIP, text: str) -> list:
    """CONDITIONING of a prompt, as the host's own CLIP Text Encode gives it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))
