"""The Engine API over a unix socket or TCP, with the standard library alone: importing aiohttp would cost 170 ms."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

DEFAULT_HOST = "unix:///run/swarm/engine.sock"
Object = dict[str, Any]  # JSON of the Engine API, as it came
Params = Mapping[str, "str | int | bool | None"]


class RefusedError(Exception):
    """The daemon refused; the message is its own. ``status`` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"Error response from daemon: {message}")
        self.status = status
        self.message = message


class UnreachableError(Exception):
    """No daemon answers at the host given."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class EngineClient:
    """A client of one daemon. A connection a request: a command makes few, and none may hang on another.

    Args:
        host: ``unix:///path`` or ``tcp://host:port``.
    """

    def __init__(self, host: str = "") -> None:
        self.host = host or os.environ.get("SWARM_HOST") or os.environ.get("DOCKER_HOST") or DEFAULT_HOST
        wanted = f"invalid host {self.host!r}: want unix:///path or tcp://host:port"
        try:
            parts = urlsplit(self.host)
            self._port = parts.port or 2375
        except ValueError as error:
            raise UnreachableError(wanted) from error
        if parts.scheme not in ("unix", "tcp") or not (parts.path if parts.scheme == "unix" else parts.hostname):
            raise UnreachableError(wanted)
        self._parts = parts

    def _connect(self, timeout_s: float | None) -> http.client.HTTPConnection:
        if self._parts.scheme == "unix":
            return _UnixConnection(self._parts.path, timeout_s)
        return http.client.HTTPConnection(self._parts.hostname or "localhost", self._port, timeout=timeout_s)

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> http.client.HTTPResponse:
        """Send one request; the caller reads the answer.

        Args:
            params: query; a bool becomes 1 or 0, None is left out.
            body: bytes or a binary file as they are, anything else as JSON.

        Raises:
            RefusedError: status 400 or above. UnreachableError: no daemon there.
        """
        query = {k: str(int(v)) if isinstance(v, bool) else str(v) for k, v in (params or {}).items() if v is not None}
        sent = dict(headers or {})
        if body is not None and not isinstance(body, bytes) and not hasattr(body, "read"):
            body = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        target = quote(path, safe="/:@%~!$&'()*+,;=") + (f"?{urlencode(query)}" if query else "")
        connection = self._connect(timeout_s)
        try:
            connection.request(method, target, body=body, headers=sent)
            response = connection.getresponse()
        except BrokenPipeError:
            # The daemon refused before it had read the whole body: its answer is there to be read.
            response = self._early_answer(connection)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        if response.status >= 400:
            raise RefusedError(response.status, _message(response))
        return response

    def _early_answer(self, connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
        if connection.sock is None:
            raise UnreachableError(f"Cannot connect to the daemon at {self.host}: it closed the connection")
        response = http.client.HTTPResponse(connection.sock)
        try:
            response.begin()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        return response

    def get(self, path: str, *, timeout_s: float | None = None, **params: str | int | bool | None) -> Any:
        """The answer to a GET, decoded."""
        return self._decoded("GET", path, params=params, timeout_s=timeout_s)

    def post(self, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None, **params: Any) -> Any:
        """The answer to a POST, decoded; None when it is empty."""
        return self._decoded("POST", path, params=params, body=body, headers=headers)

    def delete(self, path: str, **params: str | int | bool | None) -> Any:
        return self._decoded("DELETE", path, params=params)

    def _decoded(self, method: str, path: str, **options: Any) -> Any:
        """Send, read and decode. Raises: as ``request``; UnreachableError too for an answer that breaks off."""
        with self.request(method, path, **options) as response:
            return self.decode(response)

    def decode(self, response: http.client.HTTPResponse) -> Any:
        """The JSON of an answer, None when it is empty. Raises: UnreachableError when it breaks off or is none."""
        try:
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        if not data.strip():
            return None
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UnreachableError(f"{self.host} answered with what is no JSON: is it an engine?") from error

    def _unreachable(self, error: Exception) -> UnreachableError:
        match error:
            case PermissionError():
                hint = "permission denied: run as root or as a member of the socket's group"
            case FileNotFoundError() | ConnectionRefusedError():
                hint = f"{error.strerror}: is swarmd running?"
            case TimeoutError():
                hint = "it did not answer in time"
            case OSError():
                hint = error.strerror or str(error)
            case _:
                hint = f"the answer is not HTTP or broke off: {type(error).__name__} {error!s:.80}".strip()
        return UnreachableError(f"Cannot connect to the daemon at {self.host}: {hint}")

    def messages(self, method: str, path: str, *, body: Any = None, params: Params | None = None) -> Iterator[Object]:
        """A stream of JSON objects, as pull and load answer with.

        Raises:
            RefusedError: the stream itself reports an error.
        """
        with self.request(method, path, params=params, body=body) as response:
            try:
                yield from self._messages(response)
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable(error) from error

    def _messages(self, response: http.client.HTTPResponse) -> Iterator[Object]:
        for line in response:
            if not line.strip():
                continue
            try:
                message = json.loads(line)
            except ValueError as error:
                raise UnreachableError(f"{self.host} sent what is no JSON: {line[:80]!r}") from error
            if "error" in message:
                raise RefusedError(500, str(message["error"]))
            yield message

    def list(self, path: str, filters: Mapping[str, Any] | None = None, **params: Any) -> list[Object]:
        """A list endpoint with filters, values as a list or a mapping of booleans."""
        encoded = json.dumps(filters) if filters else None
        found = self.get(path, filters=encoded, **params)
        return list(found or ())


def _message(response: http.client.HTTPResponse) -> str:
    data = response.read()
    try:
        return str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        return data.decode(errors="replace").strip() or response.reason
