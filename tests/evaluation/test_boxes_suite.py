"""The suite `boxes`: its truth, its measure of a box, what it would report of boxes that are right, and a tiny run."""

import json
from pathlib import Path

import inlay.evaluation as evaluation
import pytest
from inlay.attention.boxes import box_mask
from inlay.evaluation.suites import boxes, boxes_options

SEEDS = list(range(95_000_000, 95_000_016))
WORKFLOWS = sorted((Path(__file__).parents[2] / "workflows" / "api").glob("*.json"))


def box(x, y, width, height):
    return {"x": x, "y": y, "width": width, "height": height}


@pytest.mark.parametrize(
    ("found", "iou", "covers", "share"),
    [
        (box(10, 20, 30, 40), 1, 1, 1),
        (box(5, 15, 40, 60), 1200 / 2400, 1, 1),
        (box(11, 20, 30, 40), 29 / 31, 0, 29 / 30),
        (box(60, 70, 10, 10), 0, 0, 0),
    ],
)
def test_overlap_by_hand(found, iou, covers, share):
    values = boxes.overlap(found, box(10, 20, 30, 40))
    assert values == {"iou": pytest.approx(iou), "covers": covers, "share covered": pytest.approx(share)}


@pytest.mark.parametrize("count", [1, 2])
def test_the_truth_is_around_the_named_thing(count):
    from inlay.demo.render import render
    from inlay.demo.scenes import draw_scenes
    from inlay.demo.vocabulary import held_out

    scenes, empty = (draw_scenes(SEEDS, objects=count, holding_out=True) for _ in range(2))
    nothing = render(empty.emptied()).image
    for row, view in enumerate(boxes.views(SEEDS, count)):
        if view is None:
            assert scenes.shape[row, 0] == scenes.shape[row, 1]
            continue
        which = row, SEEDS[row] % count
        assert held_out(scenes.style[row], scenes.shape[which], scenes.colour[which], scenes.surface[which])
        assert view.shape in view.phrase.split() and view.phrase in view.prompt
        assert view.prompt.split().count(view.shape) == 1
        things = [scenes.things[index].centre[row].tolist() for index in range(count)]
        x, y = things[SEEDS[row] % count]
        assert view.truth["x"] < x < view.truth["x"] + view.truth["width"]
        assert view.truth["y"] < y < view.truth["y"] + view.truth["height"]
        if count == 1 and view.style != "pencil":
            changed = (view.image[0] - nothing[row]).abs().amax(-1) > 0.2
            inside = box_mask([view.truth], 128, 128) > 0
            assert changed[inside].float().mean() > 0.2 and changed[~inside].float().mean() < 0.02


def test_each_option_varies_alone():
    rows = boxes.variants()
    assert rows[boxes.OURS] == boxes.SHIPPED and rows[boxes.PAPERS] == boxes.PAPER
    assert rows[boxes.BY_WORDS] == boxes.WORDS
    for name, options in list(rows.items())[3:]:
        changed = [key for key in options if options[key] != boxes.WORDS[key]]
        assert len(changed) == 1 and changed[0].replace("_", "-") in name


def test_the_shipped_options_are_the_workflows():
    nodes = [node for path in WORKFLOWS for node in json.loads(path.read_text()).values()]
    finders = [node["inputs"] for node in nodes if node["class_type"] == "InlayFindBox"]
    assert finders
    for inputs in finders:
        given = {**boxes.PAPER, **{name: inputs[name] for name in boxes.PAPER if name in inputs}}
        assert given == boxes.SHIPPED


def judged(iou, covers):
    values = {"iou": dict(enumerate(iou)), "covers": dict(enumerate(covers))}
    return {claim.id: claim.judge({row: values for row in boxes.BOTH}) for claim in boxes.CLAIMS}


def test_claims_follow_their_intervals():
    good = judged([0.55, 0.65] * 80, [1.0] * 155 + [0.0] * 5)
    assert good["covers"]["holds"] is True and good["iou"]["holds"] is True
    loose = judged([0.3, 0.69] * 80, [1.0] * 145 + [0.0] * 15)
    # Means of 0.495 and 0.906: the first is below its floor, the second's interval reaches below it.
    assert loose["covers"]["holds"] is False and loose["iou"]["holds"] is False
    assert judged([0.9] * 60, [1.0] * 60)["iou"]["holds"] is None


def test_a_tiny_run(random_world, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(boxes_options, "ABLATED", {"threshold": (0.4,), "self_attention": (True,)})
    monkeypatch.setattr(boxes, "AROUND", {"margin": (0,)})
    monkeypatch.setattr(boxes, "GRID", {"layer": ("8x8 decoder",), "stretch": (False, True)})
    asked, real = [], boxes._maps
    monkeypatch.setattr(boxes, "_maps", lambda *given: asked.append(given) or real(*given))
    assert evaluation.main(["boxes", "--seeds", "2", "--out", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["name"]: row for row in report["rows"]}
    for row in boxes.BOTH:
        # Another threshold cuts the same maps, at most into a larger box.
        words = row.replace(boxes.OURS, boxes.BY_WORDS)
        assert rows[f"{words}, threshold 0.4"]["share covered"]["mean"] >= rows[words]["share covered"]["mean"] - 1e-4
        assert "seconds" in rows[row] and "seconds" in rows[words]
        assert "seconds" not in rows[f"{words}, threshold 0.4"]
    assert rows["one object: the whole picture"]["covers"]["mean"] == 1
    ours, tight = (rows[f"one object: around {boxes.OURS}, {name}"] for name in ("as it is", "margin 0"))
    assert ours["n"] == 1 and tight["share covered"]["mean"] <= ours["share covered"]["mean"]
    grid = [row for name, row in rows.items() if name.startswith("grid: ")]
    assert len(grid) == 2 and all(row["n"] == 1 and "iou at 0.3" in row for row in grid)
    assert [claim["holds"] for claim in report["claims"]] == [None, None]
    # Maps are asked for once each: three kinds of them for each view, and the grid's.
    views = sum(view is not None for count in (1, 2) for view in boxes.views([90_000_000, 90_000_001], count))
    first = sum(view is not None for count in (1, 2) for view in boxes.views([90_000_000], count))
    assert len(asked) == 3 * views + 2 * first
    assert (tmp_path / "boxes" / "short" / "sheet.jpg").exists()
