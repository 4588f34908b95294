"""A stand-in for LPIPS, which is not at hand here: the same formula on the layers of the judge's own network."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..demo.judge import Judge
from ..guidance.metrics import lpips

NAME = "judge-feature distance"


def judge_distance(judge: Judge, a: Tensor, b: Tensor, weight: Tensor | None = None) -> Tensor:
    """How unlike two pictures (B, H, W, 3) look to the judge's convolutions, (B,): 0 for the same.

    weight: (B, H, W), where it counts. Every channel weighs the same, and stages are averaged.
    """
    blocks = [number for number, layer in enumerate(judge.body) if not isinstance(layer, nn.Conv2d)]

    def stages(pictures: Tensor) -> list[Tensor]:
        found, x = [], pictures * 2 - 1
        for number, layer in enumerate(judge.body):
            x = layer(x)
            if number in blocks:
                found.append(x)
        return found

    return _distance(stages, len(blocks), a.movedim(-1, 1), b.movedim(-1, 1), weight)


@torch.no_grad()
def _distance(
    stages: Callable[[Tensor], list[Tensor]], count: int, a: Tensor, b: Tensor, weight: Tensor | None
) -> Tensor:
    widths = [stage.shape[1] for stage in stages(a[:1])]
    return lpips(stages, [torch.full((width,), 1 / count) for width in widths], a, b, weight)
