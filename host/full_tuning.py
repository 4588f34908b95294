"""Full fine-tuning of a UNet on a subject: every weight learns. What a LoRA is measured against; no node offers it."""

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..training.subject_settings import SubjectSettings
from .subject_job import SubjectJob
from .subject_telling import Teller
from .subject_training import Photos


class TrainableWeights:
    """fp32 copies of a UNet's weights, in their places while they are trained. parameters: by the host's keys."""

    def __init__(self, model: ModelPatcher) -> None:
        with torch.inference_mode(False):
            self._before = {
                f"diffusion_model.{name}": weight.detach().float().cpu().clone()
                for name, weight in model.model.diffusion_model.named_parameters()
            }
            self.parameters = {key: nn.Parameter(weight.clone()) for key, weight in self._before.items()}

    def to(self, device: torch.device) -> None:
        for parameter in self.parameters.values():
            parameter.data = parameter.data.to(device)

    @contextmanager
    def attached(self, network: nn.Module, device: torch.device) -> Iterator[None]:
        """In the place of the loaded model's own, which come back afterwards."""
        places = {key: _place(network, key) for key in self.parameters}
        own = {key: module._parameters[name] for key, (module, name) in places.items()}
        try:
            for key, (module, name) in places.items():
                module._parameters[name] = self.parameters[key]
            yield
        finally:
            for key, (module, name) in places.items():
                module._parameters[name] = own[key]

    def tensors(self) -> dict[str, Tensor]:
        return {key: value.detach().cpu().clone() for key, value in self.parameters.items()}

    def changes(self) -> dict[str, Tensor]:
        return {key: value - self._before[key] for key, value in self.tensors().items()}


def tune_whole(
    model: ModelPatcher, vae: comfy.sd.VAE, photos: Photos, settings: SubjectSettings, teller: Teller
) -> tuple[ModelPatcher, dict[str, Tensor]]:
    """A clone of the model with every weight tuned, and these weights. Nothing is written."""
    weights = TrainableWeights(model)
    SubjectJob(model, vae, photos, "whole", settings, teller, weights).run()
    tuned = model.clone()
    tuned.add_patches({key: ("diff", (change,)) for key, change in weights.changes().items()})
    return tuned, weights.tensors()


def _place(network: nn.Module, key: str) -> tuple[nn.Module, str]:
    path, _, name = key.rpartition(".")
    return network.get_submodule(path), name
