"""The node that guides by CLIP as the executor runs it, and its modes."""

import pytest
import torch
from inlay.host.clip_guidance_patch import ClipOptions
from inlay.nodes.clip_guidance import ClipGuidance

from .gradient_guidance_setup import MASK

MODES = pytest.mark.parametrize("mode", ["fast", "place", "exact"])


def execute(models, mask=MASK, text="a red star", **widgets):
    widgets = {**vars(ClipOptions()), "augmentations": 1, **widgets}
    with torch.inference_mode():
        return ClipGuidance.execute(
            models.model, models.vae, models.clip_vision, mask, text, clip=models.clip, **widgets
        ).args[0]
