"""Noise that belongs to a candidate, whatever batch it is computed in."""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor


class CandidateNoise:
    """Standard normal noise that depends only on (seed, candidate, purpose, draw).

    candidates: the host's batch_index, one number per row. purpose keeps the streams of different uses apart.
    """

    def __init__(self, seed: int, candidates: Sequence[int]) -> None:
        self.seed, self.candidates = seed, [int(number) for number in candidates]

    def draw(self, like: Tensor, purpose: str, draw: int) -> Tensor:
        """(B, ...) with like's shape, device and dtype; drawn on the CPU in fp32, as the host does."""
        rows = [self._row(like.shape[1:], number, purpose, draw) for number in self.candidates]
        return torch.stack(rows).to(like)

    def _row(self, shape: torch.Size, candidate: int, purpose: str, draw: int) -> Tensor:
        key = f"{self.seed} {candidate} {purpose} {draw}".encode()
        seed = int.from_bytes(blake2b(key, digest_size=8).digest(), "big")
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randn(shape, generator=generator)
