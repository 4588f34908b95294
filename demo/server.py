"""A headless ComfyUI server as a child process, and a client for it. Standard library only."""

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
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .websocket import WebSocket

PACK = Path(__file__).resolve().parents[1]
# What a copy of the checkout leaves out, where no link can be made.
_NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "out", "tests", "checkpoints")
# A proxy set for the machine has no part in talking to loopback.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerError(RuntimeError):
    """The server could not start, died, or refused or failed a job; the message says which and why."""


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


class Server:
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
        self.url = f"http://127.0.0.1:{port}"
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
        with open(self.log, "wb") as log:
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
        with _undisturbed():
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

    def get(self, path: str, timeout: float = 60, **query: str) -> bytes:
        """The body at that path; raises urllib.error.HTTPError for a status of 400 and more."""
        address = self.url + path + ("?" + urllib.parse.urlencode(query) if query else "")
        with _OPENER.open(address, timeout=timeout) as answer:
            return answer.read()

    def get_json(self, path: str, timeout: float = 60, **query: str) -> Any:
        return json.loads(self.get(path, timeout, **query))

    def run(
        self, workflow: dict[str, Any], progress: Callable[[dict[str, Any]], None] = lambda _: None, limit: float = 1800
    ) -> dict[str, Any]:
        """Runs an API workflow to its end and returns its outputs, {node id: {"images": [...], ...}}.

        progress receives the server's own websocket messages, {"type": ..., "data": ...}. Raises ServerError if the
        server refuses the workflow, a node fails, the server dies, or `limit` seconds pass.
        """
        client = uuid.uuid4().hex
        deadline = time.monotonic() + limit
        try:
            with contextlib.closing(WebSocket("127.0.0.1", self.port, f"/ws?clientId={client}")) as events:
                prompt_id = self._post(workflow, client)
                while time.monotonic() < deadline:
                    event = _next_event(events)
                    if event:
                        progress(event)
                    if not event or _is_end(event, prompt_id):
                        history = self.get_json(f"/history/{prompt_id}")
                        if prompt_id in history:
                            return _outputs(history[prompt_id])
        except OSError as error:
            raise ServerError(f"The ComfyUI server died at work ({error}):\n{self.last_lines()}") from None
        raise ServerError(f"The workflow was still running after {limit:.0f} s.")

    def _post(self, workflow: dict[str, Any], client: str) -> str:
        body = json.dumps({"prompt": workflow, "client_id": client}).encode()
        request = urllib.request.Request(self.url + "/prompt", body, {"Content-Type": "application/json"})
        try:
            with _OPENER.open(request, timeout=60) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise ServerError(f"The server refused the workflow: {_reasons(error.read())}") from None
        if answer.get("node_errors"):
            raise ServerError(f"The server refused part of the workflow: {_reasons(json.dumps(answer).encode())}")
        return answer["prompt_id"]

    def picture(self, image: dict[str, str]) -> bytes:
        """The file of one entry of an output's "images"."""
        return self.get("/view", **{key: image[key] for key in ("filename", "subfolder", "type")})


def _next_event(events: WebSocket) -> dict[str, Any]:
    """The next text message within a second, or {}: a poll of the history then makes sure that no end is missed."""
    try:
        text = events.receive(timeout=1)
    except TimeoutError:
        return {}
    return {"type": "preview", "data": {}} if text is None else json.loads(text)


def _is_end(event: dict[str, Any], prompt_id: str) -> bool:
    data = event["data"]
    return event["type"] == "executing" and data["node"] is None and data.get("prompt_id") == prompt_id


def _outputs(entry: dict[str, Any]) -> dict[str, Any]:
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            message = str(data["exception_message"]).strip()
            raise ServerError(f"Node {data['node_id']} ({data['node_type']}) failed: {message}")
        if kind == "execution_interrupted":
            raise ServerError("The workflow was interrupted.")
    return entry["outputs"]


def _reasons(body: bytes) -> str:
    """One sentence from the server's validation answer."""
    try:
        answer = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")[:500]
    details = [
        f"node {node} ({problem['class_type']}): {error['message']}, {error['details']}"
        for node, problem in (answer.get("node_errors") or {}).items()
        for error in problem["errors"]
    ]
    error = answer.get("error")
    whole = f"{error.get('message')} {error.get('details', '')}" if isinstance(error, dict) else str(error)
    return "; ".join(details) or whole.strip()


def _signal_group(process: subprocess.Popen, force: bool) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name != "nt":
            os.killpg(process.pid, signal.SIGKILL if force else signal.SIGTERM)
        elif process.poll() is None:
            process.kill()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    kept = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
