"""Random weights in the place of the trained ones."""

import pytest
import torch


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory):
    """A folder of every part with seeded random weights."""
    from inlay.demo import weights
    from inlay.demo.judge import Judge
    from inlay.demo.training.clip import Vocabulary
    from inlay.host import demo_models as build

    def under(prefix, state):
        return {f"{prefix}{name}": value for name, value in state.items()}

    ids = Vocabulary().ids
    text = build.build_bare_text_encoder(seed=4).state_dict()
    text[build.TOKEN_TABLE] = text[build.TOKEN_TABLE][ids]
    torch.manual_seed(0)
    projection = torch.nn.Sequential(torch.nn.LayerNorm(128), torch.nn.Linear(128, 128)).state_dict()
    inpaint = {**under("unet.net.", build.build_unet(9, seed=3).state_dict()), **under("projection.", projection)}
    parts = {
        "vae": build.build_autoencoder(seed=5).state_dict(),
        "clip": {
            **under("text.", text),
            **under("vision.", build.build_bare_vision(seed=6).state_dict()),
            "token_ids": ids.to(torch.int32),
        },
        "judge": Judge().state_dict(),
        "unet": build.build_unet(4, seed=1).state_dict(),
        "inpaint": {**inpaint, "null": torch.randn(1, 1, 128)},
    }
    folder = tmp_path_factory.mktemp("weights")
    before, weights.FOLDER = weights.FOLDER, folder
    try:
        for part, tensors in parts.items():
            weights.save_part(part, tensors, {"part": part})
    finally:
        weights.FOLDER = before
    return folder


@pytest.fixture
def random_world(random_weights, monkeypatch):
    """The demo world on random weights, within one test."""
    from inlay.demo import weights

    monkeypatch.setattr(weights, "FOLDER", random_weights)
