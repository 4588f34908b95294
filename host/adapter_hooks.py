"""The host's weight adapters beside layers: output + adapter(input), the layer's own weight untouched.

The host's own bypass exchanges a layer's forward and puts it back in the order it was taken, so that of two on one
layer one stays behind. Forward hooks come off in any order.
"""

import copy
from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

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
        self._adapters, self._strength, self._dropout = dict(adapters), strength, dropout
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self, device: torch.device) -> None:
        for layer, adapter in self._adapters.items():
            on_device = _moved(adapter, device)
            # Tells the adapter its strength and whether the layer is a convolution.
            BypassForwardHook(layer, on_device, multiplier=self._strength)
            self._handles.append(layer.register_forward_hook(_add(on_device, self._dropout)))

    def remove(self) -> None:
        """Takes them off, and what was copied to the device with them."""
        while self._handles:
            self._handles.pop().remove()


def _moved(adapter: Adapter, device: torch.device) -> Adapter:
    """What is trained goes there itself; of what is only used a copy, because several models may share it."""
    if isinstance(adapter, nn.Module):
        return adapter.to(device)
    moved = copy.copy(adapter)
    moved.weights = tuple(weight.to(device) if isinstance(weight, Tensor) else weight for weight in adapter.weights)
    return moved


def _add(adapter: Adapter, share: float) -> Callable[..., Tensor]:
    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = dropout(args[0], share) if share else args[0]
        # Adapters in training are fp32 whatever the layer computes in.
        with torch.autocast(x.device.type, x.dtype, enabled=x.dtype != torch.float32):
            return adapter.g(output + adapter.h(x, output).to(output.dtype))

    return hook


class AdapterInjection(PatcherInjection):
    """Adapters that the host attaches whenever it loads a model, and removes with it. adapters: by layers' names."""

    def __init__(self, adapters: Mapping[str, Adapter], strength: float) -> None:
        super().__init__(inject=self._attach, eject=self._remove)
        self.adapters, self.strength = dict(adapters), strength
        # Clones share this injection, and one of them may run on a copy of the model.
        self._attached: WeakKeyDictionary[nn.Module, AdapterHooks] = WeakKeyDictionary()

    def _attach(self, patcher: ModelPatcher) -> None:
        self._remove(patcher)
        layers = {patcher.model.get_submodule(name): adapter for name, adapter in self.adapters.items()}
        self._attached[patcher.model] = hooks = AdapterHooks(layers, self.strength)
        hooks.attach(patcher.load_device)

    def _remove(self, patcher: ModelPatcher) -> None:
        if (hooks := self._attached.pop(patcher.model, None)) is not None:
            hooks.remove()


def inject(model: ModelPatcher, adapters: Mapping[str, Adapter], strength: float) -> None:
    """Has the host attach them whenever it loads this model or a copy of it. adapters: by layers' names."""
    # A key of its own for each: the host keeps one list a key.
    model.set_injections(f"inlay_adapters_{len(model.injections)}", [AdapterInjection(adapters, strength)])
