"""Gradients through the host's models. Its executor disables them and hands out inference tensors."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.conds
import comfy.ldm.modules.attention
import comfy.model_patcher
import torch
from comfy.clip_model import CLIPLayer
from torch import Tensor, nn

from .static_copy import static_clone


def normalise(module: nn.Module) -> None:
    """Freezes every weight and makes ordinary tensors of inference tensors, which autograd refuses. Idempotent."""
    with torch.inference_mode(False):
        for part in module.modules():
            for name, weight in part._parameters.items():
                if weight is None:
                    continue
                if weight.is_inference():
                    part._parameters[name] = own = nn.Parameter(weight.detach().clone(), requires_grad=False)
                    # The host notes on a weight what it is cast to.
                    for note, value in vars(weight).items():
                        vars(own).setdefault(note, value)
                else:
                    weight.requires_grad_(False)
            # What dynamic loading cast in the executor's mode, a ControlNet's weights for example, is cast anew.
            if any(isinstance(cast, Tensor) and cast.is_inference() for cast in _cast_weights(part)):
                part._v_signature = None
            for name, buffer in part._buffers.items():
                if buffer is not None and buffer.is_inference():
                    part._buffers[name] = buffer.clone()


def _cast_weights(module: nn.Module) -> Iterator[Any]:
    return (vars(module).get(name) for name in ("_v_weight", "_v_bias"))


def ordinary(value: Any) -> Any:
    """The same value with its inference tensors cloned: tensors, lists, tuples, dicts and the host's COND objects."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, (list, tuple)):
        items = [ordinary(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: ordinary(item) for key, item in value.items()}
    if isinstance(value, comfy.conds.CONDRegular):
        value = copy.copy(value)
        value.cond = ordinary(value.cond)
    return value


def control_models(conds: dict[str, list[dict]]) -> list[nn.Module]:
    """The nets of every ControlNet chained to the processed conds."""
    found = []
    for cond in (cond for conds_of_kind in conds.values() for cond in conds_of_kind):
        control = cond.get("control")
        while control is not None:
            if isinstance(net := getattr(control, "control_model", None), nn.Module):
                found.append(net)
            control = control.previous_controlnet
    return found


@contextmanager
def gradient_phase(*modules: nn.Module) -> Iterator[None]:
    """Autograd on, whatever the executor and the sampler turned off. The modules are normalised first."""
    for module in modules:
        normalise(module)
    with torch.inference_mode(False), torch.enable_grad():
        yield


def plain_attention(model_options: dict) -> dict:
    """The model options with PyTorch's attention, which has a backward pass where sage attention has none.

    An override that another pack put there still runs, around PyTorch's attention.
    """
    transformer_options = dict(model_options.get("transformer_options", {}))
    previous = transformer_options.get("optimized_attention_override")
    pytorch = comfy.ldm.modules.attention.attention_pytorch

    def override(_: Callable, *args: Any, **kwargs: Any) -> Tensor:
        return pytorch(*args, **kwargs) if previous is None else previous(pytorch, *args, **kwargs)

    transformer_options["optimized_attention_override"] = override
    return {**model_options, "transformer_options": transformer_options}


@contextmanager
def differentiable_layers(*modules: nn.Module) -> Iterator[None]:
    """The CLIP layers inside add to their input in place; their norms get copies, so that backward finds its own."""

    def copy_input(_: nn.Module, args: tuple) -> tuple:
        return args[0].clone(), *args[1:]

    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, CLIPLayer)]
    hooks = []
    try:
        for layer in layers:
            hooks += [norm.register_forward_pre_hook(copy_input) for norm in (layer.layer_norm1, layer.layer_norm2)]
        yield
    finally:
        for hook in hooks:
            hook.remove()


def static_patcher(patcher: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """A clone whose weights stay where they are loaded: dynamic ones may be overwritten before backward reads them."""
    return static_clone(patcher) if patcher.is_dynamic() else patcher.clone()
