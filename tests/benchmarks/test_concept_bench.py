"""The bench `concept`: both sides do the same, and every part of the speed-up has a row."""

from types import SimpleNamespace

import pytest
import torch
from inlay.benchmarks import concept
from inlay.benchmarks.timing import Comparison
from inlay.host import demo_models as build
from inlay.host.concept_text import ConceptText

IMAGE = torch.rand(1, 32, 40, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def models(tiny, monkeypatch):
    monkeypatch.setattr(concept, "STEPS", 2)
    monkeypatch.setattr(concept, "ACCUMULATION", 2)
    return SimpleNamespace(model=tiny.model, clip=tiny.clip, vae=tiny.vae)


def test_the_straight_loop_learns_what_inlay_learns(models):
    start = ConceptText(models.clip).start(concept.TOKENS, "", concept.SEED)["clip_l"]
    loops = [concept.Straight(models, IMAGE, 2, *done) for done in ((False, False), (True, False), (True, True))]
    learned = [loop() for loop in loops]
    moved = (learned[0] - start).norm()
    assert moved > 0
    for other in learned[1:]:
        assert (other - learned[0]).norm() < 1e-2 * moved
    theirs = ConceptText(models.clip).conditioning({"clip_l": learned[0]})[0][0]
    before = ConceptText(models.clip).conditioning({"clip_l": start})[0][0]
    (ours,) = (text for step, text in concept.learn(models, IMAGE, 2).items() if step == 2)
    assert (ours[0][0] - theirs).norm() < 1e-2 * (before - theirs).norm()


def test_rows(models, monkeypatch):
    def once(name, ours, reference, *, note):
        ours(), reference()
        return Comparison(name, 1.0, 2.0, 0.5, 1, 1, note)

    monkeypatch.setattr(concept, "compare", once)
    monkeypatch.setattr(concept, "STEPS", 1)
    monkeypatch.setattr(concept, "ACCUMULATION", 1)
    rows = list(concept.run(concept.Scale(models, IMAGE, "tiny nets")))
    assert [row.name for row in rows][:2] == ["concept-step", "concept-step, one by one"]
    assert sum(row.name.startswith("part: ") for row in rows) == 3
    assert all("1 against 0.5 updates a second" in row.note and "32 x 40 pixels, tiny nets" in row.note for row in rows)


def test_the_straight_loop_computes_in_the_type_that_the_unet_has(models):
    models.model = build.build_model(build.build_unet(4, seed=1).state_dict())
    models.model.model.diffusion_model.to(torch.bfloat16).dtype = torch.bfloat16
    assert models.model.model_dtype() == torch.bfloat16
    assert concept.Straight(models, IMAGE, 1)().isfinite().all()


@pytest.mark.full_size
def test_the_size_of_sd15(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    scale = concept.scale_here()
    monkeypatch.undo()
    models, image = scale.models, scale.image[:, :128, :128]
    monkeypatch.setattr(concept, "ACCUMULATION", 1)
    assert concept.Straight(models, image, 1)().shape == (concept.TOKENS, 768)
    assert list(concept.learn(models, image, 1, objective="saliency focus", mask_source="self-attention")) == [1]
