"""The bench `concept`: both sides do the same, and every part of the speed-up has a row."""

from types import SimpleNamespace

import pytest
import torch
from inlay.benchmarks import concept
from inlay.benchmarks.timing import Comparison
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
    rows = list(concept.run(models))
    assert [row.name for row in rows][:2] == ["concept-step", "concept-step, one by one"]
    assert sum(row.name.startswith("part: ") for row in rows) == 3
    assert all("1 against 0.5 updates a second" in row.note for row in rows)
