"""Starting and stopping: no server and no folder stays behind, whatever happens."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from inlay.demo import server as module
from inlay.demo.server import PACK, Server, ServerError

STOCK = Path(__file__).with_name("stock-paint.json")

ONLY_POSIX = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def fake_host(folder: Path, code: str) -> Path:
    (folder / "main.py").write_text(code)
    return folder


def test_the_pack_is_registered_from_outside(server, comfyui):
    assert not (comfyui / "custom_nodes" / "inlay").exists()
    assert server.folder not in comfyui.parents
    assert str(server.folder / "packs" / "inlay") in server.log_text()


def test_a_taken_port_is_left_for_another_and_a_dead_server_is_noticed(comfyui, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ports = [other.getsockname()[1], module.free_port()]
        monkeypatch.setattr(module, "free_port", ports.pop)
        ports.reverse()
        with Server(comfyui) as server:
            assert server.port != other.getsockname()[1] and ports == []
            server._process.kill()
            with pytest.raises(ServerError, match="died at work"):
                server.run(json.loads(STOCK.read_text()))
    assert not server.folder.exists()


def test_a_server_that_cannot_start_shows_its_last_lines(tmp_path):
    server = Server(fake_host(tmp_path, "print('no such thing'); raise SystemExit(3)"))
    with pytest.raises(ServerError, match="did not start.*\n.*no such thing"), server:
        pass
    assert not server.folder.exists()


@ONLY_POSIX
def test_a_deaf_server_is_ended_with_its_children(tmp_path):
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    server = Server(fake_host(tmp_path, code), patience=2)
    with pytest.raises(ServerError, match="did not answer within 2 s"), server:
        pass
    assert not alive(server._process.pid)
    child = int((tmp_path / "child").read_text())
    status = Path(f"/proc/{child}/status")
    # A killed child may wait for its adoptive parent to collect it.
    assert not alive(child) or (status.exists() and "zombie" in status.read_text())


def test_where_links_are_forbidden_the_pack_is_copied(tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise OSError("privilege not held")

    monkeypatch.setattr(Path, "symlink_to", forbidden)
    module.link_pack(tmp_path / "packs")
    copy = tmp_path / "packs" / "inlay"
    assert not copy.is_symlink()
    assert (copy / "__init__.py").read_bytes() == (PACK / "__init__.py").read_bytes()
    assert {"nodes", "host", "demo", "guidance"} <= {path.name for path in copy.iterdir()}
    assert not {".venv", ".host", ".git", "tests"} & {path.name for path in copy.iterdir()}


STARTER = """
import sys, types
package = types.ModuleType("inlay")
package.__path__ = [sys.argv[1]]
sys.modules["inlay"] = package
import signal
# A job that a shell has put in the background is started deaf to SIGINT.
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.default_int_handler)
from inlay.demo.server import Server
server = Server(sys.argv[2])
try:
    with server:
        pass
except KeyboardInterrupt:
    sys.exit(130)
"""


@ONLY_POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_starting_leaves_nothing(tmp_path, number):
    code = (
        "import os, sys, time\n"
        f"open({str(tmp_path / 'seen')!r}, 'w').write(str(os.getpid()) + ' ' + os.path.dirname(sys.argv[-3]))\n"
        "time.sleep(60)\n"
    )
    fake_host(tmp_path, code)
    child = subprocess.Popen([sys.executable, "-c", STARTER, str(PACK), str(tmp_path)])
    deadline = time.monotonic() + 20
    while not (tmp_path / "seen").exists() or not (tmp_path / "seen").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(number)
    assert child.wait(timeout=20) == 130
    pid = int((tmp_path / "seen").read_text().split()[0])
    assert not alive(pid)


@ONLY_POSIX
def test_a_stop_in_the_moment_of_starting_waits_for_it(tmp_path, monkeypatch):
    started, popen = [], subprocess.Popen

    def start(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        os.kill(os.getpid(), signal.SIGTERM)
        return started[-1]

    monkeypatch.setattr(module.subprocess, "Popen", start)
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = Server(fake_host(tmp_path, "import time; time.sleep(60)"))
    try:
        with pytest.raises(KeyboardInterrupt), server:
            pass
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert started[0].returncode is not None and not server.folder.exists()
