"""What the paint job can be told."""

from dataclasses import dataclass

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..guidance.samplers import SAMPLERS

SAMPLER_NAMES = [*SAMPLERS, *(name for name in comfy.samplers.SAMPLER_NAMES if name not in SAMPLERS)]
SCHEDULER_NAMES = list(comfy.samplers.SCHEDULER_NAMES)
TUNED = "decoder tuning"
PASTES = ("feather", "exact", "none", TUNED)


@dataclass(frozen=True)
class PaintSettings:
    """What the paint job does. background: inverted, renoised, fixed or none. sampler: guidance.samplers.SAMPLERS or
    any of the host's. repeats: of each step (ours only). paste: one of PASTES; feather: pixels. at_once: candidates in
    one batch, 0 for as many as fit. eta: ddim's, 0 to 1. progressive: stages of a mask that shrinks to itself, 0: none.
    start: what lies under the noise in the mask where sampling begins at the model's highest level, one of
    guidance.start.STARTS.
    """

    steps: int = 30
    cfg: float = 5.0
    seed: int = 0
    candidates: int = 1
    background: str = "inverted"
    sampler: str = "ddim"
    scheduler: str = "normal"
    denoise: float = 1.0
    repeats: int = 1
    inversion_steps: int = 50
    paste: str = "feather"
    feather: int = 4
    colour_match: str = "none"
    at_once: int = 0
    eta: float = 0.0
    progressive: int = 0
    start: str = "surroundings"


def schedule(model: ModelPatcher, settings: PaintSettings) -> Tensor:
    """The sigmas that the host's KSampler would take, (n + 1,) descending."""
    sampler = comfy.samplers.KSampler(
        model, settings.steps, model.load_device, settings.sampler, settings.scheduler, settings.denoise
    )
    return sampler.sigmas.cpu()
