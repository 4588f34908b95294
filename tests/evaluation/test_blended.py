"""Suite `blended` from end to end on random weights, and its own arithmetic."""

import json
import math
from pathlib import Path

import inlay.evaluation as evaluation
import pytest
import torch
from inlay.evaluation.suites import blended, blended_applications, blended_ranking
from inlay.evaluation.suites.blended import SUITE, Size
from inlay.evaluation.suites.blended_jobs import BESIDE_TEXT

TINY = Size(2, 5, 1, 1, 2, 2, 2)


@pytest.fixture
def report(random_world, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(blended, "SHORT", TINY)
    monkeypatch.setattr(blended, "INVERSION_STEPS", 2)
    monkeypatch.setattr(blended, "SWEEP", (1,))
    few = {key: name for key, name in blended.STEPS.items() if key[1] == 12}
    monkeypatch.setattr(blended, "STEPS", {(name, 1): row for (name, _), row in few.items()})
    monkeypatch.setattr(blended, "VIEWS", {copies: blended.VIEWS[copies] for copies in (0, 1, 8)})
    monkeypatch.setattr(blended_applications, "SCRIBBLE_LEVELS", (0.2, 1.0))
    assert evaluation.main(["blended", "--seeds", "2", "--out", str(tmp_path)]) == 0
    lines = (tmp_path / "blended" / "short" / "measured.jsonl").read_text().splitlines()[1:]
    measured = [row for line in lines for row in json.loads(line)["measured"]]
    return json.loads(capsys.readouterr().out.splitlines()[-1]), measured


def test_every_comparison_is_measured(report):
    report, measured = report
    rows = {row["name"]: row for row in report["rows"]}
    edits = {blended.TWO, blended.NAIVE, blended.TEXT, blended.BOTH, blended.NOTHING, *blended.LOCAL.values()}
    assert edits <= set(rows) and set(blended.LEVELS.values()) <= set(rows)
    assert {*blended_applications.REMOVALS, *blended_applications.GROWTHS, *blended_ranking.RANKED.values()} <= set(
        rows
    )
    assert rows["ddpm, 12 steps"]["n"] == 1 and rows[blended.TWO]["n"] == 2
    assert all(math.isfinite(row[metric]["mean"]) for row in rows.values() for metric in set(row) - {"name", "n"})
    assert [claim["id"] for claim in report["claims"]] == [claim.id for claim in SUITE.claims]
    # Two seeds decide nothing, and every claim found its rows.
    assert all(claim["holds"] is None and claim["value"] is not None for claim in report["claims"][:2])
    # So with these random models. Of trained ones a loss of weight 100 keeps as much as the autoencoder can.
    kept = {name: rows[name]["background PSNR"]["mean"] for name in (blended.TWO, *blended.LOCAL.values())}
    assert all(kept[blended.TWO] > kept[name] for name in blended.LOCAL.values())
    # Each option reaches the pictures.
    differing = {*edits, *blended.LEVELS.values()}
    scores = {name: values["tiny CLIP text"] for name, seed, values in measured if name in differing}
    assert scores.keys() == differing and len(set(scores.values())) == len(scores)


def test_the_claims_follow_their_rows():
    seeds = range(128)

    def table(two, local):
        columns = {"all": dict.fromkeys(seeds, 0.5), "background PSNR": dict.fromkeys(seeds, 30.0)}
        others = {"all": dict.fromkeys(seeds, 0.5 - two), "background PSNR": dict.fromkeys(seeds, 30.0 - local)}
        return {blended.TWO: columns, **dict.fromkeys(blended.LOCAL.values(), others)}

    (claim,) = (claim for claim in SUITE.claims if claim.id == "blend-over-local")
    assert [claim.judge(table(*given))["holds"] for given in ((0.1, 1.0), (0.1, -1.0), (-0.1, 1.0))] == [
        True,
        False,
        False,
    ]
    assert claim.judge({})["holds"] is None


def test_ranking_takes_the_shares_by_score():
    scores = torch.tensor([0.3, 0.9, 0.1, 0.5, 0.7])
    values = [{"all": float(place), "colour": None} for place in range(5)]
    rows = {row.row: row.values for row in blended_ranking._ranked(3, scores, values)}
    assert rows[blended_ranking.RANKED["top 20 %"]] == {"all": 1.0, "tiny CLIP text": pytest.approx(0.9)}
    assert rows[blended_ranking.RANKED["bottom 20 %"]]["all"] == 2.0
    assert rows[blended_ranking.RANKED["all"]]["all"] == 2.0


def test_the_options_beside_text_are_the_workflows():
    folder = Path(__file__).parents[2] / "workflows" / "api"
    edits = [
        node["inputs"]
        for name in ("blended-edit", "iterative-edit", "scribble")
        for node in json.loads((folder / f"{name}.json").read_text()).values()
        if node["class_type"] == "InlayBlend"
    ]
    assert len(edits) == 8
    names = ("strength", "strength_unit", "mode", "augmentations", "view")
    assert all(
        {name: one[name] for name in names} == {name: vars(BESIDE_TEXT)[name] for name in names} for one in edits
    )
