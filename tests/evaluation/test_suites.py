"""Every suite from end to end on random weights: what reports look like, resuming, and what holds of any weights."""

import json
import math
from pathlib import Path

import inlay.evaluation as evaluation
import pytest
from inlay.evaluation.spin_parts import AS_RETURNED
from inlay.evaluation.suites import MODULES, demo_models, load_suite, text_paint, text_paint_rows
from PIL import Image

SMALL = {"STEPS": 2, "INVERSION_STEPS": 2, "BATCH": 2}


@pytest.fixture
def small(random_world, monkeypatch, tmp_path):
    for module in (demo_models, text_paint_rows):
        for name, value in SMALL.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(text_paint, "BATCH", SMALL["BATCH"])
    monkeypatch.setattr(demo_models, "GROUP", 2)
    monkeypatch.setattr(evaluation, "REPORTS", tmp_path / "reports")
    return tmp_path


def evaluate(capsys, *arguments):
    assert evaluation.main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def check_schema(report, suite, seeds, expected_claims):
    assert set(report) == {"suite", "seeds", "machine", "seconds", "rows", "claims", "files"}
    assert report["suite"] == suite and report["seeds"] == seeds and report["seconds"] > 0
    for row in report["rows"]:
        for metric in set(row) - {"name", "n"}:
            cell = row[metric]
            assert math.isfinite(cell["mean"])
            if cell["ci95"] is not None:
                assert cell["ci95"][0] <= cell["mean"] + 1e-4 and cell["mean"] - 1e-4 <= cell["ci95"][1]
    assert [claim["id"] for claim in report["claims"]] == expected_claims
    assert all(set(claim) == {"id", "text", "value", "ci95", "holds"} for claim in report["claims"])


def test_text_paint(small, capsys):
    report = evaluate(capsys, "text-paint", "--seeds", 2, "--out", small)
    check_schema(
        report,
        "text-paint",
        2,
        ["background-exact", "arg-over-background", "arg-over-masked-output", "repeats-raise-agreement"],
    )
    rows = {row["name"]: row for row in report["rows"]}
    painted = (*text_paint.INLAY, *text_paint.REPEATED.values(), text_paint.AS_MANY)
    assert {text_paint.HOST, *painted} <= set(rows)
    # True of any weights: the paste is exact, and too few seeds decide nothing.
    assert rows[AS_RETURNED]["background exact"]["mean"] == 1
    assert [claim["holds"] for claim in report["claims"]] == [None] * 4
    folder = small / "text-paint" / "short"
    # The guidance reaches the pictures at all, and each form gives others.
    measured = json.loads((folder / "measured.jsonl").read_text().splitlines()[1])["measured"]
    scores = {row: values["tiny CLIP text"] for row, _, values in measured if row in text_paint.INLAY}
    assert len(set(scores.values())) == len(text_paint.INLAY)
    assert json.loads((folder / "report.json").read_text()) == report
    with Image.open(folder / "sheet.jpg") as sheet:
        assert sheet.width > sheet.height


def test_demo_models_resume_in_full(small, capsys, monkeypatch):
    arguments = ("demo-models", "--full", "--seeds", 2, "--out", small)
    expected = [claim.id for claim in demo_models.CLAIMS]
    first = evaluate(capsys, *arguments)
    check_schema(first, "demo-models", 2, expected)
    assert json.loads((small / "reports" / "demo-models.json").read_text()) == first
    assert (small / "reports" / "demo-models.jpg").exists()

    # Nothing is measured again, after a stop in the middle only what is missing.
    record = small / "demo-models" / "full" / "measured.jsonl"
    lines = record.read_text().splitlines()
    asked = []
    for name in ("_pictures", "_retrieval", "_one_object", "_two_objects", "_inversion", "_inpainting"):
        real = getattr(demo_models, name)
        monkeypatch.setattr(demo_models, name, lambda *args, real=real, name=name: asked.append(name) or real(*args))
    again = evaluate(capsys, *arguments)
    assert asked == [] and again == first
    record.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])
    repeated = evaluate(capsys, *arguments)
    assert asked == ["_inpainting"]
    assert repeated["rows"] == first["rows"]


def test_a_full_run_goes_on_elsewhere(small, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "UNFINISHED", small / "unfinished")
    monkeypatch.setattr(evaluation, "SHOWN", 2)
    here, there = (("demo-models", "--full", "--seeds", 4, "--out", small / name) for name in ("here", "there"))
    first = evaluate(capsys, *here)
    assert evaluation.main([str(argument) for argument in (*here, "--keep")]) == 0
    assert "demo-models.jsonl.gz: " in capsys.readouterr().err
    asked, real = [], demo_models._one_object
    monkeypatch.setattr(demo_models, "_one_object", lambda *args: asked.append(args[-1]) or real(*args))
    second = evaluate(capsys, *there)
    # The pictures of the sheet are made anew, the rest is taken as it was.
    first_seed = evaluation.SEEDS["held-out"]
    assert asked == [[first_seed, first_seed + 1]]
    assert second["rows"] == first["rows"]
    lines = [(small / name / "demo-models" / "full" / "measured.jsonl").read_text() for name in ("here", "there")]
    assert sorted(json.loads(line)["seeds"] for line in lines[0].splitlines()[1:]) == sorted(
        json.loads(line)["seeds"] for line in lines[1].splitlines()[1:]
    )


def test_new_weights_discard_only_what_was_measured_with_the_old(monkeypatch, tmp_path):
    from inlay.demo import weights

    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    for part in weights.PARTS:
        weights.weights_path(part).write_bytes(part.encode())
    suites = text_paint.SUITE, demo_models.SUITE
    before = [evaluation.fingerprint(suite) for suite in suites]
    assert len(before[0].split()) == 5 and len(before[1].split()) == 1 + len(weights.PARTS)
    for part, changed in (("inpaint", [False, True]), ("unet", [True, True])):
        weights.weights_path(part).write_bytes(b"other")
        assert [evaluation.fingerprint(suite) != old for suite, old in zip(suites, before, strict=True)] == changed


def test_every_suite_is_one_file_that_defines_itself():
    for name in MODULES:
        suite = load_suite(name)
        assert suite.name == name and suite.seeds < suite.full_seeds and suite.claims


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["colour"], f"There is no suite 'colour': choose one of {', '.join([*MODULES, 'all'])}."),
        (["text-paint", "--seeds", "1"], "--seeds must be at least 2"),
        (["text-paint", "--full", "--tuning"], "leave out --tuning"),
        (["text-paint", "--keep"], "--keep is for full runs: add --full."),
        (["text-paint", "--keep", "--full", "--out", "nowhere"], "There is no full run of text-paint in nowhere."),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, sentence, capsys):
    assert evaluation.main(arguments) == 1
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_missing_weights_are_one_sentence(monkeypatch, tmp_path, capsys):
    from inlay.demo import weights

    monkeypatch.setattr(weights, "FOLDER", tmp_path / "none")
    assert evaluation.main(["demo-models", "--out", str(tmp_path)]) == 1
    assert "Train it with" in capsys.readouterr().err


def needed_seeds(claim):
    """Of a claim, or of the parts of one."""
    return max(map(needed_seeds, claim.parts)) if hasattr(claim, "parts") else claim.needed


@pytest.mark.parametrize("name", MODULES)
def test_a_full_run_can_decide_every_claim(name):
    suite = load_suite(name)
    assert [claim.id for claim in suite.claims if needed_seeds(claim) > suite.full_seeds] == []


def test_the_repeating_rows_are_the_shipped_workflow():
    workflow = Path(__file__).parents[2] / "workflows" / "api" / "text-paint.json"
    inputs = {node["class_type"]: node["inputs"] for node in json.loads(workflow.read_text()).values()}
    paint = inputs["InlayPaint"]
    assert (paint["steps"], paint["repeats"]) == (text_paint_rows.SHIPPED_STEPS, text_paint_rows.SHIPPED_REPEATS)
    assert paint["cfg"] == text_paint_rows.CFG
    assert inputs["InlayRegionGuidance"]["outside"] == text_paint_rows.SHIPPED_OUTSIDE
