"""The rooms' walls: who imports what, and nothing that holds on one machine only."""

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PURE = ("attention", "guidance", "training")
ROOMS = (*PURE, "nodes", "host", "demo", "evaluation", "benchmarks")
# Top-level modules of ComfyUI's folder; `nodes` and `utils` among them, since ours are imported relatively.
HOST_MODULES = {
    *("api_server", "app", "comfy", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras"),
    *("cuda_malloc", "execution", "folder_paths", "latent_preview", "middleware", "node_helpers", "nodes"),
    *("protocol", "server", "utils", "comfy_api", "main"),
}
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")) + [ROOT / "__init__.py"]


def absolute_imports(path: Path) -> Iterator[str]:
    """The first part of every absolute import's name, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def allowed(path: Path) -> set[str]:
    room = path.relative_to(ROOT).parts[0]
    if room == "host":
        return HOST_MODULES
    return {"comfy_api"} if room in ("nodes", "__init__.py") else set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_follow_the_contract(path):
    found = set(absolute_imports(path))
    assert found & HOST_MODULES <= allowed(path)
    assert not found & {"inlay", *ROOMS} - (HOST_MODULES if path.relative_to(ROOT).parts[0] == "host" else set())


def relative_imports(path: Path) -> Iterator[str]:
    """The room (or root module) that every relative import reaches."""
    package = ("inlay", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            names = [*base, *(node.module or "").split(".")] if node.module else [*base, node.names[0].name]
            yield names[1] if len(names) > 1 else ""


@pytest.mark.parametrize("room", PURE)
def test_the_maths_reaches_no_room_that_knows_comfyui(room):
    reached = {target for path in (ROOT / room).rglob("*.py") for target in relative_imports(path)}
    assert reached <= set(PURE)


def test_the_hosts_own_nodes_are_not_hidden():
    import nodes

    comfyui = Path(os.environ.get("INLAY_COMFYUI", ROOT / ".host" / "ComfyUI-0.30.0"))
    assert Path(nodes.__file__).resolve().parent == comfyui.resolve()
    assert sys.modules["inlay.nodes"] is not nodes if "inlay.nodes" in sys.modules else True


TEXT = {".py", ".md", ".json", ".toml", ".txt", ".yaml", ".cfg"}
SHIPPED = sorted(
    path
    for path in ROOT.rglob("*")
    if path.suffix in TEXT and not any(part.startswith(".") or part == "out" for part in path.relative_to(ROOT).parts)
)


def test_no_file_names_a_place_on_one_machine():
    place = re.compile(r"(?<![\w.])/(?:home|root|Users|work|mnt|workspace)/\w|[A-Z]:\\\\?Users")
    named = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in SHIPPED
        if path.name != "test_layout.py" and path.stat().st_size < 2_000_000
        for match in place.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert named == []
