"""Contrastive Denoising Score: PatchNCE between the self-attention features of two branches."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy, normalize

WEIGHT = 3.0


def patch_nce(
    target: Tensor,
    source: Tensor,
    height: int,
    width: int,
    generator: torch.Generator,
    patches: int = 256,
    pools: tuple[int, ...] = (1, 2),
    temperature: float = 0.07,
) -> Tensor:
    """How badly each place of the target's features recalls the same place of the source's, a scalar.

    target, source: (B, height * width, C); no gradient reaches the source. Per pool, up to `patches` places drawn from
    the CPU generator are compared with each other within their picture. The mean over places, summed over pools.
    """
    total = target.new_zeros((), dtype=torch.float32)
    for pool in pools:
        if pool > min(height, width):
            continue
        queries = _places(target, height, width, pool)
        keys = _places(source.detach(), height, width, pool)
        chosen = torch.randperm(queries.shape[1], generator=generator)[:patches].to(target.device)
        total = total + _nce(queries[:, chosen], keys[:, chosen], temperature)
    return total


def _places(features: Tensor, height: int, width: int, pool: int) -> Tensor:
    """Unit vectors (B, n, C), float32, one per pooled place."""
    grid = features.float().transpose(1, 2).unflatten(2, (height, width))
    return normalize(avg_pool2d(grid, pool).flatten(2).transpose(1, 2), dim=-1)


def _nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the positive against the other places. queries, keys: (B, n, C)."""
    likeness = queries @ keys.transpose(1, 2)
    own = torch.eye(likeness.shape[1], dtype=torch.bool, device=likeness.device)
    positive = likeness.diagonal(dim1=1, dim2=2)[..., None]
    # -10 is CDS's stand-in for "never": far below any cosine.
    logits = torch.cat([positive, likeness.masked_fill(own, -10.0)], -1) / temperature
    return cross_entropy(logits.flatten(0, 1), logits.new_zeros(logits.shape[0] * logits.shape[1], dtype=torch.long))
