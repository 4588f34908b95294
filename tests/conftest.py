"""The checkout as the package `inlay`, inside a real ComfyUI in this process, on the CPU."""

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
COMFYUI = Path(os.environ.get("INLAY_COMFYUI", ROOT / ".host" / "ComfyUI-0.30.0"))


def _import_pack() -> None:
    # Not through sys.path: the pack's `nodes` would hide the host's.
    spec = importlib.util.spec_from_file_location("inlay", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["inlay"] = module
    spec.loader.exec_module(module)


def pytest_configure(config: pytest.Config) -> None:
    _import_pack()
    from inlay.host.boot import boot

    folder = tempfile.TemporaryDirectory(prefix="inlay-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    boot(COMFYUI, base_directory=Path(folder.name), cpu=True)
    # Nets this small lose more to the threads' hand-over than they gain.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """Random-weight models of the demo world's shapes: model, v_model, inpaint_model, clip, vae, clip_vision."""
    from inlay.host import demo_models as build

    return SimpleNamespace(
        model=build.build_model(build.build_unet(4, seed=1).state_dict()),
        v_model=build.build_model(build.build_unet(4, seed=2).state_dict(), prediction="v"),
        inpaint_model=build.build_model(build.build_unet(9, seed=3).state_dict()),
        clip=build.build_text_encoder(build.build_bare_text_encoder(seed=4).state_dict()),
        vae=build.build_vae(build.build_autoencoder(seed=5).state_dict()),
        clip_vision=build.build_vision(build.build_bare_vision(seed=6).state_dict()),
    )


@pytest.fixture(scope="session")
def encode(tiny: SimpleNamespace) -> Callable[[str], list]:
    """Text to the host's CONDITIONING with the tiny text encoder."""
    with torch.no_grad():
        return lambda text: tiny.clip.encode_from_tokens_scheduled(tiny.clip.tokenize(text))


@pytest.fixture(scope="session")
def sample(tiny: SimpleNamespace, encode: Callable[[str], list]) -> Callable[..., torch.Tensor]:
    """sample(model, positive=, negative=, steps=4, cfg=5, size=(16, 18), batch=1, sampler="euler") -> latent."""
    import comfy.sample

    def run(model, positive=None, negative=None, steps=4, cfg=5.0, size=(16, 18), batch=1, sampler="euler", seed=0):
        positive = encode("a red star on a beach") if positive is None else positive
        negative = encode("") if negative is None else negative
        latent = torch.zeros(batch, 4, *size)
        noise = comfy.sample.prepare_noise(latent, seed)
        with torch.no_grad():
            return comfy.sample.sample(
                model, noise, steps, cfg, sampler, "normal", positive, negative, latent, disable_pbar=True, seed=seed
            )

    return run


@pytest.fixture(autouse=True)
def _no_inference_leak() -> Iterator[None]:
    yield
    assert not torch.is_inference_mode_enabled()
