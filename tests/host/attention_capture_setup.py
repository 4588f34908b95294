"""What the tests of attention share: a latent, a text, and what every attention's own layers put out."""

import pytest
import torch
from inlay.host.unet_blocks import transformer_blocks


@pytest.fixture(name="latent", scope="module")
def fixture_latent():
    return 5 * torch.randn(1, 4, 16, 18, generator=torch.Generator().manual_seed(1))


@pytest.fixture(name="text", scope="module")
def fixture_text(encode):
    return encode("a red star on a beach")


def projections(model, run):
    """What every attention's own to_q and to_k put out during `run`: {(kind, key): (q, k)}."""
    seen, hooks = {}, []
    for key, block in transformer_blocks(model.model.diffusion_model).items():
        for kind, attention in (("self", block.attn1), ("cross", block.attn2)):
            for index, layer in enumerate((attention.to_q, attention.to_k)):
                slot = seen.setdefault((kind, key), [None, None])
                hooks.append(layer.register_forward_hook(lambda *a, s=slot, i=index: s.__setitem__(i, a[2].clone())))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen
