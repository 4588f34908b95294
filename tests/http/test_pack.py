"""What the server tells the web page about the pack: nodes, tooltips, help pages, locale."""

from collections.abc import Iterator
from typing import Any

import pytest
from inlay.nodes import all_nodes
from inlay.nodes.locale import node_definitions

NODE_IDS = sorted(node.GET_SCHEMA().node_id for node in all_nodes())


def inputs_of(info: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, options) of every input, those inside dynamic combos included."""
    for group in ("required", "optional"):
        for name, spec in info.get(group, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            yield name, options
            for choice in options.get("options") or []:
                if isinstance(choice, dict):
                    yield from inputs_of(choice["inputs"])


def test_the_server_knows_exactly_our_nodes(object_info):
    assert sorted(name for name in object_info if name.startswith("Inlay")) == NODE_IDS


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_every_socket_is_explained(object_info, node_id):
    info = object_info[node_id]
    assert info["category"].startswith("inlay/")
    assert info["display_name"] and info["description"]
    assert [name for name, options in inputs_of(info["input"]) if not options.get("tooltip")] == []
    tooltips = info.get("output_tooltips") or []
    assert len(tooltips) == len(info["output"]) and all(tooltips)


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_the_help_page_and_its_picture_are_served(server, node_id):
    page = server.get(f"/extensions/inlay/docs/{node_id}.md").decode()
    assert f"{node_id}.jpg" in page
    assert server.get(f"/extensions/inlay/docs/{node_id}.jpg").startswith(b"\xff\xd8")


def test_the_locale_is_served(server):
    served = server.get_json("/i18n")["en"]["nodeDefs"]
    for node_id, entry in node_definitions(all_nodes()).items():
        assert served[node_id] == entry
