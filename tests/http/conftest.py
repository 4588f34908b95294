"""One real ComfyUI server for the session, with the pack registered from outside."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from inlay.demo.server import Server

COMFYUI = Path(os.environ.get("INLAY_COMFYUI", Path(__file__).resolve().parents[2] / ".host" / "ComfyUI-0.30.0"))


@pytest.fixture(scope="session")
def comfyui() -> Path:
    return COMFYUI


@pytest.fixture(scope="session")
def server(comfyui: Path) -> Iterator["Server"]:
    # Only now: pytest may load this file before the pack can be imported.
    from inlay.demo.server import Server

    with Server(comfyui) as running:
        yield running


@pytest.fixture(scope="session")
def object_info(server: "Server") -> dict[str, Any]:
    return server.get_json("/object_info")
