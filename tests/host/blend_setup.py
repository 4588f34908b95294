"""The blend node as the page runs it, on a picture of 72 x 64 pixels with a box in it."""

import pytest
import torch
from inlay.nodes.blend import Blend

H, W = 64, 72
IMAGE = torch.rand(1, H, W, 3, generator=torch.Generator().manual_seed(0))
MASK = torch.zeros(1, H, W)
MASK[:, 16:35, 24:50] = 1
OUTSIDE = MASK[0] == 0
TEXT = "a red star"


def defaults(node, **given):
    """A node's widgets as the page sends them."""
    widgets = {socket.id: socket.default for socket in node.define_schema().inputs if hasattr(socket, "default")}
    return {name: value for name, value in widgets.items() if value is not None} | given


@pytest.fixture(name="blend", scope="module")
def fixture_blend(tiny):
    def run(image=IMAGE, mask=MASK, model=tiny.model, clip=tiny.clip, clip_vision=tiny.clip_vision, **given):
        few = {"text": TEXT, "steps": 2, "seed": 3, "candidates": 2, "keep": 0, "augmentations": 1}
        widgets = defaults(Blend, **{**few, **given})
        with torch.inference_mode():
            return Blend.execute(model, clip, tiny.vae, clip_vision, image, mask, **widgets).result

    return run
