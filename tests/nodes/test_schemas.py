"""What the web page and scripts see of every node."""

import json
import os
from pathlib import Path

import pytest
from inlay.nodes import all_nodes
from inlay.nodes.locale import node_definitions

ROOT = Path(__file__).resolve().parents[2]
LOCALE = ROOT / "locales" / "en" / "nodeDefs.json"
NODES = {node.define_schema().node_id: node for node in all_nodes()}


def test_the_locale_says_what_the_schemas_say():
    wanted = node_definitions(list(NODES.values()))
    if os.environ.get("INLAY_WRITE_LOCALE"):
        LOCALE.parent.mkdir(parents=True, exist_ok=True)
        LOCALE.write_text(json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")
    assert json.loads(LOCALE.read_text()) == wanted, "Run the tests once with INLAY_WRITE_LOCALE=1."


@pytest.mark.parametrize("name", NODES)
def test_a_node_explains_itself(name):
    schema = NODES[name].define_schema()
    schema.validate()
    assert name.startswith("Inlay") and schema.category.startswith("inlay/")
    assert schema.display_name and schema.description and schema.search_aliases
    for socket in [*schema.inputs, *schema.outputs]:
        assert socket.tooltip and socket.tooltip.strip().endswith((".", ")")), socket.id


@pytest.mark.parametrize("name", NODES)
def test_a_node_has_a_help_page(name):
    page = ROOT / "web" / "docs" / f"{name}.md"
    assert page.is_file()
    text = page.read_text()
    assert len(text.split()) > 80
    assert f"{name}.jpg" in text and page.with_suffix(".jpg").is_file()
