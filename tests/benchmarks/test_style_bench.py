"""Bench `style` from end to end on the tiny models, with the preview decoder and VGG19 at their own widths."""

import torch
from inlay.benchmarks import style
from inlay.host import demo_models as build


def test_rows(tiny, monkeypatch):
    monkeypatch.setattr(style, "sd15", lambda **_: build.build_model(build.build_unet(4, seed=1).state_dict()))
    monkeypatch.setattr(style, "sd_vae", lambda: tiny.vae)
    monkeypatch.setattr(style, "TEXT_WIDTH", 128)
    monkeypatch.setattr(style, "compare", lambda name, ours, reference, note: (name, ours(), reference(), note))
    rows = list(style.run(style.Scale(8, None, torch.float32, 1)))
    assert [row[0] for row in rows] == ["style-fast", "style-exact", "style-fast, no small decoder"]
    plain = rows[0][2]
    for _, guided, reference, note in rows:
        # The weights are random, but each form reaches the picture and leaves the plain model as it was.
        assert torch.equal(reference, plain) and guided.isfinite().all()
        assert (guided - plain).norm() > 0.01 * plain.norm()
        assert float(note.split()[2].rstrip(":")) > 1


def test_what_is_counted():
    """A layer of 3 x 5 on 7 rows, and its way back to the input: 2 operations a multiplication."""
    weight, x = torch.rand(3, 5), torch.rand(7, 5)
    assert style.counted(lambda: x @ weight.T) == 2 * 7 * 5 * 3

    def forward_and_back():
        leaf = x.clone().requires_grad_()
        torch.autograd.grad((leaf @ weight.T).sum(), leaf)

    assert style.counted(forward_and_back) == 2 * 2 * 7 * 5 * 3
