"""An HTTP server on a unix socket that answers as the Engine API does, from a table, and remembers what it was asked.

It stands in for the daemon on the far side of a socket: the command under test speaks real HTTP to it, and so does
the ``docker`` command that it is compared with. ``tests/contract/test_engine_api.py`` asks it and the real application
the same.
"""

from __future__ import annotations

import json
import re
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Asked:
    """One request: path without its version, decoded query and body."""

    method: str
    path: str
    query: dict[str, str]
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Raw:
    """An answer as bytes; anything else that a route gives is sent as JSON."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"


Route = Callable[[Asked], Any]


class FakeEngine:
    """Routes are ``"GET /nodes/(.+)"`` to a value, or to a function of the request; the first that matches answers."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path
        self.asked: list[Asked] = []
        self.routes: dict[str, Any] = {}

    @property
    def host(self) -> str:
        return f"unix://{self.socket_path}"

    def bodies(self, method: str, path: str) -> list[Any]:
        return [asked.body for asked in self.asked if (asked.method, asked.path) == (method, path)]

    def answer(self, asked: Asked) -> Raw:
        self.asked.append(asked)
        for pattern, answer in self.routes.items():
            if re.fullmatch(pattern, f"{asked.method} {asked.path}"):
                made = answer(asked) if callable(answer) else answer
                return made if isinstance(made, Raw) else Raw(json.dumps(made).encode(), _status(asked))
        return missing(f"page not found: {asked.method} {asked.path}")


DONE = Raw(b"")
"""A change that has nothing to tell."""


def _status(asked: Asked) -> int:
    return 201 if asked.method == "POST" and asked.path.endswith("/create") else 200


def frame(stream: int, payload: bytes) -> bytes:
    """A piece of output: 1 is stdout, 2 is stderr."""
    return bytes([stream, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


def logged(*frames: bytes) -> Raw:
    return Raw(b"".join(frames), content_type="application/vnd.docker.multiplexed-stream")


def attached(*frames: bytes) -> Raw:
    """Frames as well: an attachment without an upgrade never says so."""
    return Raw(b"".join(frames), content_type="application/vnd.docker.raw-stream")


def missing(message: str) -> Raw:
    return refused(404, message)


def refused(status: int, message: str) -> Raw:
    return Raw(json.dumps({"message": message}).encode(), status)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: ClassVar[FakeEngine]

    def address_string(self) -> str:
        return "client"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name is the base class's
        pass

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        path = re.sub(r"^/v1\.\d+", "", parts.path)
        length = int(self.headers.get("Content-Length") or 0)
        data = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        try:
            body = json.loads(data) if data else None
        except ValueError:
            body = data
        query = {key: found[-1] for key, found in parse_qs(parts.query).items()}
        if path == "/_ping":
            answer = Raw(b"OK", content_type="text/plain")
        else:
            answer = self.engine.answer(Asked(self.command, path, query, body, dict(self.headers)))
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("API-Version", "1.51")
        self.send_header("Ostype", "linux")
        self.send_header("Swarm", "active/manager")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    do_GET = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815  # names that the base class calls


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away while the next request is awaited is no error worth a traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(directory: Path) -> Iterator[FakeEngine]:
    """A fake engine that listens until the block ends."""
    engine = FakeEngine(directory / "engine.sock")
    handler = type("Handler", (_Handler,), {"engine": engine})
    server = _Server(str(engine.socket_path), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield engine
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
