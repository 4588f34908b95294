"""The registry's view of the pack, read by the host's own parser."""

from pathlib import Path

from comfy_config.config_parser import extract_node_configuration

ROOT = Path(__file__).resolve().parents[1]


def test_the_host_reads_our_pyproject():
    found = extract_node_configuration(str(ROOT))
    assert (found.project.name, found.project.version) == ("inlay", "0.1.0")
    assert found.project.license.file == "LICENSE"
    assert found.project.supported_comfyui_version == ">=0.16.3"
    assert found.project.supported_os and found.project.supported_accelerators
    assert found.tool_comfy.display_name == "Inlay"
    # Unset until there are real ones; `web` would move the help pages to another address.
    assert not (found.tool_comfy.publisher_id or found.tool_comfy.icon or found.tool_comfy.web)


def test_a_users_comfyui_lacks_nothing():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if line.strip() and not line.startswith("#")] == []


def test_the_licence_is_apache_and_names_its_holder():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert "Inlay contributors" in text
