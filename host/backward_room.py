"""Room for a backward pass, asked of the host before it loads a model."""

import math
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .guidance_memory import bytes_once, guidance_bytes

_KEY = "inlay_backward_room"


class _Room:
    def __init__(self, factor: int, whole: bool) -> None:
        self.factor, self.whole = factor, whole

    def __call__(self, executor, patcher, noise_shape, conds, *args: Any, **kwargs: Any) -> Any:
        if self.whole:
            kwargs["force_full_load"] = True
        rows, *shape = noise_shape
        # The host counts two rows for one, the text's and the negative's.
        kept = guidance_bytes(patcher, shape) + bytes_once(patcher) / rows
        told = 1 + kept / patcher.model.memory_required([2, *shape])
        return executor(patcher, [rows * max(self.factor, math.ceil(told)), *shape], conds, *args, **kwargs)


def make_room(model: ModelPatcher, factor: int, whole: bool) -> None:
    """Has the host reserve that many times a plain step's memory, in place, or what guidances tell if that is more.

    whole: and load all of the model. Who asks more than once shares one forward of the model, and gets the most that
    was asked.
    """
    asked = [_Room(factor, whole), *model.get_wrappers(WrappersMP.PREPARE_SAMPLING, _KEY)]
    model.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, _KEY)
    most = _Room(max(one.factor for one in asked), any(one.whole for one in asked))
    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, _KEY, most)


def load_whole(*patchers: ModelPatcher) -> None:
    """All of these on their devices together, for a loop of one's own."""
    comfy.model_management.load_models_gpu(patchers, force_full_load=True)
