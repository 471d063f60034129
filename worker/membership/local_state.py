"""STATE/node.json: this host's place in a cluster, on disk. Absent when it has none.

Until a new cluster's manager has committed the first objects they are nowhere else, so an init that is cut short cannot
be gone on with. STATE/init.unfinished says that what lies here is of such an init, and is to be undone.

A leave renames the file to STATE/leave.unfinished before it removes anything: what is missing without that name was
lost, not left, and is for a person to bring back.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from google.protobuf import json_format

from base.files import SECRET_MODE, sync_folder, write_atomic
from base.records import Records
from base.threads import run_abortable
from pki.addresses import AddressError, split_host_port
from pki.certificates import Identity
from proto.node_pb2 import LocalState

FILE_NAME = "node.json"
_INIT_MARK = "init.unfinished"
_LEAVE_MARK = "leave.unfinished"


class LocalStateError(Exception):
    """The file is there and cannot be used; a person has to look."""


def load(state_dir: Path) -> LocalState | None:
    """What ``save`` wrote, None when this host is in no cluster. Raises: LocalStateError.

    A field that this version does not know is passed over: who goes back to an earlier version keeps the node.
    """
    path = state_dir / FILE_NAME
    try:
        return json_format.Parse(path.read_text(), LocalState(), ignore_unknown_fields=True)
    except FileNotFoundError:
        return None
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise LocalStateError(f"{path} is damaged: {error}") from error


def check(state: LocalState, identity: Identity) -> None:
    """Raises: LocalStateError: ``state`` is not of the certificate's node, or an address in it is none."""
    if (state.node_id, state.cluster_id) != (identity.node_id, identity.cluster_id):
        raise LocalStateError(
            f"{FILE_NAME} is of node {state.node_id!r} in cluster {state.cluster_id!r}, the certificate beside it of "
            f"node {identity.node_id!r} in cluster {identity.cluster_id!r}"
        )
    try:
        for address in (state.listen_addr, state.advertise_addr):
            split_host_port(address)
    except AddressError as error:
        raise LocalStateError(f"{FILE_NAME}: {error}") from error


def save(state_dir: Path, state: LocalState) -> None:
    """Replace the file; after a crash it is the old one or the new one. Raises: OSError."""
    write_atomic(state_dir / FILE_NAME, _encoded(state), mode=SECRET_MODE)


class StateKeeper:
    """Brings a state that changes to the disk, beside the event loop. Of several writes the last one begun counts."""

    def __init__(self, state_dir: Path, state: LocalState) -> None:
        self._path, self._state = state_dir / FILE_NAME, state
        self._records = Records()
        self._writing = asyncio.Lock()

    async def save(self) -> None:
        """As it is now. Raises: OSError: the file is as it was."""
        async with self._writing:
            data = _encoded(self._state)
            await run_abortable(lambda _: self._records.write(self._path, data, durable=True))

    async def keep(self) -> None:
        """As it is now, or as it is when the disk can take it."""
        async with self._writing:
            data = _encoded(self._state)
            await run_abortable(lambda _: self._records.keep(self._path, data, durable=True))

    async def close(self, *, forget: bool) -> None:
        """Save what could not be saved before; with ``forget`` the file is to go, and nothing is written to it any more."""
        if forget:
            self._records.drop(self._path)
        await run_abortable(lambda _: self._records.close())


def _encoded(state: LocalState) -> bytes:
    return json_format.MessageToJson(state, preserving_proto_field_name=True).encode()


def begin_leave(state_dir: Path) -> None:
    """This host is in no cluster any more; what it kept of one is to be removed. Needs no space. Raises: OSError."""
    with contextlib.suppress(FileNotFoundError):
        (state_dir / FILE_NAME).rename(state_dir / _LEAVE_MARK)
        sync_folder(state_dir)


def is_leave_unfinished(state_dir: Path) -> bool:
    """Whether a leave began here and did not end."""
    return (state_dir / _LEAVE_MARK).exists()


def end_leave(state_dir: Path) -> None:
    """Everything is removed. Raises: OSError."""
    with contextlib.suppress(FileNotFoundError):
        (state_dir / _LEAVE_MARK).unlink()
        sync_folder(state_dir)


def begin_init(state_dir: Path) -> None:
    """Say that what is written from now on is to be undone unless ``end_init`` comes. Raises: OSError."""
    write_atomic(state_dir / _INIT_MARK, b"", mode=SECRET_MODE)


def is_init_unfinished(state_dir: Path) -> bool:
    """Whether an init began here and did not end."""
    return (state_dir / _INIT_MARK).exists()


def end_init(state_dir: Path) -> None:
    """What lies here counts, or is gone. Raises: OSError."""
    with contextlib.suppress(FileNotFoundError):
        (state_dir / _INIT_MARK).unlink()
        sync_folder(state_dir)  # a mark that came back with the power would undo a cluster that is in use
