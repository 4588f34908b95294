"""A few weights of a MODEL as a file keeps them, to tell it from others in whatever precision it is loaded."""

import comfy.utils
import numpy
import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

from .models import few_values, own_weight

_LAYERS, _VALUES = 24, 16
# A layer of 8 bits or fewer with scales beside it, whose values show no grain of their own.
_SCALED = "~"
# Grains that values may have, with the largest relative and absolute error of rounding to them.
_HALF = (2**-11, 2**-25)
_GRAINS = {
    torch.bfloat16: (2**-8, 2**-25),
    torch.float8_e4m3fn: (2**-4, 2**-10),
    torch.float8_e5m2: (2**-3, 2**-17),
}
_SCALED_ERROR = 2**-3
# An error that is rounded twice, or measured against what was rounded, is a little larger.
_SLACK = 1.1


def weight_probe(model: ModelPatcher) -> str:
    """Values of some layers as hexadecimal fp16, a word a layer. Patches on the model do not change them."""
    # Not scales and the like, which stand beside the weights of some files only.
    names = sorted(name for name in model.model_state_dict("diffusion_model.") if name.endswith(".weight"))
    words = []
    for name in names[:: max(1, len(names) // _LAYERS)]:
        weight = own_weight(model, name, comfy.utils.get_attr(model.model, name))
        scaled = isinstance(weight, QuantizedTensor)
        values = few_values(weight.dequantize() if scaled else weight, _VALUES)
        words.append((_SCALED if scaled else "") + values.numpy().tobytes().hex())
    return " ".join(words)


def same_weights(one: str, other: str) -> bool:
    """Whether two probes are of the same weights, each in some precision: no value is further off than rounding."""
    words, others = one.split(), other.split()
    return len(words) == len(others) and all(map(_alike, words, others))


def _alike(one: str, other: str) -> bool:
    a, b = _values(one), _values(other)
    if len(a) != len(b):
        return False
    (near, least), (near_too, least_too) = _rounding(one, a), _rounding(other, b)
    # What saturates in half precision is as good as equal.
    larger = torch.maximum(a.abs(), b.abs()).nan_to_num(posinf=torch.finfo(torch.float16).max)
    return bool(((a - b).nan_to_num().abs() <= _SLACK * ((near + near_too) * larger + least + least_too)).all())


def _values(word: str) -> Tensor:
    data = bytes.fromhex(word.removeprefix(_SCALED))
    return torch.from_numpy(numpy.frombuffer(data, dtype=numpy.float16).astype(numpy.float32))


def _rounding(word: str, values: Tensor) -> tuple[float, float]:
    """The largest relative and absolute error that these values may have from having been rounded."""
    if word.startswith(_SCALED):
        # Its scale is that of the layer's largest value.
        return _SCALED_ERROR, float(values.abs().amax()) * _SCALED_ERROR
    # Small values may lie on several.
    errors = [error for grain, error in _GRAINS.items() if torch.equal(values.to(grain).float(), values)]
    near, least = zip(_HALF, *errors, strict=True)
    return max(near), max(least)
