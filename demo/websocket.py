"""The reading half of a websocket (RFC 6455), enough to follow a ComfyUI server. Standard library only."""

import base64
import os
import socket
import struct
import time


class WebSocket:
    """Connects to ws://host:port/path. Raises OSError if the server refuses or closes the connection."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self._socket = socket.create_connection((host, port), timeout=30)
        self._buffer = self._message = b""
        self._kind = 0
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self._buffer:
            self._fill(time.monotonic() + 30)
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n", 1)[0] + b" ":
            raise ConnectionError(f"The server opened no websocket: {head.splitlines()[0].decode(errors='replace')}")

    def receive(self, timeout: float) -> str | None:
        """The next text message, or None for another kind (previews). Raises TimeoutError; nothing is lost by it."""
        deadline = time.monotonic() + timeout
        while True:
            final, opcode, payload = self._frame(deadline)
            if opcode == 0x8:
                raise ConnectionError("The server closed the websocket.")
            if opcode == 0x9:
                self._pong(payload)
            if opcode >= 0x8:
                continue
            self._kind = opcode or self._kind
            self._message += payload
            if final:
                message, self._message = self._message, b""
                return message.decode() if self._kind == 0x1 else None

    def close(self) -> None:
        self._socket.close()

    def _frame(self, deadline: float) -> tuple[bool, int, bytes]:
        """(final, opcode, payload) of the next frame, taken from the buffer only once it is complete."""
        self._need(2, deadline)
        first, size = self._buffer[0], self._buffer[1] & 0x7F
        begin = 2
        if size > 125:
            length, pattern = (2, ">H") if size == 126 else (8, ">Q")
            self._need(begin + length, deadline)
            size = struct.unpack_from(pattern, self._buffer, begin)[0]
            begin += length
        self._need(begin + size, deadline)
        payload, self._buffer = self._buffer[begin : begin + size], self._buffer[begin + size :]
        return bool(first & 0x80), first & 0x0F, payload

    def _need(self, size: int, deadline: float) -> None:
        while len(self._buffer) < size:
            self._fill(deadline)

    def _fill(self, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._socket.settimeout(remaining)
        chunk = self._socket.recv(1 << 16)
        if not chunk:
            raise ConnectionError("The server closed the connection.")
        self._buffer += chunk

    def _pong(self, payload: bytes) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        self._socket.sendall(bytes((0x8A, 0x80 | len(payload))) + mask + masked)
