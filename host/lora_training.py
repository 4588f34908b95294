"""The host's LoRA adapters on a UNet's attention, to be trained: h = W0 x + alpha / r B A x (eq. 7), B = 0 at first."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import adapter_maps
from torch import Tensor, nn

from .adapter_hooks import AdapterHooks
from .lora_files import ALPHA, DOWN, UP, kohya_names, weight_shapes

_SELF = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
# One context token makes the softmax of cross-attention 1: its queries and keys would get no gradient.
_ONE_TOKEN = (*_SELF, "attn2.to_v", "attn2.to_out.0")
_ATTENTION = (*_ONE_TOKEN, "attn2.to_q", "attn2.to_k")
TARGETS: dict[str, tuple[str, ...]] = {
    "self-attention": _SELF,
    "one token": _ONE_TOKEN,
    "attention": _ATTENTION,
    "attention and feed-forward": (*_ATTENTION, "ff.net.0.proj", "ff.net.2"),
}


def target_weights(model: ModelPatcher, targets: str) -> dict[str, tuple[int, int]]:
    """Weight key to shape (out, in) of the layers in every transformer block. Raises ValueError without any."""
    endings = tuple(f".{ending}.weight" for ending in TARGETS[targets])
    found = {
        key: (shape[0], shape[1])
        for key, shape in weight_shapes(model).items()
        if ".transformer_blocks." in key and key.endswith(endings)
    }
    if not found:
        raise ValueError(
            f"{type(model.model).__name__} has no cross-attention blocks to train. Use an SD1.x, SD2.x or SDXL model."
        )
    return found


class TrainableLora:
    """One adapter a layer. parameters: by kohya's keys, fp32, down Kaiming-uniform and up 0."""

    def __init__(self, model: ModelPatcher, targets: str, rank: int, alpha: float, dropout: float, seed: int) -> None:
        """Raises ValueError for a rank larger than one of the layers."""
        shapes = target_weights(model, targets)
        smallest, at = min((min(shape), key) for key, shape in shapes.items())
        if rank > smallest:
            raise ValueError(
                f"Rank {rank} is larger than the layer {at.removesuffix('.weight')}, which is {shapes[at][0]} x "
                f"{shapes[at][1]}. Choose at most {smallest}."
            )
        self.dropout, self.alpha = dropout, alpha
        self._names = kohya_names(model, list(shapes))
        self._adapters: dict[str, nn.Module] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        generator = torch.Generator().manual_seed(seed % 2**63)
        with torch.inference_mode(False), torch.no_grad():
            for key, (rows, columns) in shapes.items():
                adapter = adapter_maps["LoRA"].create_train(torch.empty(rows, columns), rank=rank, alpha=alpha)
                bound = columns**-0.5
                adapter.lora_down.weight.uniform_(-bound, bound, generator=generator)
                adapter.lora_up.weight.zero_()
                self._adapters[key] = adapter
                self.parameters[self._names[key] + UP] = adapter.lora_up.weight.requires_grad_()
                self.parameters[self._names[key] + DOWN] = adapter.lora_down.weight.requires_grad_()

    def to(self, device: torch.device) -> None:
        for adapter in self._adapters.values():
            adapter.to(device)

    @contextmanager
    def attached(self, network: nn.Module, device: torch.device) -> Iterator[None]:
        """Beside the layers of the host's loaded model, whichever clone of it runs."""
        layers = {network.get_submodule(key.removesuffix(".weight")): one for key, one in self._adapters.items()}
        hooks = AdapterHooks(layers, dropout=self.dropout)
        try:
            hooks.attach(device)
            yield
        finally:
            hooks.remove()

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds."""
        tensors = {key: value.detach().cpu().clone() for key, value in self.parameters.items()}
        return tensors | {name + ALPHA: torch.tensor(float(self.alpha)) for name in self._names.values()}


def count_parameters(parameters: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in parameters.values())
