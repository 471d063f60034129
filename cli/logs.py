"""Log streams: the multiplexed frames of the API (W08) to stdout and stderr, with a prefix a task for services."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from cli import output
from cli.client import Engine, EngineError

HEADER_SIZE_BYTES = 8
STDERR = 2


def frames(stream: BinaryIO | Any) -> Iterator[tuple[int, bytes]]:
    """(stream, payload) of a multiplexed body: header ``[stream, 0, 0, 0, length as 32 bits big endian]``."""
    while header := _exactly(stream, HEADER_SIZE_BYTES):
        yield header[0], _exactly(stream, int.from_bytes(header[4:8], "big"))


def _exactly(stream: BinaryIO | Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = stream.read(size - len(data))
        if not piece:
            return b""
        data += piece
    return data


def params(
    *, follow: bool, tail: str, since: str, timestamps: bool, details: bool = False
) -> dict[str, str | int | bool | None]:
    """The query of a logs request."""
    return {
        "stdout": True,
        "stderr": True,
        "follow": follow,
        "tail": tail,
        "since": since or None,
        "timestamps": timestamps,
        "details": details or None,
    }


def print_container_logs(engine: Engine, name: str, **options: Any) -> None:
    """Copy a container's log; raw when it has a TTY."""
    tty = engine.get(f"/containers/{name}/json")["Config"]["Tty"]
    response = engine.request("GET", f"/containers/{name}/logs", params=params(**options))
    if tty:
        while piece := response.read1(65536):
            sys.stdout.buffer.write(piece)
            sys.stdout.flush()
        return
    _copy(response, lambda payload: payload)


def print_service_logs(engine: Engine, name: str, *, raw: bool, **options: Any) -> None:
    """Copy the logs of a service's or a task's containers, each line with the task's name and node."""
    path = f"/services/{name}/logs"
    try:
        engine.get(f"/services/{name}")
    except EngineError as error:
        if error.status != 404:
            raise
        engine.get(f"/tasks/{name}")
        path = f"/tasks/{name}/logs"
    response = engine.request("GET", path, params=params(details=not raw, **options))
    prefix = _Prefix(engine)
    _copy(response, prefix.line if not raw else lambda payload: payload)


def _copy(response: Any, change: Callable[[bytes], bytes]) -> None:
    for stream, payload in frames(response):
        out = sys.stderr.buffer if stream == STDERR else sys.stdout.buffer
        out.write(change(payload))
        out.flush()


class _Prefix:
    """``details`` puts ``com.docker.swarm.*`` attributes before each line; this makes the usual prefix of them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._names: dict[str, str] = {}

    def line(self, payload: bytes) -> bytes:
        details, separator, text = payload.partition(b" ")
        pairs = dict(item.partition("=")[::2] for item in details.decode(errors="replace").split(","))
        task_id = pairs.get("com.docker.swarm.task.id", "")
        if not separator or not task_id:
            return payload
        if task_id not in self._names:
            self._names[task_id] = self._name(task_id, pairs)
        return f"{self._names[task_id]}    | ".encode() + text

    def _name(self, task_id: str, pairs: dict[str, str]) -> str:
        try:
            task = self._engine.get(f"/tasks/{task_id}")
            service = self._engine.get(f"/services/{task['ServiceID']}")["Spec"]["Name"]
            node = self._engine.get(f"/nodes/{task['NodeID']}")["Description"]["Hostname"]
        except EngineError:
            return f"{output.short(task_id)}@{output.short(pairs.get('com.docker.swarm.node.id', ''))}"
        return f"{service}.{task.get('Slot') or task['NodeID']}.{output.short(task_id)}@{node}"
