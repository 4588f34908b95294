"""Region guidance at the width of SD1.5, SD2.1-v and SDXL, random weights, one step each."""

import pytest
import torch
from inlay.host.region_patches import Region, guide_region

from ..full_size import conditioning, sd15, sd21_v, sdxl

HALF = torch.zeros(128, 128)
HALF[30:90, 20:100] = 1


@pytest.mark.full_size
@pytest.mark.parametrize(
    ("build", "width", "blocks"), [(sd15, 768, 16), (sd21_v, 1024, 16), (lambda: sdxl(depth=2), 2048, 22)]
)
def test_a_step_of_the_full_width(sample, build, width, blocks):
    from inlay.host.unet_blocks import transformer_blocks

    model = build()
    assert len(transformer_blocks(model.model.diffusion_model)) == blocks

    def step(model):
        return sample(model, conditioning(width, 1), conditioning(width, 2), steps=1, size=(16, 16))

    plain, guided = step(model), step(guide_region(model, [Region(HALF, conditioning(width, 3)[0][0])]))
    assert guided.isfinite().all()
    assert (guided - plain).norm() > 1e-3 * plain.norm()
    assert torch.equal(step(guide_region(model, [Region(torch.ones(128, 128))])), plain)
