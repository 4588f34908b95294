"""What the tests of CLIP's and style's guidance share: a mask, models, and looks at each prediction."""

from types import SimpleNamespace

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from inlay.host import demo_models as build
from inlay.host.gradient_guidance import Guidance

SIZE = (8, 10)
MASK = torch.zeros(1, 64, 80)
MASK[:, 15:50, 20:60] = 1


@pytest.fixture(name="loaded", scope="module")
def fixture_loaded():
    """Models as the host's loader nodes make them: of inference tensors."""
    with torch.inference_mode():
        return SimpleNamespace(
            model=build.build_model(build.build_unet(4, seed=1).state_dict()),
            vae=build.build_vae(build.build_autoencoder(seed=5).state_dict()),
            clip=build.build_text_encoder(build.build_bare_text_encoder(seed=4).state_dict()),
            clip_vision=build.build_vision(build.build_bare_vision(seed=6).state_dict()),
        )


@pytest.fixture(name="run")
def fixture_run(sample):
    """sample() as the executor runs it."""

    def sampled(model, **options):
        with torch.inference_mode():
            return sample(model, **{"steps": 2, "size": SIZE, **options})

    return sampled


def observed(model, look):
    """A clone that shows each prediction to look(executor, x, sigma, model_options, seed, denoised)."""
    model = model.clone()

    def wrap(executor, x, timestep, model_options=None, seed=None):
        denoised = executor(x, timestep, model_options, seed)
        look(executor, x, timestep, model_options, seed, denoised)
        return denoised

    # A wrapper added first is the outermost one.
    wrappers = model.wrappers.setdefault(WrappersMP.PREDICT_NOISE, {})
    model.wrappers[WrappersMP.PREDICT_NOISE] = {"test": [wrap], **wrappers}
    return model


def predictions(model, run, **options):
    """(x, sigma, denoised) of every prediction."""
    seen = []
    run(
        observed(model, lambda _, x, sigma, *rest: seen.append((x.clone(), sigma.clone(), rest[-1].clone()))), **options
    )
    return seen


def count_forwards(model):
    counted = []

    def count(executor, *args, **kwargs):
        counted.append(args[0].shape[0])
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    return model, counted


def find_loss(guided):
    """The ClipLoss inside the patch."""
    wrappers = next(iter(guided.wrappers[WrappersMP.PREDICT_NOISE].values()))
    cells = wrappers[0].__closure__
    return next(cell.cell_contents.loss for cell in cells if isinstance(cell.cell_contents, Guidance))
