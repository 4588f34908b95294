"""A dynamic patcher's model in ordinary modules, whose weights stay in memory from a forward to its backward."""

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

# What dynamic loading hangs into modules: addresses in its own buffers, of which there can be no copy.
_OF_LOADING = frozenset(
    "_v _v_weight _v_bias _v_signature _pins _pin_state _prefetch weight_lowvram_function bias_lowvram_function "
    "dynamic_vbars dynamic_pins dynamic_patchers current_weight_patches_uuid model_loaded_weight_memory".split()
)
# The same, which a module has to have.
_EMPTIED: dict[str, Any] = {"weight_function": [], "bias_function": [], "current_patcher": None}

# By the source's model, for as long as a clone holds it.
_MADE: weakref.WeakKeyDictionary[nn.Module, weakref.ref[ModelPatcher]] = weakref.WeakKeyDictionary()


def static_clone(patcher: ModelPatcher) -> ModelPatcher:
    """A clone over a copy of the model, which all clones of one model share. For dynamic patchers only."""
    made = _MADE.get(patcher.model)
    base = None if made is None else made()
    with torch.inference_mode(False):
        if base is None:
            # A loader's own way to load again is the host's; not every loader has one.
            net = _reloaded(patcher) if patcher.cached_patcher_init is not None else _copied(patcher)
            _settle_types(net)
            base = ModelPatcher(net, patcher.load_device, patcher.offload_device)
            _MADE[patcher.model] = weakref.ref(base)
        clone = _of_own_modules(patcher.clone(disable_dynamic=True, model_override=base.get_clone_model_override()))
    # When a loaded patcher goes, the host keeps its model loaded for the parent: that has to be one of this model.
    clone.parent = base
    return clone


def _of_own_modules(clone: ModelPatcher) -> ModelPatcher:
    """Without what the host handed on of its source's modules."""
    clone.is_injected, clone.hook_backup, clone.size = False, {}, 0
    return clone


def _reloaded(patcher: ModelPatcher) -> nn.Module:
    return _of_own_modules(patcher.clone(disable_dynamic=True)).model


def _copied(patcher: ModelPatcher) -> nn.Module:
    """The model as its loader left it, whatever is loaded and patched now."""
    kept = {key: backup.weight for key, backup in patcher.backup.items()} | getattr(patcher, "backup_buffers", {})
    with _own_objects(patcher):
        left_out = []
        for module in patcher.model.modules():
            left_out += [value for name, value in vars(module).items() if name in _OF_LOADING or name in _EMPTIED]
        # Numbers are shared with what stays.
        memo: dict[int, Any] = {id(value): None for value in left_out if not isinstance(value, (int, float))}
        # The host's configurations answer to every name, __setstate__ too, and cannot be copied.
        config = getattr(patcher.model, "model_config", None)
        memo[id(config)] = config
        for named in (patcher.model.named_parameters, patcher.model.named_buffers):
            for key, weight in named(remove_duplicate=False):
                memo[id(weight)] = _own(kept.get(key, weight), isinstance(weight, nn.Parameter), patcher.offload_device)
        net = copy.deepcopy(patcher.model, memo)
    for module in net.modules():
        state = vars(module)
        for name in _OF_LOADING & state.keys():
            del state[name]
        state |= {name: copy.copy(value) for name, value in _EMPTIED.items() if name in state}
    net.device = patcher.offload_device
    return net


@contextmanager
def _own_objects(patcher: ModelPatcher) -> Iterator[None]:
    """The model without the objects that patches have in the place of its own."""
    model = patcher.model
    patched = {key: comfy.utils.set_attr(model, key, value) for key, value in patcher.object_patches_backup.items()}
    try:
        yield
    finally:
        for key, value in patched.items():
            comfy.utils.set_attr(model, key, value)


def _own(weight: Tensor, parameter: bool, device: torch.device) -> Tensor:
    if weight.is_meta:
        # What the file has no value for is 0 to the host.
        weight = torch.zeros_like(weight, device=device)
    weight = weight.detach().clone().to(device)
    return nn.Parameter(weight, requires_grad=False) if parameter else weight


def _settle_types(net: nn.Module) -> None:
    """Weights in the types that the model computes in: dynamic loading leaves the file's and casts at each use."""
    for module in net.modules():
        for weights in (module._parameters, module._buffers):
            for name, weight in weights.items():
                wanted = getattr(module, f"{name}_comfy_model_dtype", None)
                # A quantised weight has a type of its own.
                if wanted is None or type(weight) not in (Tensor, nn.Parameter) or weight.dtype == wanted:
                    continue
                cast = weight.detach().to(wanted)
                weights[name] = nn.Parameter(cast, requires_grad=False) if isinstance(weight, nn.Parameter) else cast
