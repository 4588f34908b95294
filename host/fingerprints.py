"""Of what a long training depends on, so that a resumed one is refused where it would go on with something else."""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from .adapter_hooks import AdapterInjection
from .models import few_values, own_weight

_LENGTH = 16
# Of each weight: enough to tell models apart, and quick where there are billions.
_VALUES = 16


def tensors_id(tensors: Iterable[Tensor | None]) -> str:
    """Of everything in them."""
    digest = blake2b(digest_size=_LENGTH)
    for tensor in tensors:
        digest.update(b"none" if tensor is None else f"{tuple(tensor.shape)}".encode())
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def weights_id(weights: Mapping[str, Tensor]) -> str:
    """Of their names, their shapes and a few values of each."""
    digest = blake2b(digest_size=_LENGTH)
    for name, weight in weights.items():
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(few_values(weight, _VALUES).numpy())
    return digest.hexdigest()


def patcher_id(patcher: ModelPatcher) -> str:
    """Of a model's own weights and of what is put on them, whether that is in place now or not."""
    weights = {name: own_weight(patcher, name, weight) for name, weight in patcher.model_state_dict().items()}
    return weights_id(weights) + patches_id(patcher)


def patches_id(patcher: ModelPatcher) -> str:
    """Of what is added to its weights, LoRAs above all, and of Inlay's adapters beside its layers."""
    digest = blake2b(digest_size=_LENGTH)
    for key in sorted(patcher.patches):
        for part in _parts([key, patcher.patches[key]]):
            digest.update(part)
    for injection in (one for several in patcher.injections.values() for one in several):
        if isinstance(injection, AdapterInjection):
            for part in _parts([injection.strength, list(injection.adapters.items())]):
                digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    """What stays the same from one start of the host to the next."""
    if isinstance(value, WeightAdapterBase):
        value = value.weights
    if isinstance(value, Tensor):
        yield f"{tuple(value.shape)}".encode() + few_values(value, _VALUES).numpy().tobytes()
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _parts(one)
    else:
        yield (f"{value}" if isinstance(value, (str, int, float)) else type(value).__name__).encode() + b";"
