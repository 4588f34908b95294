"""The examples of one step of a concept's training, and the sentences that they are told in."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..training.concept import ConceptSettings, Draw, draw_example
from .concept_text import ConceptText


@dataclass(frozen=True)
class Examples:
    """draws: of all parts of the step. lines: of the template, those that the step needs. told: per part, which of
    these lines.
    """

    draws: list[Draw]
    lines: list[int]
    told: list[int]

    def of(self, parts: range) -> tuple[list[Draw], list[int]]:
        return self.draws[parts.start : parts.stop], self.told[parts.start : parts.stop]


def draw_step(
    settings: ConceptSettings, done: int, text: ConceptText, pictures: int, levels: int, shape: Sequence[int]
) -> Examples:
    """The examples of step `done`. levels: of the schedule. shape: of a latent (C, h, w)."""
    count = settings.accumulation
    of_step = settings.seed, done
    draws = [draw_example(*of_step, part, count, pictures, levels, shape, settings.flips) for part in range(count)]
    lines = [text.line_of(draw.picture, pictures, number) for number, draw in enumerate(draws, done * count)]
    needed = sorted(set(lines))
    return Examples(draws, needed, [needed.index(line) for line in lines])
