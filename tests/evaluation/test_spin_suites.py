"""Suites `style` and `spin` on random weights, their claims on made-up figures, and what their measures can tell."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import inlay.evaluation as evaluation
import pytest
import torch
from inlay.demo.judge import HEADS
from inlay.demo.scenes import draw_scenes
from inlay.demo.tasks import draw_tasks, place_masks
from inlay.evaluation import spin_parts, style_reading
from inlay.evaluation.claims import Above, EachAbove
from inlay.evaluation.suites import concept, spin, spin_jobs, spin_values, style
from inlay.guidance.masks import dilate
from inlay.host.style_guidance_patch import StyleOptions


@pytest.fixture
def short(random_world, monkeypatch):
    # Style guidance as shipped leaves the first of two steps alone.
    for name, count in {"STEPS": 2, "INVERSION_STEPS": 1}.items():
        monkeypatch.setattr(spin_parts, name, count)
    monkeypatch.setattr(style, "BATCH", 2)
    kept = ("exact, strength 0.4", "fast, features of CLIP vision", "without style guidance, renoised")
    monkeypatch.setattr(style, "OPTIONS", {name: style.OPTIONS[name] for name in kept})
    repeating = {row: replace(parts, steps=2, repeats=2) for row, parts in style.REPEATING.items()}
    monkeypatch.setattr(style, "REPEATING", repeating)
    for module in (spin_jobs, spin_values):
        monkeypatch.setattr(module, "EDITS", {"blue": spin_jobs.EDITS["blue"]})
    monkeypatch.setattr(spin_jobs, "CANDIDATES", 2)
    monkeypatch.setattr(spin_jobs, "BLENDED_STEPS", 2)
    monkeypatch.setattr(spin_jobs, "ALONE", replace(spin_jobs.ALONE, augmentations=1))
    settings, masked = spin.concept_settings()
    quick = replace(settings, steps=2, accumulation=1)
    monkeypatch.setattr(spin, "concept_settings", lambda: (quick, masked))


def evaluate(capsys, tmp_path, suite, seeds):
    assert evaluation.main([suite, "--seeds", str(seeds), "--out", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [claim["holds"] for claim in report["claims"]] == [None] * len(report["claims"])
    return {row["name"]: row for row in report["rows"]}


def test_style(short, capsys, tmp_path):
    rows = evaluate(capsys, tmp_path, "style", 2)
    assert {*style.MAIN, *style.OPTIONS, f"{style.FAST} - {style.PLAIN}"} <= set(rows)
    assert rows[spin_parts.AS_RETURNED]["background exact"]["mean"] == 1
    assert all(rows[name]["n"] == 2 for name in style_reading.READ)
    # Guidance changes the pictures, and strength does.
    # Through a random UNet `exact` hardly differs from `fast` at one strength.
    told_apart = ("seam", "background PSNR", "style probability")
    compared = (style.PLAIN, style.FAST, "exact, strength 0.4", *style.REPEATING)
    guided = [tuple(rows[name][metric]["mean"] for metric in told_apart) for name in compared]
    assert len(set(guided)) == len(guided)


def test_spin(short, capsys, tmp_path):
    import folder_paths

    rows = evaluate(capsys, tmp_path, "spin", 2)
    jobs = (spin_jobs.SALIENCY, *spin_jobs.ABLATION, spin_jobs.BY_REFERENCE, spin_jobs.BLENDED, spin_jobs.LATENT)
    texts = [f"by text: {name}" for name in (spin_jobs.BLENDED, spin_jobs.LATENT, spin_jobs.HOST, spin_jobs.ALL)]
    edited = [f"edited: {word}" for word in spin_jobs.EDITS]
    for name in (*jobs, *edited, *texts):
        best, mean = rows[f"{name}, {spin.SELECTED}"], rows[name]
        score = "tiny CLIP text" if name in texts else "tiny CLIP image"
        assert best[score]["mean"] >= mean[score]["mean"] and mean["diversity"]["mean"] > 0
    told_apart = ("judge likeness", "seam", "style probability")
    seen = {tuple(rows[name][metric]["mean"] for metric in told_apart) for name in (*jobs, *edited)}
    assert len(seen) == len(jobs) + len(edited)
    assert {"judge: real crops", "judge: real crops through the VAE", "judge: labels shuffled"} <= set(rows)
    assert rows[spin_parts.AS_RETURNED]["background exact"]["mean"] == 1
    assert "background PSNR" not in rows[spin_jobs.COPY]
    assert set(rows["styles asked for"]) == {
        "name",
        "n",
        *(f"asked for {name}" for name in style.STYLES),
        "asked for, all",
    }
    # Nothing is left where users keep their concepts.
    assert spin.NAME not in " ".join(folder_paths.get_filename_list("embeddings"))


def made_up(**columns):
    return {name: {"m": dict(zip(range(64), values, strict=True))} for name, values in columns.items()}


def test_each_above_holds_if_all_do():
    noise = torch.randn(64, generator=torch.Generator().manual_seed(0)).mul(0.1).tolist()
    table = made_up(low=[0.0] * 64, high=[1 + one for one in noise], same=noise)
    good, bad = Above("", "good", "high", "low", "m", 48), Above("", "bad", "same", "low", "m", 48)
    assert EachAbove("id", "text", (good, good)).judge(table)["holds"] is True
    claim = EachAbove("id", "text", (good, bad)).judge(table)
    assert claim["holds"] is False and claim["id"] == "id" and "not: bad" in claim["text"]
    assert claim["value"] == pytest.approx(sum(noise) / 64)
    assert EachAbove("id", "text", (good, replace(good, needed=65))).judge(table)["holds"] is None
    assert EachAbove("id", "text", (good, replace(good, row="absent"))).judge(table)["value"] is None


def test_a_share_of_the_other_row_is_enough():
    table = made_up(ours=[0.96] * 64, ceiling=[1.0] * 64)
    assert Above("", "", "ours", "ceiling", "m", 48, share=0.95).judge(table)["holds"] is True
    assert Above("", "", "ours", "ceiling", "m", 48, share=0.97).judge(table)["holds"] is False


def test_the_style_is_judged_by_painted_pixels_alone():
    """What stands outside the mask, and in its round corners, does not reach the judge."""
    wanted = draw_scenes(range(60, 66), objects=1)
    mask = place_masks(wanted, 1.25)
    inside = spin_parts.crops_inside(mask[..., None].expand(-1, -1, -1, 3), mask)
    assert inside.min() > 0.95

    class Told:
        def __call__(self, crops):
            return {name: torch.eye(count)[torch.zeros(len(crops), dtype=torch.long)] for name, count in HEADS.items()}

    painted = torch.rand(6, 128, 128, 3)
    values = spin_parts.style_agreement(Told(), painted, mask, torch.tensor([0, 0, 1, 2, 3, 0]))
    assert [one["style"] for one in values] == [1, 1, 0, 0, 0, 1]
    share = math.e / (math.e + 3)
    assert values[0]["style probability"] == pytest.approx(share)


def test_only_the_thing_is_drawn_in_other_styles():
    tasks = draw_tasks(range(60, 66), "fill")
    drawn = style_reading.drawn_in_each_style(tasks)
    for row, own in enumerate(tasks.wanted.style.tolist()):
        assert torch.equal(drawn[own, row], tasks.truth.image[row])
        around = dilate((tasks.truth.masks[row : row + 1, 0] > 0).float(), style_reading.OUTLINE)[0] == 0
        assert all(torch.equal(one[row][around], tasks.truth.image[row][around]) for one in drawn)
        assert all(not torch.equal(drawn[style, row], drawn[own, row]) for style in range(4) if style != own)


def test_what_the_loss_tells_is_read_of_the_right_pictures(monkeypatch):
    tasks = draw_tasks(range(60, 64), "fill")
    drawn = style_reading.drawn_in_each_style(tasks)
    assert len(set(tasks.wanted.style.tolist())) > 1 and 0 in tasks.wanted.style

    def distances(model, vae, vision, pictures, scene, mask, options):
        """Least for the first style, and least of all for the empty place in some regions; the scene's are one seed's.

        Of any other pictures it has the opposite order, so that both values are wrong.
        """
        values = torch.tensor([2.0, 4.0, 3.0, 5.0, 1.0 if options.region == "whole" else 9.0])
        (row,) = (row for row, image in enumerate(tasks.image) if torch.equal(image[None], scene))
        wanted = torch.stack([*drawn[:, row], tasks.image[row]])
        right = torch.equal(pictures, wanted) and torch.equal(mask, tasks.mask[row : row + 1])
        return values if right else -values

    monkeypatch.setattr(style_reading, "style_distances", distances)
    monkeypatch.setattr(style_reading, "through_vae", lambda models, image: image)
    models = SimpleNamespace(model=None, vae=None, clip_vision=None)
    for one in style_reading.read_losses(models, tasks, range(60, 64)):
        right = int(tasks.wanted.style[one.seed - 60]) == 0
        assert one.values["right style least"] == right
        assert one.values["nothing lower still"] == ("whole" in one.row)


def test_copy_and_paste_puts_the_subject_into_the_place():
    task = spin_jobs.subject_task(90_000_003)
    (copied,) = spin_jobs.copy_and_paste(task)
    mask = task.mask[0] > 0
    changed = (copied != task.image[0]).any(-1)
    assert torch.equal(copied[~mask], task.image[0][~mask]) and 0.2 < changed[mask].float().mean() < 0.9
    # The subject's middle is the place's middle.
    rows, columns = changed.nonzero().float().T
    centre = task.wanted.things[0].centre[0]
    assert abs(columns.mean() - centre[0]) < 8 and abs(rows.mean() - centre[1]) < 8


def test_tuning_shows_other_subjects():
    first, tuning = spin_jobs.subject_task(90_000_000), spin_jobs.subject_task(70_000_000)
    assert not torch.equal(first.wanted.things[0].rgb, tuning.wanted.things[0].rgb)


@pytest.mark.parametrize("name", ["style-paint", "image-paint"])
def test_the_suites_measure_what_the_workflows_ship(name):
    nodes = json.loads(spin.WORKFLOW.with_name(f"{name}.json").read_text()).values()
    given = {node["class_type"]: node["inputs"] for node in nodes}
    widgets = given["InlayStyleGuidance"]
    assert StyleOptions(**{key: widgets[key] for key in vars(StyleOptions())}) == style.SHIPPED
    assert given["InlayRegionGuidance"]["outside"] == spin_parts.Parts().region
    shipped = (
        style.REPEATING[style.REPEATED[style.FAST]] if name == "style-paint" else spin_jobs.ABLATION[spin_jobs.ALL]
    )
    painted = given["InlayPaint"]["steps"], given["InlayPaint"].get("repeats", 1)
    assert painted == (shipped.steps or spin_parts.STEPS, shipped.repeats)
    assert given["InlayPaint"]["cfg"] == spin_parts.CFG
    assert given["InlayInvertImage"]["steps"] == spin_parts.INVERSION_STEPS
    if name == "image-paint":
        settings, _ = spin.concept_settings()
        assert settings.steps == given["InlayTrainConcept"]["steps"] == concept.STEPS[-1]
        assert settings.learning_rate == concept.LEARNING_RATE
        assert given["InlayPaint"]["candidates"] == spin_jobs.CANDIDATES
