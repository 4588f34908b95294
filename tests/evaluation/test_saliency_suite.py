"""The suite `saliency`: overlap and separation, where attention goes, and what is chosen on tuning seeds alone."""

import json

import inlay.evaluation as evaluation
import pytest
import torch
from inlay.demo.training.pictures import SEEDS
from inlay.evaluation.localising import overlap, separation
from inlay.evaluation.subjects import subject_of
from inlay.evaluation.suites import saliency, saliency_layers
from inlay.host.attention_capture import Seen


def test_overlap_is_intersection_over_union():
    one, other = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    one[0, :2], other[0, 1:3] = 1, 1
    one[1, :2], other[1, :2] = 0.6, 1
    assert overlap(one, other).tolist() == [pytest.approx(4 / 12), 1, 0]


def test_separation_is_the_share_of_pairs_in_order():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (2, 7, 9), generator=generator).float()
    truth = (torch.rand(2, 7, 9, generator=generator) < 0.3).float()
    for row in range(2):
        inside, outside = scores[row][truth[row] > 0], scores[row][truth[row] == 0]
        pairs = [float(a > b) + 0.5 * float(a == b) for a in inside for b in outside]
        assert float(separation(scores, truth)[row]) == pytest.approx(sum(pairs) / len(pairs))
    assert separation(truth, truth).tolist() == [1, 1] and separation(-truth, truth).tolist() == [0, 0]
    assert separation(scores, torch.zeros(2, 7, 9)).isnan().all()


def test_where_attention_goes_explains_the_column_sum():
    generator = torch.Generator().manual_seed(1)
    q, k = (2 * torch.randn(1, 24, 8, generator=generator) for _ in range(2))
    truth = torch.zeros(1, 8, 12)
    truth[:, 2:6, 4:10] = 1
    seen = Seen("self", ("middle", 0, 0), (4, 6), q, k, 2)
    values = saliency_layers.column_sum_values(seen, truth)
    on = int(truth.sum()) // 4
    assert values["share of thing"] == pytest.approx(on / 24)
    assert values["O on thing"] == pytest.approx(values["kept"] + values["given"] * (24 - on) / on, rel=1e-5)
    # Attention that never leaves either part tells them apart perfectly, and O is 1 everywhere all the same.
    inside = torch.nn.functional.avg_pool2d(truth[None], 2)[0].flatten()
    features = 60 * torch.stack([inside, 1 - inside], 1)[None].repeat(1, 1, 2)
    values = saliency_layers.column_sum_values(Seen("self", ("middle", 0, 0), (4, 6), features, features, 2), truth)
    assert values["kept"] == pytest.approx(1) and values["given"] == pytest.approx(0)
    assert values["O on thing"] == pytest.approx(1) and values["AUC"] == pytest.approx(0.5, abs=0.3)


def test_reported_and_tuning_seeds_share_no_subject():
    reported = {subject_of(seed) for seed in range(SEEDS["held-out"], SEEDS["held-out"] + 600)}
    tuning = {subject_of(seed) for seed in range(SEEDS["tuning"], SEEDS["tuning"] + 600)}
    assert not reported & tuning and max(reported | tuning) < 1000


def test_the_option_of_the_highest_mean_is_chosen():
    table = {
        option.row: {f"IoU at {threshold:g}": {1: 0.1, 2: 0.3} for threshold in saliency.THRESHOLDS[option.source]}
        for option in saliency._every_option()
    }
    table["words, 16x16 decoder, t 300"]["IoU at 0.6"] = {1: 0.9, 2: 0.0}
    best = saliency.best_options(table)
    assert best["words"] == saliency.Option("words", "16x16 decoder", (300,), 0.6)
    assert list(best) == list(saliency.THRESHOLDS)


def test_the_suite(random_world, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(saliency, "BATCH", 2)
    monkeypatch.setattr(saliency, "TUNING_SEEDS", range(SEEDS["tuning"], SEEDS["tuning"] + 2))
    monkeypatch.setattr(saliency, "CHOICES", ("middle", "16x16"))
    monkeypatch.setattr(saliency, "LEVELS", ((100,),))
    monkeypatch.setattr(saliency_layers, "TIMESTEPS", (100,))
    first = saliency.draw([SEEDS["held-out"] + 15])
    assert first.words == ["thing"] and " thing " in first.captions[0]
    assert evaluation.main(["saliency", "--seeds", "2", "--out", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["name"]: row for row in report["rows"]}
    expected = [f"{source}-over-column-sum" for source in ("calibrated", "border", "words")]
    assert [claim["id"] for claim in report["claims"]] == expected
    assert [claim["holds"] for claim in report["claims"]] == [None] * 3
    # True of any weights: the grid limits every source, and nothing of the tuning seeds is in the report.
    assert 0.5 < rows[saliency.GIVEN]["IoU"]["mean"] < 1 and rows[saliency.GIVEN]["AUC"]["mean"] > 0.95
    assert rows[saliency.EVERYTHING]["share masked"]["mean"] == 1
    assert not any(row.startswith("words, middle") for row in rows)
    assert all(row["n"] <= 2 for row in report["rows"])
    layers = [row for row in rows.values() if row["name"].startswith("column sum, ")]
    assert len(layers) == 10 and all(0 < row["kept"]["mean"] < 1 for row in layers)
