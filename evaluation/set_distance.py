"""A distance between sets of pictures with an interval over the groups that the sets are made of."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..guidance.metrics import frechet


def frechet_shares(real: Sequence[Tensor], painted: Sequence[Tensor]) -> list[float | None]:
    """The jackknife's pseudo-values of the Frechet distance, one a group: n D - (n - 1) D without that group.

    Their mean is the distance with its bias at small samples taken off, their spread its uncertainty (Efron and
    Tibshirani 1993, section 11.5). real, painted: (n_i, D) features of each group. None where the pictures are too few.
    """
    count = len(real)
    fewest = min(sum(map(len, real)) - max(map(len, real)), sum(map(len, painted)) - max(map(len, painted)))
    if count < 2 or fewest <= real[0].shape[1]:
        return [None] * count
    whole = _distance(real, painted)
    return [
        count * whole - (count - 1) * _distance(_without(real, group), _without(painted, group))
        for group in range(count)
    ]


def _without(groups: Sequence[Tensor], group: int) -> list[Tensor]:
    return [one for number, one in enumerate(groups) if number != group]


def _distance(real: Sequence[Tensor], painted: Sequence[Tensor]) -> float:
    return frechet(torch.cat(list(real)), torch.cat(list(painted)))
