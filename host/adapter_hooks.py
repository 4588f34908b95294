"""The host's weight adapters beside layers: output + adapter(input), the layer's own weight untouched.

The host's own bypass exchanges a layer's forward and puts it back in the order it was taken, so that of two on one
layer one stays behind. Forward hooks come off in any order.
"""

from collections.abc import Callable, Mapping

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import PatcherInjection
from comfy.weight_adapter import WeightAdapterBase, WeightAdapterTrainBase
from comfy.weight_adapter.bypass import BypassForwardHook
from torch import Tensor, nn
from torch.nn.functional import dropout

Adapter = WeightAdapterBase | WeightAdapterTrainBase


class AdapterHooks:
    """Adapters by their layers, on and off."""

    def __init__(self, adapters: Mapping[nn.Module, Adapter], strength: float = 1.0, dropout: float = 0.0) -> None:
        """dropout: share of an adapter's inputs that are left out, for training."""
        self._adapters, self._dropout = dict(adapters), dropout
        self._own = {one: one.weights for one in self._adapters.values() if not isinstance(one, nn.Module)}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        for layer, adapter in self._adapters.items():
            # Tells the adapter its strength and whether the layer is a convolution.
            BypassForwardHook(layer, adapter, multiplier=strength)

    def attach(self, device: torch.device) -> None:
        for layer, adapter in self._adapters.items():
            if isinstance(adapter, nn.Module):
                adapter.to(device)
            else:
                adapter.weights = tuple(
                    weight.to(device) if isinstance(weight, Tensor) else weight for weight in adapter.weights
                )
            self._handles.append(layer.register_forward_hook(_add(adapter, self._dropout)))

    def remove(self) -> None:
        """Takes them off, and what was copied to the device with them."""
        while self._handles:
            self._handles.pop().remove()
        for adapter, weights in self._own.items():
            adapter.weights = weights


def _add(adapter: Adapter, share: float) -> Callable[..., Tensor]:
    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = dropout(args[0], share) if share else args[0]
        # Adapters in training are fp32 whatever the layer computes in.
        with torch.autocast(x.device.type, x.dtype, enabled=x.dtype != torch.float32):
            return adapter.g(output + adapter.h(x, output).to(output.dtype))

    return hook


def inject(model: ModelPatcher, adapters: Mapping[nn.Module, Adapter], strength: float) -> None:
    """Has the host attach them whenever it loads this model, and remove them with it."""
    hooks = AdapterHooks(adapters, strength)
    injection = PatcherInjection(
        inject=lambda patcher: hooks.attach(patcher.load_device), eject=lambda patcher: hooks.remove()
    )
    # A key of its own for each: the host keeps one list a key.
    model.set_injections(f"inlay_adapters_{len(model.injections)}", [injection])
