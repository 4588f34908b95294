"""Where a phrase stands in a tokenized prompt."""

from collections.abc import Sequence

from torch import Tensor, equal

# The tokenizer's id of a piece of a word, or the vector of a learned concept.
Token = int | Tensor


def same_token(one: Token, other: Token) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and equal(one, other)
    return int(one) == int(other)


def find_phrase(prompt: Sequence[tuple[int, Token]], phrase: Sequence[Token]) -> list[int]:
    """Positions of the phrase's tokens in a prompt of (position, token), every occurrence; empty if it is not there."""
    found: set[int] = set()
    for start in range(len(prompt) - len(phrase) + 1 if phrase else 0):
        window = prompt[start : start + len(phrase)]
        if all(same_token(token, wanted) for (_, token), wanted in zip(window, phrase, strict=True)):
            found.update(position for position, _ in window)
    return sorted(found)
