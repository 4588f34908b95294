"""The node that guides by style as the executor runs it, its modes and a style picture."""

import pytest
import torch
from inlay.host.style_guidance_patch import StyleOptions
from inlay.nodes.style_guidance import StyleGuidance

from .gradient_guidance_setup import MASK

MODES = pytest.mark.parametrize("mode", ["fast", "exact"])
STYLE = torch.rand(1, 64, 80, 3, generator=torch.Generator().manual_seed(3)) ** 3


def execute(models, style=STYLE, mask=MASK, model=None, **widgets):
    widgets = {**vars(StyleOptions()), "feature_size": 64, **widgets}
    with torch.inference_mode():
        return StyleGuidance.execute(
            model or models.model, models.vae, style, mask, models.clip_vision, **widgets
        ).args[0]
