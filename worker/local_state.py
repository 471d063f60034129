"""STATE/node.json: this host's place in a cluster, on disk. Absent when it has none."""

from __future__ import annotations

import contextlib
from pathlib import Path

from google.protobuf import json_format

from pki.files import SECRET_MODE, sync_folder, write_atomic
from proto.node_pb2 import LocalState

FILE_NAME = "node.json"


class LocalStateError(Exception):
    """The file is there and cannot be used; a person has to look."""


def load(state_dir: Path) -> LocalState | None:
    """What ``save`` wrote, None when this host is in no cluster. Raises: LocalStateError."""
    path = state_dir / FILE_NAME
    try:
        return json_format.Parse(path.read_text(), LocalState())
    except FileNotFoundError:
        return None
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise LocalStateError(
            f"{path} is damaged: {error}; restore it, or remove it and join the swarm again"
        ) from error


def save(state_dir: Path, state: LocalState) -> None:
    """Replace the file; after a crash it is the old one or the new one. Raises: OSError."""
    text = json_format.MessageToJson(state, preserving_proto_field_name=True)
    write_atomic(state_dir / FILE_NAME, text.encode(), mode=SECRET_MODE)


def forget(state_dir: Path) -> None:
    """Remove the file: this host is in no cluster any more."""
    with contextlib.suppress(FileNotFoundError):
        (state_dir / FILE_NAME).unlink()
        sync_folder(state_dir)
