"""Progress bar, live preview and cancel for long runs."""

from collections.abc import Callable

import comfy.model_management
import latent_preview
from comfy.model_patcher import ModelPatcher
from torch import Tensor


def steps_progress(model: ModelPatcher, total: int) -> Callable[[int, Tensor, Tensor, int], None]:
    """The host's sampling callback (step, x0, x, total): shows x0 and lets a pressed Cancel end the run."""
    show = latent_preview.prepare_callback(model, total)

    def after_step(step: int, denoised: Tensor, x: Tensor, steps: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        show(step, denoised, x, steps)

    return after_step
