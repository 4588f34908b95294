"""The rows of bench `blend` on the tiny models."""

from inlay.benchmarks import blend
from inlay.host.blending import BlendModels


def test_rows(tiny, monkeypatch):
    monkeypatch.setattr(blend, "STEPS", 1)
    monkeypatch.setattr(blend, "CANDIDATES", 2)
    monkeypatch.setattr(blend, "FAST", blend.replace(blend.FAST, augmentations=0))
    compared = []
    real = blend.compare

    def once(name, ours, reference, **options):
        images, _ = ours()
        compared.append((name, len(images)))
        return real(name, ours, reference, **options) if name == "blend-8" else None

    monkeypatch.setattr(blend, "compare", once)
    rows = list(blend.run(BlendModels(tiny.model, tiny.clip, tiny.vae, tiny.clip_vision)))
    assert rows[0].name == "blend-8" and rows[0].ratio > 0
    assert compared == [
        ("blend-8", 2),
        ("blend-8, place", 2),
        ("blend-8, exact", 2),
        ("blend-8, exact, one at a time", 2),
        ("memory by batch", 2),
        ("memory by steps", 1),
    ]
