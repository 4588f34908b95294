"""Intervals of means by the bootstrap over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 4000
_SEED = 20_250_101


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds and its 95 % interval; low and high are None for fewer than two seeds."""

    mean: float
    low: float | None
    high: float | None
    n: int


def bootstrap_mean(values: Sequence[float], draws: int = DRAWS, seed: int = _SEED) -> Interval:
    """Percentile bootstrap of the mean, seeded (Efron and Tibshirani 1993, section 13.3). values: one per seed.

    Raises ValueError for no values and for values that are not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError("An interval needs at least one value, and every value finite.")
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, None, None, 1)
    rows = np.random.default_rng(seed).integers(0, sample.size, (draws, sample.size))
    low, high = np.quantile(sample[rows].mean(1), [0.025, 0.975])
    return Interval(mean, float(low), float(high), int(sample.size))


def paired_difference(ours: Mapping[int, float], reference: Mapping[int, float]) -> Interval | None:
    """The mean of ours - reference over the seeds that both have, resampled in pairs; None where they share none."""
    shared = sorted(ours.keys() & reference.keys())
    return bootstrap_mean([ours[seed] - reference[seed] for seed in shared]) if shared else None
