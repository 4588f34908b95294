"""The suite `concept`: its tasks, what it measures, and its claims on figures made up."""

import json
from dataclasses import replace
from pathlib import Path

import inlay.evaluation as evaluation
import pytest
import torch
from inlay.demo.training.pictures import SEEDS
from inlay.evaluation.suites import concept, concept_task
from inlay.evaluation.suites.saliency import THRESHOLDS, Option
from inlay.training.concept import ConceptSettings

SEED = SEEDS["held-out"]
WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows" / "api"


def test_a_task_has_the_subject_before_two_backgrounds():
    tasks = [concept_task.draw_task(SEED + number) for number in range(8)]
    assert {task.label.split(",")[0] for task in tasks} == {"photo", "cartoon", "oil", "pencil"}
    for task in tasks:
        there, back = task.label.split(", from ")[1].split(" to ")
        assert there != back
        thing = task.reference_mask > 0.5
        changed = (task.reference - task.behind).abs().amax(-1) > 0.05
        assert changed[thing].float().mean() > 0.6 and (changed & (task.around == 0)).float().mean() < 0.02
        assert ((task.truth - task.place).abs().amax(-1)[task.mask == 0] > 0.05).float().mean() < 0.05
        assert 0.1 < task.mask.mean() < 0.45
        assert not torch.equal(task.truth, task.another) and " thing " in task.caption


class Blue:
    """A judge whose features are a crop's mean colour and whose first background is blue."""

    def features(self, crops):
        return crops.mean((2, 3))

    def __call__(self, crops):
        blue = crops[:, 2].mean((1, 2))
        return {"background": torch.stack([20 * blue - 10, *[torch.zeros_like(blue)] * 5], 1)}


def test_likeness_is_to_the_subject_the_reference_and_what_is_behind(tiny):
    task = concept_task.draw_task(SEED)
    plain = {name: torch.zeros(1, 128, 128, 3) for name in ("red", "green", "blue", "black")}
    for channel, name in enumerate(("red", "green", "blue")):
        plain[name][..., channel] = 1
    made_up = concept_task.Task(
        **{**vars(task), "truth": plain["red"], "reference": plain["green"], "behind": plain["blue"]}
        | {"place": plain["black"], "background": 0}
    )
    likeness = concept_task.Likeness(tiny, Blue(), made_up)
    values = likeness.values(torch.cat([plain["red"], plain["red"]]))
    assert values["judge subject"] == pytest.approx(1) and values["CLIP subject"] == pytest.approx(1, abs=1e-4)
    assert values["judge reference"] == values["judge leak"] == pytest.approx(0)
    assert values["background of the reference"] < 0.01
    half = likeness.values(torch.cat([plain["red"], plain["blue"]]))
    empty = concept_task.Likeness(tiny, Blue(), replace(made_up, place=plain["red"])).values(plain["red"])
    assert empty["judge leak"] == pytest.approx(-1)
    assert half["judge leak"] == pytest.approx(0.5) and 0.49 < half["background of the reference"] < 0.51


def table(**changes):
    """24 seeds in which saliency focus is better by a little and leaks less; changes: row to likeness."""
    likeness = {name: 0.5 for name in concept.BASELINES} | {concept.SHIPPED: 0.6} | changes
    noise = torch.randn(24, generator=torch.Generator().manual_seed(0)) / 100

    def columns(value, leak):
        shown = {f"{by} subject": value for by in concept.JUDGES} | {"background of the reference": leak}
        return {
            name: {seed: one + float(noise[seed]) * (1 + value) for seed in range(24)} for name, one in shown.items()
        }

    return {
        concept.at(f"{name}{said}", step): columns(value, 0.2 if name == concept.SHIPPED else 0.4)
        for name, value in likeness.items()
        for step in concept.STEPS
        for said in ("", concept.BARE)
    }


def judged(measured):
    return {claim.id: claim.judge(measured)["holds"] for claim in concept.CLAIMS}


def test_the_claims():
    assert judged(table()) == {"focus-over-latent": True, "focus-leaks-less": True}
    # One better baseline is enough.
    assert judged(table(latent=0.7))["focus-over-latent"] is False
    few = {row: {m: dict(list(v.items())[:23]) for m, v in columns.items()} for row, columns in table().items()}
    assert set(judged(few).values()) == {None}
    leaky = table()
    leaky[concept.BARE_SHIPPED]["background of the reference"] = {seed: 0.9 for seed in range(24)}
    assert judged(leaky)["focus-leaks-less"] is False
    # What draws nothing leaks nothing.
    empty = table(**{concept.SHIPPED: 0.1})
    assert judged(empty)["focus-leaks-less"] is False


def test_rows_differ_in_what_their_name_says():
    options = {
        "calibrated self-attention": Option("calibrated self-attention", "8x8", (300,), 0.75),
        "attention to the border": Option("attention to the border", "decoder", (300,), 0.25),
    }
    rows = concept.rows_with(options, tuning=False)
    found = rows[concept.CALIBRATED]
    assert (found.mask_source, found.layer, found.threshold) == ("calibrated self-attention", "8x8", 0.75)
    assert rows[concept.FOCUS].layer == "auto" and rows[concept.FOCUS].threshold == 1
    assert all(one.learning_rate == concept.LEARNING_RATE and one.init_word == "thing" for one in rows.values())
    assert {one.objective for one in rows.values()} == {*concept.BASELINES, "saliency focus", "saliency focus alone"}
    tuned = set(concept.rows_with(options, tuning=True)) - set(rows)
    assert tuned == {f"{name}, rate {rate:g}" for name in ("multi", concept.SHIPPED) for rate in concept.RATES}
    assert isinstance(rows[concept.SHIPPED], ConceptSettings) and concept.SHIPPED in concept.FOCI


def test_the_shipped_row_is_set_as_the_shipped_workflows_are():
    options = {source: Option(source, "8x8", (300,), 0.25) for source in THRESHOLDS}
    rows = concept.rows_with(options, tuning=True)
    bare = rows[f"{concept.SHIPPED}{concept.BARE}"]
    for name in ("image-paint", "learn-concept"):
        nodes = json.loads((WORKFLOWS / f"{name}.json").read_text()).values()
        (inputs,) = (node["inputs"] for node in nodes if node["class_type"] == "InlayTrainConcept")
        assert "masks" not in inputs
        for setting in ("objective", "mask_source", "layer", "threshold", "learning_rate", "init_word", "steps"):
            assert getattr(rows[concept.SHIPPED], setting) == getattr(bare, setting) == inputs[setting], setting


def test_the_suite(random_world, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(concept, "STEPS", (1, 2))
    monkeypatch.setattr(concept, "PAINT_STEPS", 1)
    monkeypatch.setattr(concept, "CANDIDATES", 1)
    monkeypatch.setattr(concept, "BASELINES", {"multi": ConceptSettings(objective="multi", accumulation=1)})
    monkeypatch.setattr(concept, "ALONE", {})
    options = {source: Option(source) for source in THRESHOLDS}
    monkeypatch.setattr(concept, "choose", lambda study, models, seeds: options)
    names = (concept.CALIBRATED, concept.BORDER, concept.WORD_MASK)
    kept = {name: concept.FOCI[name] for name in names}
    monkeypatch.setattr(concept, "FOCI", kept)
    assert evaluation.main(["concept", "--seeds", "2", "--out", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["name"]: row for row in report["rows"]}
    assert {concept.at(name, step) for name in ("multi", *kept) for step in (1, 2)} <= set(rows)
    assert rows["before training, 6 tokens"]["n"] == 2
    for name in ("real crops", "real crops through the VAE", "labels shuffled"):
        assert rows[f"judge: {name}"]["n"] == 2 and "background" in rows[f"judge: {name}"]
    ceiling = rows["ceiling: the subject in the place, through the VAE"]
    assert ceiling["judge subject"]["mean"] != rows[concept.at("multi", 2)]["judge subject"]["mean"]
    assert [claim["holds"] for claim in report["claims"]] == [None, None]
