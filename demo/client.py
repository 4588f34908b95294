"""A client of a ComfyUI server: posts a workflow, follows its progress, fetches what it made. Standard library only."""

import contextlib
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

from .websocket import WebSocket

# A proxy set for the machine has no part in talking to loopback.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerError(RuntimeError):
    """The server could not start, died, or refused or failed a job; the message says which and why."""


class Client:
    """Talks to the server at 127.0.0.1:port."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def last_lines(self) -> str:
        """What the server said last, for the message that it died."""
        return ""

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
