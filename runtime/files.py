"""Small files written so that a reader sees the old or the new content, never half of it.

``pki.files`` has a writer of its own, for keys: neither layer may import the other.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path


def write_atomic(path: Path, data: bytes, *, durable: bool, mode: int = 0o600) -> None:
    """Replace ``path``. Any thread and process may, at the same time as others: the last rename counts.

    Args:
        path: a file in a folder that exists.
        data: the whole content.
        durable: sync file and folder, so that the content survives power loss; without it a reader may then find
            the old bytes, the new ones or an empty file.
        mode: permissions, the umask taken off.

    Raises:
        OSError: ``path`` is as it was (disk full included; only when syncing the folder fails is it the new one),
            and the temporary file is gone.
    """
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}.tmp")
    temporary.unlink(missing_ok=True)  # of a thread that had our number before the power went
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Unlink what a crash left of ``write_atomic``. For the only user of ``folder``, before it writes there."""
    for leftover in folder.glob(".*.tmp"):
        with contextlib.suppress(IsADirectoryError):
            leftover.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_text(path: Path) -> str | None:
    """The file's text, or None when there is no such file."""
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
