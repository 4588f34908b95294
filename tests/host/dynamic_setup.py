"""The host's dynamic patcher on a CPU: all of it but the graphics memory that it keeps weights in."""

import torch
from comfy.model_patcher import ModelPatcherDynamic
from torch import nn


class NotCopied:
    """Stands for an address in the host's own buffers."""

    def __deepcopy__(self, memo):
        raise AssertionError("a buffer of the host's was copied")


class DynamicOnCpu(ModelPatcherDynamic):
    """Without a graphics card the host makes an ordinary patcher in its place, and has no buffers for the weights."""

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def register_load_device(self, device):
        pins = {name: (NotCopied(), [], [-1], [0], [0], {}) for name in ("weights", "patches")}
        pins |= {f"{name}-loaded": value for name, value in pins.items()}
        pins |= {"hostbufs_initialized": True, "failed": False, "active": False, "current_prompt": False}
        self.model.dynamic_pins.setdefault(device, pins)


def load_dynamically(net: nn.Module) -> DynamicOnCpu:
    """A patcher over the net, loaded and used once by the executor."""
    cpu = torch.device("cpu")
    with torch.inference_mode():
        for module in net.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    module._parameters[name] = nn.Parameter(weight.clone(), requires_grad=False)
        patcher = DynamicOnCpu(net, cpu, cpu)
        patcher.partially_load(cpu)
        for module in net.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                # What the first cast into the card's memory leaves on a layer.
                module._v, module._v_signature = NotCopied(), NotCopied()
                module._v_weight = module.weight.clone()
    return patcher
