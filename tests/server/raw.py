"""A raw HTTP/1.1 connection: sends what no client would, and sees what clients hide."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field
from typing import Any, Self

from tests.servers import RunningServer

CHAT = "/v1/chat/completions"


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    ended: bool = True  # as its framing says; False: the connection was dropped before

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error = self.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert self.headers["content-type"] == "application/json"
        return dict(error)


class Connection:
    def __init__(self, server: RunningServer, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(60)
        self.buffer = b""
        try:
            self.socket.connect(("127.0.0.1", server.port))
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def request(self, method: str, path: str, body: bytes | Any = b"", **headers: str) -> None:
        """Names of headers with underscores for hyphens."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
        if body or method == "POST":
            lines += [f"Content-Length: {len(body)}", "Content-Type: application/json"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def chat(self, **wanted: Any) -> None:
        self.request("POST", CHAT, wanted)

    def read(self, method: str = "GET") -> Response:
        """One response, whole; a dropped one has `ended` False."""
        response = self.head()
        if method == "HEAD" or response.status in (204, 304):
            return response
        if response.headers.get("transfer-encoding") == "chunked":
            while (chunk := self.chunk()) is not None:
                if not chunk:
                    break
                response.chunks.append(chunk)
            response.ended = chunk is not None
            response.body = b"".join(response.chunks)
        elif "content-length" in response.headers:
            response.body = self._take(int(response.headers["content-length"]))
        else:
            response.body = self.rest()
        return response

    def head(self) -> Response:
        lines = self._until(b"\r\n\r\n").decode("latin1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines[1:] if line]
        return Response(int(lines[0].split(" ")[1]), {name.lower(): value for name, value in pairs})

    def chunk(self) -> bytes | None:
        """The next chunk, b"" for the last, None if the connection ended before it."""
        try:
            size = int(self._until(b"\r\n"), 16)
            return self._take(size + 2)[:-2]
        except EOFError:
            return None

    def stream(self) -> list[bytes]:
        """What follows `head()`; fails if the stream breaks off."""
        chunks = []
        while chunk := self.chunk():
            chunks.append(chunk)
        assert chunk == b"", "the stream broke off"
        return chunks

    def rest(self) -> bytes:
        """Everything until the server closes."""
        while data := self.socket.recv(65536):
            self.buffer += data
        data, self.buffer = self.buffer, b""
        return data

    @property
    def closed(self) -> bool:
        """Waits for the server to close; fails by time-out if it does not."""
        return self.buffer == b"" and self.socket.recv(1) == b""

    def _until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            self._more()
        found, _, self.buffer = self.buffer.partition(mark)
        return found

    def _take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self._more()
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError("the server closed the connection")
        self.buffer += data


def ask(server: RunningServer, method: str, path: str, body: bytes | Any = b"", **headers: str) -> Response:
    """One request on a connection of its own."""
    with Connection(server) as connection:
        connection.request(method, path, body, **headers)
        return connection.read(method)
