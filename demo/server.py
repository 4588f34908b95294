"""A headless ComfyUI server as a child process. Standard library only."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .client import Client, ServerError

PACK = Path(__file__).resolve().parents[1]
# What a copy of the checkout leaves out, where no link can be made.
_NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "out", "tests", "checkpoints")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def link_pack(parent: Path) -> None:
    """Puts this checkout into the folder under the name `inlay`, as a link where the system allows one."""
    parent.mkdir(parents=True)
    try:
        (parent / "inlay").symlink_to(PACK, target_is_directory=True)
    except OSError:
        shutil.copytree(PACK, parent / "inlay", ignore=_NOT_COPIED)


class Server(Client):
    """`with Server(comfyui) as server:` runs a ComfyUI on a free loopback port with this pack registered.

    Models, input and output live in a temporary folder that goes with the server; `comfyui` itself stays as it is.
    The server is stopped however the block ends. Raises ServerError if it does not come up within `patience` seconds.
    """

    def __init__(self, comfyui: Path, cpu: bool = True, patience: float = 300, python: str = sys.executable) -> None:
        self.comfyui, self.cpu, self.patience, self.python = Path(comfyui).resolve(), cpu, patience, python
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Server":
        self.folder = Path(tempfile.mkdtemp(prefix="inlay-server-")).resolve()
        self.log = self.folder / "server.log"
        try:
            for name in ("custom_nodes", "input", "output", "models", "user"):
                (self.folder / "base" / name).mkdir(parents=True)
            link_pack(self.folder / "packs")
            # JSON is YAML, and needs no care for odd characters in paths.
            paths = {"inlay": {"custom_nodes": str(self.folder / "packs")}}
            (self.folder / "paths.yaml").write_text(json.dumps(paths), encoding="utf-8")
            for _ in range(3):
                self._start(free_port())
                if self._up():
                    return self
            raise ServerError("Every port tried for the ComfyUI server was taken in the meantime; run it again.")
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, port: int) -> None:
        self.port = port
        command = [self.python, str(self.comfyui / "main.py"), "--port", str(port), "--listen", "127.0.0.1"]
        command += ["--base-directory", str(self.folder / "base")]
        command += ["--extra-model-paths-config", str(self.folder / "paths.yaml")]
        command += ["--database-url", f"sqlite:///{(self.folder / 'comfyui.db').as_posix()}"]
        command += ["--disable-api-nodes", "--disable-auto-launch", *(["--cpu"] if self.cpu else [])]
        # In a process group of its own, so that a terminal's Ctrl-C reaches us alone and we stop it in order.
        group: dict[str, Any] = {"start_new_session": True}
        if os.name == "nt":
            group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        # A stop between the start and the assignment would leave the server behind.
        with _stops_wait(), open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, **group
            )

    def _up(self) -> bool:
        """Waits until our server answers; False if its port was taken by another."""
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            died = self._process.poll() is not None
            # Whoever else might sit on that port answers something else, or names another folder.
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                if not died and str(self.folder / "base") in self.get_json("/system_stats", 2)["system"]["argv"]:
                    return True
            if died:
                if self.port_taken():
                    return False
                raise ServerError(f"The ComfyUI server did not start; its last lines are:\n{self.last_lines()}")
            time.sleep(0.2)
        raise ServerError(
            f"The ComfyUI server did not answer within {self.patience:.0f} s; its last lines are:\n{self.last_lines()}"
        )

    def port_taken(self) -> bool:
        text = self.log_text().lower()
        return "address already in use" in text or f"port {self.port} is already in use" in text

    def stop(self) -> None:
        """Ends the server and its children and removes its folder; a second Ctrl-C does not get in between."""
        with _stops_wait(forget=True):
            process = self._process
            if process is not None and process.poll() is None:
                _signal_group(process, force=False)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=5)
                _signal_group(process, force=True)
                process.wait()
            shutil.rmtree(self.folder, ignore_errors=True)

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def last_lines(self, count: int = 15) -> str:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", self.log_text())
        return "\n".join([line for line in plain.splitlines() if line.strip()][-count:])


def _signal_group(process: subprocess.Popen, force: bool) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name != "nt":
            os.killpg(process.pid, signal.SIGKILL if force else signal.SIGTERM)
        elif process.poll() is None:
            process.kill()


@contextlib.contextmanager
def _stops_wait(forget: bool = False) -> Iterator[None]:
    """A signal that stops us comes through after the block, or not at all where `forget`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    kept = {number: signal.signal(number, lambda number, _: came.append(number)) for number in heard}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        if came and not forget:
            signal.raise_signal(came[0])
