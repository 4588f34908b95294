"""What the builders of the demo models share: weights by prefix, and random ones."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

StateDict = Mapping[str, Tensor]


def initialise(module: nn.Module, seed: int) -> None:
    """Fills every parameter: the host's layers leave their memory uninitialised.

    Weights are uniform in +-1/sqrt(fan_in), biases 0, norms 1 and 0.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                bound = 1 / math.sqrt(parameter[0].numel())
                parameter.copy_(torch.rand(parameter.shape, generator=generator).mul_(2 * bound).sub_(bound))
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def weights_under(tensors: StateDict, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
