"""The suite `swap`: its scenes, its columns on results that are known, and a tiny run through every row."""

import json
from dataclasses import replace
from pathlib import Path

import inlay.evaluation as evaluation
import pytest
import torch
from inlay.demo.judge import Judge
from inlay.demo.render import render
from inlay.demo.vocabulary import COLOURS, SHAPES, SURFACES, held_out
from inlay.evaluation import swap_alone, swap_rows, swap_scenes
from inlay.evaluation.non_inferiority import NotBelow
from inlay.evaluation.perceptual import judge_distance
from inlay.evaluation.suites import swap
from inlay.evaluation.swap_look import Look
from inlay.host.swap_settings import SwapSettings
from inlay.training.concept import ConceptSettings

JOBS = [swap_scenes.draw_job(seed) for seed in range(95_000_000, 95_000_030)]


def test_the_new_thing_is_another_one_that_training_never_shows():
    for job in JOBS:
        old, new = job.scene, job.wanted
        assert old.shape[0, 0] != new.shape[0, 0] and old.colour[0, 0] != new.colour[0, 0]
        for scenes in (old, new):
            assert held_out(scenes.style, scenes.shape[:, 0], scenes.colour[:, 0], scenes.surface[:, 0]).all()
    assert {job.concept for job in JOBS} == set(range(swap_scenes.CONCEPTS))
    assert {job.concept % 2 for job in JOBS[::4]} == {0, 1}


def test_only_the_thing_is_swapped_in_the_truth():
    for job in JOBS[:12]:
        changed = (job.truth.image - job.image).abs().amax(-1) > 0.02
        assert changed[job.mask > 0].any()
        reach = torch.nn.functional.max_pool2d(job.mask, 33, 1, 16)
        assert not changed[reach == 0].any()


def test_the_box_is_of_whole_cells_around_the_old_thing():
    box = {"x": 17, "y": 8, "width": 7, "height": 9}
    assert swap_scenes.whole_cells(box) == {"x": 16, "y": 8, "width": 8, "height": 16}
    for job in JOBS[:6]:
        assert not any(side % swap_scenes.CELL for side in job.box.values())
        thing = render(job.scene).masks[0, 0] >= 0.5
        assert (job.mask[0][thing] == 1).all() and job.mask.mean() < 0.8


def test_a_learned_things_words_are_in_no_text():
    words = {*SHAPES, *COLOURS, *SURFACES}
    for job in JOBS:
        texts = job.texts()
        said = set(f"{texts.target} {texts.target_concept}".split())
        if job.learned:
            assert not said & words and f"embedding:{swap_scenes.concept_name(job.concept)}" in said
            assert job.scene.style[0] == 0
        else:
            assert texts.target == job.target_caption and texts.target_concept in texts.target
        assert texts.source_concept in texts.source and job.shape_word in texts.source_concept


def test_learning_pictures_show_the_learned_thing():
    for concept in range(swap_scenes.BY_WORDS, swap_scenes.CONCEPTS):
        photos, masks, template = swap_scenes.learning_pictures(concept)
        assert all(line.count("{}") == 1 for line in template.splitlines())
        assert len(template.splitlines()) == len(photos)
        assert photos.shape == (4, 128, 128, 3) and (masks.flatten(1).sum(1) > 300).all()
        assert len({photo.mean().item() for photo in photos}) == 4


def test_nothing_lies_outside_a_box_as_large_as_the_picture():
    look, job = Look(None, Judge().eval()), JOBS[0]
    assert look.background(job, job.truth.image, torch.ones_like(job.mask)) == {}
    assert look.background(job, job.truth.image, job.mask)["background MSE"] >= 0


def test_unlikeness_counts_where_it_is_asked_for():
    torch.manual_seed(0)
    judge = Judge().eval()
    a, mask = torch.rand(2, 64, 64, 3), torch.ones(2, 64, 64)
    mask[:, 16:40, 16:40] = 0
    inside = torch.where(mask[..., None] == 0, 1 - a, a)
    assert judge_distance(judge, a, a).tolist() == [0, 0]
    assert (judge_distance(judge, a, inside) > 1e-3).all()
    assert judge_distance(judge, a, inside, mask).abs().max() < 1e-6
    assert (judge_distance(judge, a, inside, 1 - mask) > 1e-3).all()


def differing(values, margin, needed=20):
    table = {"ours": {"m": dict(enumerate(values))}, "other": {"m": dict.fromkeys(range(len(values)), 0.5)}}
    return NotBelow("id", "text", "ours", "other", "m", margin, needed).judge(table)


def test_not_below_by_more_than_the_margin():
    noise = [0.01 * (-1) ** index for index in range(40)]
    assert differing([0.49 + one for one in noise], 0.02)["holds"] is True
    assert differing([0.49 + one for one in noise], 0.01)["holds"] is False
    assert differing([0.47 + one for one in noise], 0.02)["holds"] is False
    assert differing([0.6] * 19, 0.02)["holds"] is None and differing([], 0.02)["value"] is None


def test_a_removal_says_nothing_of_the_thing_and_an_insertion_starts_from_none():
    for job in JOBS[:8]:
        words = set(job.source_words.split())
        removals = list(swap_alone.removal_texts(job).values())
        assert removals[0].target == removals[0].target_concept == ""
        assert all(not words & set(f"{one.target} {one.target_concept}".split()) for one in removals)
        assert all(one.source == job.texts().source for one in removals)
        for one in swap_alone.insertion_texts(job).values():
            assert not words & set(one.source.split()) and one.target == job.texts().target


def test_rows_differ_from_instantswap_in_what_they_say():
    rows = swap_rows.swap_rows(1, 1, 1)

    def changed(name):
        ours, its = vars(rows[swap_rows.OURS].settings), vars(rows[name].settings)
        return {key for key in ours if ours[key] != its[key]}

    assert changed(swap_rows.NO_BGM) == {"bgm"} and changed(swap_rows.NO_SECR) == {"secr"}
    assert changed(swap_rows.ALL_ROWS) == {"rows", "learning_rate"} and changed(swap_rows.EVERY_STEP) == {"skip"}
    # The authors' rate and guidance, and what their code does with both rows and outside the box.
    assert changed(swap_rows.AUTHORS) == {"rows", "outside", "guidance", "learning_rate"}
    authors = rows[swap_rows.AUTHORS].settings
    assert (authors.learning_rate, authors.guidance, authors.skip, authors.iterations) == (0.1, 7.5, 5, 550)
    assert changed(swap_rows.OUR_BOX) == set()
    published = {"iterations", "skip", "timesteps", "t_min", "t_max", "learning_rate"}
    assert changed(swap_rows.DDS) == {"method", *published} and changed(swap_rows.PAPERS) == {"learning_rate"}
    assert changed(swap_rows.CDS_WEAKER) == {"method", "contrast", *published}
    assert all(row.settings.paste == "none" for row in rows.values())
    assert swap_rows.gradients(rows[swap_rows.OURS].settings) == 110
    assert swap_rows.gradients(rows[swap_rows.EVERY_STEP].settings) == 550


def test_the_shipped_options_are_the_workflows():
    folder = Path(__file__).parents[2] / "workflows" / "api"
    nodes = [node for path in folder.glob("*.json") for node in json.loads(path.read_text()).values()]
    swaps = [node["inputs"] for node in nodes if node["class_type"] == "InlaySwap"]
    ours = vars(swap_rows.swap_rows(1, 1, 1)[swap_rows.OURS].settings)
    assert len(swaps) >= 5
    for inputs in swaps:
        given = {**vars(SwapSettings()), **{name: inputs[name] for name in ours if name in inputs}}
        # Towards a subject's own model a swap goes further: at the smaller rate the old thing's colour stayed.
        free = {"seed", "paste", *(["learning_rate"] if "target_model" in inputs else [])}
        assert {name for name in ours if given[name] != ours[name]} <= free


@pytest.fixture
def tiny_run(random_world, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(swap_rows, "INSTANT", replace(swap_rows.INSTANT, iterations=4))
    monkeypatch.setattr(swap_rows, "PUBLISHED", replace(swap_rows.PUBLISHED, iterations=2))
    monkeypatch.setattr(swap, "LEARNING", ConceptSettings(objective="multi", steps=1, accumulation=1, preview_every=0))
    assert evaluation.main(["swap", "--seeds", "2", "--out", str(tmp_path)]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1]), tmp_path / "swap" / "short"


def test_a_tiny_run(tiny_run):
    report, folder = tiny_run
    rows = {row["name"]: row for row in report["rows"]}
    asked = swap_rows.swap_rows(1, 1, 1)
    assert set(asked) <= set(rows) and {swap.OUR_BOX_BY_OURS, swap.TRUE_BOX_BY_OURS} <= set(rows)
    assert rows[swap.OURS]["n"] == 2 and rows[swap.SDS]["n"] == 1
    columns = {"shape", "surface", "all", "agreement", "old gone", "tiny CLIP image", "tiny CLIP text", "seconds"}
    columns |= {"background PSNR", "background MSE", "background SSIM", "background judge-feature distance"}
    assert columns <= set(rows[swap.OURS])
    assert {*swap_alone.REMOVALS, *swap_alone.INSERTIONS} <= set(rows)
    assert rows["removal: ceiling"]["something left"]["mean"] == 0 and {
        "judge: real crops",
        "judge: labels shuffled",
    } <= set(rows)
    assert [claim["holds"] for claim in report["claims"]] == [None] * 5
    lines = [json.loads(line) for line in (folder / "measured.jsonl").read_text().splitlines()[1:]]
    first = {row: values for row, _, values in lines[0]["measured"]}
    # Each row has its own result but the one that is measured again.
    scores = {name: first[name]["tiny CLIP image"] for name in asked}
    same = [(a, b) for a in scores for b in scores if a < b and scores[a] == scores[b]]
    assert all("lambda" in f"{a} {b}" for a, b in same)
    assert len(list((folder / "embeddings").glob("*/inlay-swap-?.safetensors"))) == 2
