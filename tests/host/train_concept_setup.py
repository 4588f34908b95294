"""A concept learned in two quick steps, as the executor runs it, into empty folders."""

import comfy.utils
import folder_paths
import pytest
import torch
from inlay.host import concept_preview
from inlay.host.concept_training import learn_concept
from inlay.training.concept import ConceptSettings

HEIGHT, WIDTH = 36, 44
PAIR = torch.rand(2, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
IMAGES = PAIR[:1]
QUICK = {"steps": 2, "accumulation": 1, "tokens": 3, "preview_every": 0}


@pytest.fixture(name="short_samples", autouse=True)
def fixture_short_samples(monkeypatch):
    monkeypatch.setattr(concept_preview, "PREVIEW_STEPS", 1)


@pytest.fixture(name="folder")
def fixture_folder(tmp_path, monkeypatch):
    """Empty folders for embeddings and outputs."""
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "embeddings", ([str(tmp_path / "embeddings")], {".safetensors"})
    )
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path


@pytest.fixture(name="learn")
def fixture_learn(tiny, folder):
    """learn(name, model=, clip=, vae=, images=, masks=, if_exists=, sentence=, **settings), as the executor runs it."""

    def run(name="cat", images=IMAGES, masks=None, if_exists="number", sentence="{}", **settings):
        parts = [settings.pop(part, getattr(tiny, part)) for part in ("model", "clip", "vae")]
        with torch.inference_mode():
            settings = ConceptSettings(**{**QUICK, **settings})
            return learn_concept(*parts, images, name, settings, if_exists, masks, sentence)

    return run


def saved(learned):
    return comfy.utils.load_torch_file(learned.path)
