"""A latent, a mask and a trajectory for the background sampler, and a way to see what the model is given."""

import comfy.sample
import pytest
import torch
from inlay.host.inversion import invert_latent

LEVELS = torch.tensor([14.6146, 3.0, 0.8, 0.0])
SIZE = (16, 18)


@pytest.fixture(name="latent", scope="module")
def fixture_latent():
    return 5 * torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(name="mask", scope="module")
def fixture_mask():
    mask = torch.zeros(1, 128, 144)
    mask[:, 32:96, 40:104] = 1
    return mask


@pytest.fixture(name="cells", scope="module")
def fixture_cells(mask):
    return mask[:, None, ::8, ::8]


@pytest.fixture(name="trajectory", scope="module")
def fixture_trajectory(tiny, encode, latent):
    # Other levels than those sampled: matched by sigma, never by index.
    return invert_latent(tiny.model, latent, 128, 144, positive=encode(""), steps=5)[0]


@pytest.fixture(name="paint")
def fixture_paint(tiny, encode, latent):
    def run(sampler, model=None, batch=1, levels=LEVELS, noise=None, noise_mask=None, seed=0, start=latent, cfg=3.0):
        start = start.expand(batch, -1, -1, -1).clone()
        noise = comfy.sample.prepare_noise(start, seed) if noise is None else noise
        texts = encode("a red star on a beach"), encode("")
        options = {"noise_mask": noise_mask, "disable_pbar": True, "seed": seed}
        return comfy.sample.sample_custom(model or tiny.model, noise, cfg, sampler, levels, *texts, start, **options)

    return run


def recorded(model, seen):
    """The model's inputs by level, as seen by another pack's wrapper."""

    def wrapper(apply, args):
        seen.append((float(args["timestep"][0]), args["input"][: len(args["input"]) // len(args["cond_or_uncond"])]))
        return apply(args["input"], args["timestep"], **args["c"])

    spied = model.clone()
    spied.set_model_unet_function_wrapper(wrapper)
    return spied
