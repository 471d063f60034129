"""Log streams: the multiplexed frames of the API (W08) to stdout and stderr, with a prefix a task for services."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO  # Any: values of the API's JSON, click's options, and http.client's responses
from urllib.parse import unquote

import click

from base.printable import one_line
from cli import output
from cli.client import EngineClient, RefusedError, UnreachableError

HEADER_SIZE_BYTES = 8
STDERR, SYSTEM_ERROR = 2, 3
STREAM_MAX = 3
FRAME_MAX = 1 << 28  # a line of a log has 16 KiB, a TTY's chunk 32 KiB


def frames(stream: BinaryIO | Any) -> Iterator[tuple[int, bytes]]:
    """(stream, payload) of a multiplexed body: header ``[stream, 0, 0, 0, length as 32 bits big endian]``.

    A stream that ends within a frame gives what was there of it.

    Raises:
        UnreachableError: this is no multiplexed stream, or the daemon reports an error in it.
    """
    while header := _exactly(stream, HEADER_SIZE_BYTES):
        size = int.from_bytes(header[4:8], "big")
        if len(header) < HEADER_SIZE_BYTES or header[1:4] != b"\0\0\0" or header[0] > STREAM_MAX or size > FRAME_MAX:
            raise UnreachableError(f"unrecognized frame in the log stream: {header.hex()}")
        payload = _exactly(stream, size)
        if header[0] == SYSTEM_ERROR:
            raise UnreachableError(f"error from daemon in stream: {payload.decode(errors='replace')}")
        yield header[0], payload
        if len(payload) < size:
            return


def _exactly(stream: BinaryIO | Any, size: int) -> bytes:
    """So many bytes; fewer when the stream ends before."""
    pieces = []
    while size > 0:
        piece = stream.read(min(size, 1 << 20))
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


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


def print_container_logs(engine: EngineClient, name: str, **options: Any) -> None:
    """Copy a container's log; raw when it has a TTY."""
    tty = engine.get(f"/containers/{name}/json")["Config"]["Tty"]
    response = engine.request("GET", f"/containers/{name}/logs", params=params(**options))
    if tty:
        _copy_raw(response)
        return
    copy_frames(response)


def print_service_logs(
    engine: EngineClient,
    name: str,
    *,
    raw: bool,
    details: bool = False,
    no_resolve: bool = False,
    no_task_ids: bool = False,
    no_trunc: bool = False,
    **options: Any,
) -> None:
    """Copy the logs of a service's or a task's containers, each line with the task's name and node.

    Raises:
        click.ClickException: there is neither such a service nor such a task, or it has a terminal and ``raw`` is
            not given.
    """
    path, template, width = _log_source(engine, name)
    tty = (template.get("ContainerSpec") or {}).get("TTY", False)
    if tty and not raw:
        raise click.ClickException("tty service logs only supported with --raw")
    response = engine.request("GET", path, params=params(details=details or not raw, **options))
    if tty:
        _copy_raw(response)
    elif raw:
        copy_frames(response)
    else:
        names = TaskNames(engine, resolve=not no_resolve, task_ids=not no_task_ids, no_trunc=no_trunc, width=width)
        _copy(response, _Prefix(names, timestamps=options["timestamps"], details=details).line)


def _log_source(engine: EngineClient, name: str) -> tuple[str, dict[str, Any], int]:
    """The path of the logs, the spec of the tasks, and the digits of the highest slot."""
    try:
        spec = engine.get(f"/services/{name}")["Spec"]
        replicas = (spec["Mode"].get("Replicated") or {}).get("Replicas", 1)
        return f"/services/{name}/logs", spec["TaskTemplate"], len(str(replicas))
    except RefusedError as error:
        if error.status != 404:
            raise
    try:
        task = engine.get(f"/tasks/{name}")
    except RefusedError as error:
        if error.status != 404:
            raise
        raise click.ClickException(f"no such task or service: {name}") from error
    return f"/tasks/{name}/logs", task["Spec"], len(str(task.get("Slot", 0)))


def _copy_raw(response: Any) -> None:
    while piece := response.read1(65536):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


def copy_frames(response: Any) -> None:
    """Copy a multiplexed stream to stdout and stderr as it comes."""
    _copy(response, lambda payload: payload)


def _copy(response: Any, change: Callable[[bytes], bytes]) -> None:
    for stream, payload in frames(response):
        out = sys.stderr.buffer if stream == STDERR else sys.stdout.buffer
        out.write(change(payload))
        out.flush()


class TaskNames:
    """ "web.1.abcdef012345@host" of a task, asked for once."""

    def __init__(self, engine: EngineClient, *, resolve: bool, task_ids: bool, no_trunc: bool, width: int) -> None:
        self._engine, self._resolve = engine, resolve
        self._task_ids, self._no_trunc, self._width = task_ids, no_trunc, width
        self._known: dict[str, str] = {}

    def get(self, task_id: str, service_id: str, node_id: str) -> str:
        if task_id not in self._known:
            self._known[task_id] = self._make(task_id, service_id, node_id)
        return self._known[task_id]

    def _make(self, task_id: str, service_id: str, node_id: str) -> str:
        slot = str(self._find("tasks", task_id).get("Slot", 0))
        service, node = service_id, node_id
        if self._resolve:
            service = self._find("services", service_id).get("Spec", {}).get("Name") or service_id
            node = self._find("nodes", node_id).get("Description", {}).get("Hostname") or node_id
        name = f"{service}.{slot}"
        if self._task_ids:
            name += f".{output.short(task_id, no_trunc=self._no_trunc)}"
        return one_line(f"{name}@{node}{' ' * (self._width - len(slot))}")

    def _find(self, kind: str, object_id: str) -> dict[str, Any]:
        """The object; empty when it is gone: its log may be older than its removal."""
        try:
            found: dict[str, Any] = self._engine.get(f"/{kind}/{object_id}")
        except RefusedError:
            return {}
        return found


class _Prefix:
    """``details`` of the API puts attributes before each line; those of the swarm become the usual prefix."""

    def __init__(self, names: TaskNames, *, timestamps: bool, details: bool) -> None:
        self._names, self._timestamps, self._details = names, timestamps, details

    def line(self, payload: bytes) -> bytes:
        """One line of a log; a line without the swarm's attributes stays as it is."""
        stamp, rest = payload.split(b" ", 1) if self._timestamps and b" " in payload else (b"", payload)
        attributes, separator, text = rest.partition(b" ")
        pairs = {
            unquote(key): unquote(value)
            for key, _, value in (item.partition("=") for item in attributes.decode(errors="replace").split(","))
        }
        ids = [pairs.pop(f"com.docker.swarm.{kind}.id", "") for kind in ("task", "service", "node")]
        if not separator or not all(ids):
            return payload
        line = f"{self._names.get(*ids)}    | ".encode() + text
        if self._details:
            extra = ",".join(f"{key}={value}" for key, value in sorted(pairs.items()))
            line = f"{self._names.get(*ids)}    | {extra} ".encode() + text
        return stamp + b" " + line if stamp else line
