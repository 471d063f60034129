"""Files that hold keys: written whole or not at all, and never readable for anybody else, not even for a moment.

``runtime.files`` has a writer of its own, for what is no secret: neither layer may import the other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

SECRET_MODE = 0o600
PUBLIC_MODE = 0o644


def write_atomic(path: Path, data: bytes, *, mode: int) -> None:
    """Replace ``path`` by ``data``: after a crash, or a full disk, there is the old file or the new one.

    The data is on disk when this returns (file and folder are synced). The temporary file is created with its
    final mode and refuses to follow a link that somebody put in its place. Two writers of one path must lock each
    other out (``locked_directory``).

    Raises:
        OSError: no space, no such folder, no permission; ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        try:
            os.fchmod(descriptor, mode)  # the umask may have taken bits away
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make renames in the folder ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked_directory(path: Path) -> Iterator[None]:
    """Keep other processes and threads that use this out of the folder ``path``; waits for them. Ends with its holder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def ensure_private_directory(path: Path) -> None:
    """Make the folder ``path`` exist, durably, with mode 0700; its parents too where they are missing. Raises: OSError."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    for folder in (path, *missing):
        sync_folder(folder.parent)
