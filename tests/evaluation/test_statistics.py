"""Intervals, claims and reports against independent arithmetic."""

import json

import numpy as np
import pytest
import scipy.stats
import torch
from inlay.evaluation.bootstrap import bootstrap_mean, paired_difference
from inlay.evaluation.claims import Above, Floor
from inlay.evaluation.records import Measured, Records
from inlay.evaluation.report import as_text, build_report, summarise, to_line


def test_the_interval_is_scipys():
    values = np.random.default_rng(1).gamma(2.0, 1.5, 90)
    ours = bootstrap_mean(values)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", random_state=np.random.default_rng(2)
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    width = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.05 * width and abs(ours.high - theirs.high) < 0.05 * width
    assert bootstrap_mean(values) == ours


@pytest.mark.parametrize("draw", ["normal", "coin"])
def test_the_interval_covers_the_mean_as_often_as_it_says(draw):
    generator = np.random.default_rng(3)
    covered = 0
    for trial in range(300):
        values = generator.normal(2, 3, 80) if draw == "normal" else (generator.random(80) < 0.7).astype(float)
        interval = bootstrap_mean(values, draws=600, seed=trial)
        covered += interval.low <= (2 if draw == "normal" else 0.7) <= interval.high
    # 95 % of 300 is 285; four deviations of that count are 15.
    assert 270 <= covered <= 297


def test_constant_values_have_no_width_and_one_value_no_interval():
    constant = bootstrap_mean([0.25] * 9)
    assert (constant.mean, constant.low, constant.high) == (0.25, 0.25, 0.25)
    assert bootstrap_mean([0.5]).low is None


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf"), 1.0]])
def test_values_that_are_no_numbers_are_refused(values):
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean(values)


def test_pairing_removes_what_the_seeds_share():
    generator = np.random.default_rng(4)
    shared, noise = generator.normal(0, 5, 200), generator.normal(0, 0.1, 200)
    ours = {seed: shared[seed] + 0.1 + noise[seed] for seed in range(200)}
    reference = {seed: shared[seed] for seed in range(50, 260) if seed < 200}
    found = paired_difference(ours, reference)
    differences = 0.1 + noise[50:]
    assert found.n == 150 and found.mean == pytest.approx(differences.mean())
    assert found.low > 0 and found.high - found.low < 0.05
    assert paired_difference({1: 0.0}, {2: 0.0}) is None


def column(values):
    return dict(enumerate(values))


def test_a_floor_holds_by_its_lower_end():
    half = [0.0, 1.0] * 100
    table = {"row": {"good": column([0.9] * 200), "half": column(half), "few": column([1.0] * 20)}}

    def judge(metrics, floor, goal=None):
        return Floor("id", "text", ("row",), metrics, floor, goal, needed=100).judge(table)

    assert judge(("good",), 0.9)["holds"] is True
    assert judge(("good",), 0.91)["holds"] is False
    # The mean reaches this floor and the interval does not.
    assert judge(("half",), 0.49)["holds"] is False and judge(("half",), 0.49)["value"] == 0.5
    # The worst of several counts, and so does the least measured one.
    assert judge(("good", "half"), 0.6)["holds"] is False
    assert judge(("good", "few"), 0.6)["holds"] is None
    assert judge(("few",), 0.6)["ci95"] == [1.0, 1.0]
    assert judge(("absent",), 0.6) == {"id": "id", "text": "text", "value": None, "ci95": None, "holds": None}
    assert "goal 0.95: not reached" in judge(("good",), 0.5, 0.95)["text"]
    assert "goal 0.9: reached" in judge(("good",), 0.5, 0.9)["text"]
    assert "not reached" in judge(("few",), 0.5, 0.9)["text"]


def test_a_difference_holds_above_zero_only_with_enough_pairs():
    generator = np.random.default_rng(5)
    base = (generator.random(300) < 0.5).astype(float)
    better = np.where(generator.random(300) < 0.2, 1.0, base)
    table = {"base": {"all": column(base)}, "better": {"all": column(better)}, "few": {"all": column(better[:255])}}

    def judge(row, over="base", needed=256):
        return Above("id", "text", row, over, "all", needed).judge(table)

    assert judge("better")["holds"] is True
    assert judge("better")["value"] == pytest.approx((better - base).mean())
    assert judge("base", "better")["holds"] is False
    # No difference at all is not above zero.
    assert judge("base")["holds"] is False and judge("base")["ci95"] == [0.0, 0.0]
    few = judge("few")
    assert few["holds"] is None and few["ci95"][0] > 0
    assert judge("nowhere")["holds"] is None


def records_of(tmp_path, fingerprint="weights"):
    return Records(tmp_path / "measured.jsonl", fingerprint)


def test_records_survive_a_stop_and_forget_what_no_longer_counts(tmp_path):
    first = records_of(tmp_path)
    first.add("part", [1, 2], 2.0, [Measured("a", 1, {"m": 1.0}), Measured("a", 2, {"m": None})])
    first.add("part", [3, 4], 3.0, [Measured("a", 3, {"m": 0.0}), Measured("b", 4, {"m": 5.0})])
    with open(first.path, "a") as file:
        file.write('{"unit": "part", "seeds": [5, 6], "sec')
    again = records_of(tmp_path)
    assert again.has("part", [1, 2]) and again.has("part", [3, 4]) and not again.has("part", [5, 6])
    # A group of another length is another measurement, and a later one replaces it.
    assert not again.has("part", [1, 2, 3]) and not again.has("other", [1, 2])
    again.add("part", [3], 1.0, [Measured("a", 3, {"m": 0.5})])
    final = records_of(tmp_path)
    assert final.table(range(1, 9)) == {"a": {"m": {1: 1.0, 3: 0.5}}}
    assert final.table([1]) == {"a": {"m": {1: 1.0}}}
    assert final.seconds == 3.0
    assert records_of(tmp_path, "other weights").table(range(9)) == {}


def test_the_report_is_strict_json_with_the_contracts_keys(tmp_path):
    values = torch.linspace(0, 1, 40).tolist()
    table = {"a": {"m": column(values), "some": column(values[:10])}, "b": {"m": column(values[::-1])}}
    claims = [Above("better", "a above b", "a", "b", "m"), Floor("full", "b is there", ("b",), ("m",), 0.2, needed=8)]
    report = build_report("suite", range(40), {"cores": 2}, 1.234, table, claims, [("a", "b")], ["x.jpg"])
    assert json.loads(to_line(report)) == report and "\n" not in to_line(report)
    assert list(report) == ["suite", "seeds", "machine", "seconds", "rows", "claims", "files"]
    a, b, difference = report["rows"]
    assert (a["name"], a["n"], "n" in a["m"], a["some"]["n"]) == ("a", 40, False, 10)
    assert difference["name"] == "a - b" and difference["m"]["mean"] == 0
    assert [claim["holds"] for claim in report["claims"]] == [None, True]
    text = as_text(report)
    assert "better: open" in text and "full: holds" in text
    with pytest.raises(ValueError):
        to_line({"value": float("nan")})


def test_a_row_with_nothing_measured_stays_readable():
    assert summarise({"a": {"m": {}}}) == [{"name": "a", "n": 0}]
