"""How well a map or a mask finds a thing: values (B,) against the true mask (B, H, W), 1 on the thing."""

import torch
from torch import Tensor


def overlap(mask: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of what is at least half covered in each; 0 where neither holds anything."""
    found, true = mask >= 0.5, truth >= 0.5
    both, either = (found & true).flatten(1).sum(1), (found | true).flatten(1).sum(1)
    return both / either.clamp(min=1)


def separation(scores: Tensor, truth: Tensor) -> Tensor:
    """The share of pairs of a place on the thing and one beside it in which the first scores higher (area under the
    ROC curve): 1 finds it, 0.5 knows nothing, 0 finds it upside down. Equal scores count half. NaN without either.
    """
    return torch.stack([_separation(one.double(), true >= 0.5) for one, true in zip(scores, truth, strict=True)])


def _separation(scores: Tensor, true: Tensor) -> Tensor:
    inside, outside = scores[true].contiguous(), scores[~true].sort().values
    below, upto = (torch.searchsorted(outside, inside, right=right) for right in (False, True))
    return (below + upto).double().mean() / (2 * len(outside))
