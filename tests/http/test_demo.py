"""The `demo` command's job, with a stock workflow of known result."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from inlay.demo import job
from PIL import Image

STOCK = Path(__file__).with_name("stock-paint.json")


@pytest.fixture
def started(server, monkeypatch):
    """The job uses the session's server instead of starting its own; counts how often it asked."""
    asked = []

    @contextlib.contextmanager
    def running(*args, **kwargs):
        asked.append(args)
        yield server

    monkeypatch.setattr(job, "Server", running)
    return asked


def changed(folder: Path, **inputs) -> Path:
    """The stock workflow with other inputs, keyed by node id after an underscore."""
    graph = json.loads(STOCK.read_text())
    for node, values in inputs.items():
        graph[node.strip("_")]["inputs"].update(values)
    path = folder / "changed.json"
    path.write_text(json.dumps(graph))
    return path


def test_it_writes_pictures_and_tells_the_figures(started, comfyui, tmp_path, capsys):
    assert job.main([], comfyui, STOCK, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    names = ["contact-sheet.png", "difference.png", "mask.png", "result.png", "scene.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert all(str(tmp_path / "out" / name) in printed for name in names)
    scene, result, difference = (
        np.asarray(Image.open(tmp_path / "out" / f"{name}.png")).astype(int)
        for name in ("scene", "result", "difference")
    )
    patch = (slice(20, 44), slice(40, 72))
    # 0x336699 painted over with 0xCC0000: 153, 102 and 153 apart.
    assert f"mean change inside the mask:        {(153 + 102 + 153) / 3:.1f}/255" in printed
    assert "exact, bit for bit" in printed
    assert np.array_equal(difference, np.minimum(8 * abs(result - scene), 255))
    difference[patch] = 0
    assert not difference.any()
    assert "SaveImage" in printed


def test_a_touched_background_is_not_called_exact(started, comfyui, tmp_path, capsys):
    assert job.main([], comfyui, changed(tmp_path, _7={"x": 39}), tmp_path / "out") == 0
    assert f"[{24}] of {96 * 64 - 32 * 24} pixels changed" in capsys.readouterr().out


def test_a_refused_workflow_says_why(started, comfyui, tmp_path, capsys):
    assert job.main([], comfyui, changed(tmp_path, _1={"width": "wide"}), tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "refused part of the workflow: node 1 (EmptyImage): Failed to convert an input value to a INT value" in error
    assert len(error.strip().splitlines()) == 1


def test_a_failing_node_says_why(started, comfyui, tmp_path, capsys):
    assert job.main([], comfyui, changed(tmp_path, _8={"filename_prefix": "../../outside"}), tmp_path / "out") == 1
    assert "Node 8 (SaveImage) failed:" in capsys.readouterr().err


def test_a_missing_picture_is_named(started, comfyui, tmp_path, capsys):
    assert job.main([], comfyui, changed(tmp_path, _10={"filename_prefix": "other"}), tmp_path / "out") == 1
    assert "saved no picture called 'result'" in capsys.readouterr().err


def test_out_is_checked_before_the_server_starts(started, comfyui, tmp_path, capsys):
    (tmp_path / "out").touch()
    assert job.main([], comfyui, STOCK, tmp_path / "out") == 1
    assert "cannot be written" in capsys.readouterr().err
    assert started == []


def test_a_missing_workflow_says_so(started, comfyui, tmp_path, capsys):
    assert job.main([], comfyui, tmp_path / "none.json", tmp_path / "out") == 1
    assert "is missing" in capsys.readouterr().err
    assert started == []


def test_several_results_get_a_row_each(tmp_path):
    scene = np.full((10, 20, 3), 100, np.uint8)
    mask = np.zeros_like(scene)
    mask[2:5, 3:9] = 255
    one, two = scene.copy(), scene.copy()
    one[3, 4], two[0, 0] = 90, 90
    files, figures = job.report({"scene": [scene], "mask": [mask], "result": [one, two]}, tmp_path)
    assert {path.name for path in files} == {
        *("scene.png", "mask.png", "result-1.png", "result-2.png"),
        *("difference-1.png", "difference-2.png", "contact-sheet.png"),
    }
    assert figures["mean change inside the mask"] == f"{10 / 18:.1f}/255 0.0/255"
    assert figures["background"] == "[0, 1] of 182 pixels changed"


def test_psnr_before_the_paste_is_of_the_background_alone():
    scene = np.zeros((4, 4, 3), np.uint8)
    mask = np.zeros_like(scene)
    mask[0] = 255
    before = scene + np.uint8(5)
    before[0] = 200
    found = job.figures(scene, mask, [scene], [before])
    assert found["background PSNR before the paste"] == f"{20 * np.log10(255 / 5):.1f} dB"
