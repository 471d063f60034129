"""The agent's memory across restarts: assignments and statuses in one file, ``STATE/assignments``.

A header, then records: length and CRC-32 of the payload (4 bytes each, big-endian), then the payload: one byte for the
kind and a protobuf message (``AssignmentChange`` or ``TaskStatusUpdate``). Later records replace earlier ones. Changes
are appended; when more than half of the file is dead it is written anew and renamed into place, so it stays within twice
what is live plus 256 KiB, however many tasks come and go (X18). A tail torn by a crash is cut.

Never written: what the schema keeps in memory (``memory_only_kind``, ``memory_only_field``), which are secrets and the
registry credentials of a spec. A node that starts without a manager has the containers that run, and needs neither.
"""

from __future__ import annotations

import asyncio
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError

from base.files import sync_folder, write_atomic
from base.marked_fields import without_marked
from base.threads import run_abortable
from proto.dispatcher_pb2 import AssignmentChange, AssignmentKind, TaskStatusUpdate
from proto.objects_pb2 import TaskStatus
from proto.options_pb2 import memory_only_field, memory_only_kind
from worker.agent.contents import Contents, is_removal

log = structlog.get_logger(__name__)

FILE_NAME = "assignments"
FILE_MODE = 0o600
HEADER = b"swarm-agent 3\n"
SLACK_BYTES = 256 * 1024
RETRY_S = 5.0
"""After a write failed."""
RECORD_SIZE_BYTES_MAX = 16 * 1024 * 1024

_PREFIX = struct.Struct(">II")
_CHANGE, _STATUS = b"A", b"S"

_TASK = AssignmentKind.ASSIGNMENT_KIND_TASK

_Key = tuple[int, str]
"""(Number of the kind, ID); a task's status stands under ``_STATUS_KEY``, which is no kind."""
_STATUS_KEY = -1

_MEMORY_ONLY = {
    value.number for value in AssignmentKind.DESCRIPTOR.values if value.GetOptions().Extensions[memory_only_kind]
}


class AgentStateError(Exception):
    """The file is there and cannot be read: a person has to look (permissions, a broken disk, another version)."""


class AssignmentFile:
    """Owner of the file. ``load`` once, ``put_*`` as things change, ``run`` writes behind them."""

    def __init__(self, state_dir: Path, node_id: str) -> None:
        self._path = state_dir / FILE_NAME
        self._node_id = node_id
        self._live: dict[_Key, bytes] = {}
        self._live_bytes = 0
        self._file_bytes = 0
        self._pending: list[bytes] = []
        self._rewrite = False
        self._wake = asyncio.Event()

    def load(self) -> tuple[Contents, dict[str, TaskStatus]]:
        """What was stored: assignments without secrets, and the statuses of tasks by ID.

        Raises:
            AgentStateError: the file cannot be read, or is of a version this one does not know.
        """
        contents, statuses = Contents(), dict[str, TaskStatus]()
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            self._rewrite = True
            return contents, statuses
        except OSError as error:
            raise AgentStateError(f"{self._path}: {error}") from error
        if not data.startswith(HEADER):
            if HEADER.startswith(data):  # torn in the very first write
                self._rewrite = True
                return contents, statuses
            raise AgentStateError(f"{self._path} is no assignment file of this version; remove it to start without it")
        self._file_bytes = len(HEADER)
        for payload in _records(data):
            self._file_bytes += _PREFIX.size + len(payload)
            self._replay(payload, contents, statuses)
        if self._file_bytes < len(data):
            dropped_bytes = len(data) - self._file_bytes
            log.warning("assignments.tail_cut", path=str(self._path), dropped_bytes=dropped_bytes)
            self._rewrite = True
        return contents, {task_id: status for task_id, status in statuses.items() if task_id in contents.tasks}

    def replace(self, contents: Contents) -> None:
        """A complete set: forget what is not in it."""
        kept = contents.keys() | {(_STATUS_KEY, task_id) for task_id in contents.tasks}
        for key in [key for key in self._live if key not in kept]:
            self._drop(key)
        self.put_changes(contents.changes())

    def put_changes(self, changes: Iterable[AssignmentChange]) -> None:
        """Remember changes that ``Contents.put`` took, but for what stays in memory."""
        for change in changes:
            if change.kind in _MEMORY_ONLY:
                continue
            if not is_removal(change):
                self._store(
                    (change.kind, change.id), _CHANGE + without_marked(change, memory_only_field).SerializeToString()
                )
                continue
            self._drop((change.kind, change.id))
            if change.kind == _TASK:
                self._drop((_STATUS_KEY, change.id))

    def put_status(self, task_id: str, status: TaskStatus) -> None:
        """Remember how far a task is; of one that is not assigned it means nothing."""
        if (_TASK, task_id) in self._live:
            update = TaskStatusUpdate(task_id=task_id, status=status)
            self._store((_STATUS_KEY, task_id), _STATUS + update.SerializeToString())

    async def run(self) -> None:
        """Write behind the changes until cancelled. What comes in while a write is under way makes the next one.

        A full disk is no reason to stop a node: it is told, and everything is written anew after a while.
        """
        while True:
            await self._wake.wait()
            if not await self.flush():
                await asyncio.sleep(RETRY_S)
                self._wake.set()

    async def flush(self) -> bool:
        """Write now what is pending; false when it could not be written. When cancelled it is not written to any more."""
        self._wake.clear()
        pending, self._pending = self._pending, []
        if not pending and not self._rewrite:
            return True
        size_bytes = sum(map(len, pending))
        if self._file_bytes + size_bytes > 2 * self._live_bytes + SLACK_BYTES:
            self._rewrite = True
        try:
            if self._rewrite:
                image = HEADER + b"".join(_framed(record) for record in self._live.values())
                self._rewrite = False
                self._file_bytes = len(image)
                await run_abortable(lambda _: write_atomic(self._path, image, mode=FILE_MODE))
            else:
                self._file_bytes += size_bytes
                await run_abortable(lambda _: _append(self._path, b"".join(pending)))
        except asyncio.CancelledError:  # the write has ended, but how is not known
            self._rewrite = True
            raise
        except OSError as error:
            self._rewrite = True
            log.error("assignments.write_failed", path=str(self._path), reason=str(error))
            return False
        return True

    def clear(self) -> None:
        """Forget everything, on disk too: the node leaves its cluster. Not while ``run`` runs. Raises OSError."""
        self._live.clear()
        self._pending.clear()
        self._live_bytes = self._file_bytes = 0
        self._rewrite = True
        if self._path.exists():
            self._path.unlink()
            sync_folder(self._path.parent)

    def _store(self, key: _Key, record: bytes) -> None:
        old = self._live.get(key)
        if old == record:
            return
        self._live_bytes += len(record) - len(old or b"") + (0 if old else _PREFIX.size)
        self._live[key] = record
        self._append_later(record)

    def _drop(self, key: _Key) -> None:
        old = self._live.pop(key, None)
        if old is None:
            return
        self._live_bytes -= len(old) + _PREFIX.size
        kind, object_id = key
        if kind != _STATUS_KEY:  # goes with its task
            removal = AssignmentChange(kind=AssignmentKind.ValueType(kind), id=object_id)
            self._append_later(_CHANGE + removal.SerializeToString())

    def _append_later(self, record: bytes) -> None:
        self._pending.append(_framed(record))
        self._wake.set()

    def _replay(self, payload: bytes, contents: Contents, statuses: dict[str, TaskStatus]) -> None:
        kind, body = payload[:1], payload[1:]
        try:
            if kind == _STATUS:
                update = TaskStatusUpdate.FromString(body)
                statuses[update.task_id] = update.status
                self._remember((_STATUS_KEY, update.task_id), payload)
                return
            change = AssignmentChange.FromString(body)
        except DecodeError:
            log.warning("assignments.record_skipped", path=str(self._path))  # its CRC is right: of a newer version
            return
        if not contents.put(change, self._node_id):
            return
        if not is_removal(change):
            self._remember((change.kind, change.id), payload)
            return
        self._forget((change.kind, change.id))
        if change.kind == _TASK:
            self._forget((_STATUS_KEY, change.id))
            statuses.pop(change.id, None)

    def _remember(self, key: _Key, record: bytes) -> None:
        self._forget(key)
        self._live[key] = record
        self._live_bytes += len(record) + _PREFIX.size

    def _forget(self, key: _Key) -> None:
        old = self._live.pop(key, None)
        if old is not None:
            self._live_bytes -= len(old) + _PREFIX.size


def _framed(record: bytes) -> bytes:
    return _PREFIX.pack(len(record), zlib.crc32(record)) + record


def _records(data: bytes) -> Iterator[bytes]:
    """The payloads up to the first that is not whole."""
    offset = len(HEADER)
    while offset + _PREFIX.size <= len(data):
        length, checksum = _PREFIX.unpack_from(data, offset)
        begin, end = offset + _PREFIX.size, offset + _PREFIX.size + length
        if not 0 < length <= RECORD_SIZE_BYTES_MAX or end > len(data):
            return
        payload = data[begin:end]
        if zlib.crc32(payload) != checksum:
            return
        yield payload
        offset = end


def _append(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
