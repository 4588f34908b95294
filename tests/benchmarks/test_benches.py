"""The benches from end to end: on the tiny models, and on a shallow UNet of full width."""

import json
from types import SimpleNamespace

import inlay.benchmarks as benchmarks
from inlay.benchmarks import arg, demo
from inlay.benchmarks.timing import Comparison
from inlay.host import demo_models as build


def tiny_unet(depth, dtype):
    return build.build_model(build.build_unet(4, seed=1).state_dict())


def test_arg_rows(monkeypatch):
    import torch

    monkeypatch.setattr(arg, "sd15", tiny_unet)
    monkeypatch.setattr(arg, "TEXT_WIDTH", 128)
    seen, watch = [], arg.watch_attention
    monkeypatch.setattr(arg, "watch_attention", lambda model, layers, _: watch(model, layers, seen.append))
    rows = list(arg.run(arg.Scale(8, 1, torch.float32, 1, 2)))
    assert [row.name for row in rows] == ["arg-step", "arg-step, outside null", "capture", "inversion"]
    assert all(row.ours_s > 0 and row.reference_s > 0 and row.ratio > 0 for row in rows)
    # Both kinds of attention of every layer were really read: 7 runs of 1 step each.
    layers = {(one.kind, one.layer) for one in seen}
    assert len(seen) == 7 * len(layers) and {kind for kind, _ in layers} == {"self", "cross"}


def test_demo_rows(tiny, monkeypatch):
    monkeypatch.setattr(demo, "STEPS", 2)
    monkeypatch.setattr(demo, "INVERSION_STEPS", 2)
    (row,) = demo.run(SimpleNamespace(model=tiny.model, clip=tiny.clip, vae=tiny.vae))
    assert row.name == "job" and row.ratio > 0


def test_the_last_line_is_the_report(monkeypatch, capsys):
    row = Comparison("job", 2.0, 1.0, 2.0, 10, 5, "note")
    monkeypatch.setattr(demo, "run", lambda: [row])
    assert benchmarks.main(["demo"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(report) == {"bench", "machine", "rows"} and report["bench"] == "demo"
    assert report["rows"] == [row.row()]


def test_an_unknown_bench_is_one_sentence(capsys):
    assert benchmarks.main(["colour"]) == 1
    known = ", ".join(benchmarks.MODULES)
    assert capsys.readouterr().err == f"dev.py bench: There is no bench 'colour': choose one of {known}.\n"
