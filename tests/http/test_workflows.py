"""Every shipped workflow, unmodified: the API files run on the server, the graph files open in the web page."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from inlay.demo.graph import to_graph
from inlay.demo.job import contact_sheet, fetch
from inlay.demo.server import PACK

API = sorted((PACK / "workflows" / "api").glob("*.json"))
GRAPHS = sorted((PACK / "workflows").glob("*.json"))
# Node types that live in the web page alone.
PAGE_ONLY = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", API, ids=lambda path: path.stem)
def test_it_runs_and_makes_pictures(server, path):
    graph = read(path)
    pictures = fetch(server, graph, server.run(graph))
    assert pictures
    if os.environ.get("INLAY_WRITE_GRAPHS"):
        # Pictures that are parts of one batch stand one below the other.
        longest = max(map(len, pictures.values()))
        rows = [tuple(images[min(row, len(images) - 1)] for images in pictures.values()) for row in range(longest)]
        contact_sheet(rows, tuple(pictures), tile=192).save(path.parents[1] / f"{path.stem}.jpg", quality=88)
    assert [name for name, images in pictures.items() if any(image.min() == image.max() for image in images)] == []


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_it_opens(object_info, path):
    graph = read(path)
    assert path.with_suffix(".jpg").is_file()
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert {node["type"] for node in nodes.values()} - PAGE_ONLY <= set(object_info)
    for link, source, slot, target, place, kind in graph["links"]:
        assert link in nodes[source]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][place]["link"] == link
        assert kind == nodes[source]["outputs"][slot]["type"]


@pytest.mark.parametrize("path", API, ids=lambda path: path.stem)
def test_both_files_are_the_same_job(object_info, path):
    graph = path.parents[1] / path.name
    if os.environ.get("INLAY_WRITE_GRAPHS"):
        graph.write_text(json.dumps(to_graph(read(path), object_info), indent=1) + "\n")
    ours = read(graph)
    assert Counter(node["type"] for node in ours["nodes"]) == Counter(
        node["class_type"] for node in read(path).values()
    ), "Run the tests once with INLAY_WRITE_GRAPHS=1."
    made = {node["id"]: node for node in to_graph(read(path), object_info)["nodes"]}
    for node in ours["nodes"]:
        if node["type"].startswith("Inlay"):
            assert node["widgets_values"] == made[node["id"]]["widgets_values"]
        # The host's own nodes have other widgets besides in other versions.
        given = read(path)[str(node["id"])]["inputs"]
        widgets = [value for value in given.values() if not isinstance(value, list)]
        assert [value for value in widgets if value not in node["widgets_values"]] == []


def test_every_workflow_has_both_files():
    assert {path.name for path in API} == {path.name for path in GRAPHS}
