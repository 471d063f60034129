"""Small files written so that a reader sees the old or the new content, never half of it, and folders made durably."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

SECRET_MODE = 0o600
PUBLIC_MODE = 0o644
LOOK_S_MAX = 0.5
PUBLIC_FOLDER_MODE = 0o755


def write_atomic(path: Path, data: bytes, *, durable: bool = True, mode: int = SECRET_MODE) -> None:
    """Replace ``path``. Any thread and process may, at the same time as others: the last rename counts.

    The temporary file beside it is created with at most its final mode, so that a secret is readable for nobody else at
    any moment, and refuses to follow a link that somebody put in its place. A crash may leave it behind
    (``remove_leftovers``).

    Args:
        path: a file in a folder that exists.
        data: the whole content.
        durable: sync file and folder, so that the content survives power loss; without it a reader may then find
            the old bytes, the new ones or an empty file.
        mode: permissions, whatever the umask.

    Raises:
        OSError: ``path`` is as it was (disk full included; only when syncing the folder fails is it the new one),
            and the temporary file is gone.
    """
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}.tmp")
    temporary.unlink(missing_ok=True)  # of a thread that had our number before the power went
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        try:
            os.fchmod(descriptor, mode)  # the umask may have taken bits away
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


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Unlink what a crash left of ``write_atomic``, for all files of a folder or that of one name.

    For their only writer, before it writes.
    """
    for leftover in folder.glob(f".{name}.tmp" if name == "*" else f".{name}.*.tmp"):
        with contextlib.suppress(IsADirectoryError):
            leftover.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive power loss. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Keep other processes and threads that use this out of the folder ``path``; waits for them. Ends with its holder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def open_lock_file(path: Path) -> IO[bytes]:
    """The lock file at ``path``, made when it is missing, for its owner alone: whoever can open it can hold it.

    One that an earlier version left open to others is mended. Raises: OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, SECRET_MODE)
    try:
        os.fchmod(descriptor, SECRET_MODE)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "a+b")


def lock_file(file: IO[bytes], *, patience_s: float = LOOK_S_MAX) -> None:
    """Hold a lock file for as long as ``file`` is open.

    Who looks whether somebody holds it has it himself for that moment, which is waited for.

    Raises:
        BlockingIOError: it is held for longer than a look takes.
    """
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(0.002)
        else:
            return


def ensure_private_folder(path: Path) -> None:
    """Make the folder ``path`` exist, durably, with mode 0700; its parents too where they are missing. Raises: OSError."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    for folder in (path, *missing):
        sync_folder(folder.parent)


def make_public_folder(path: Path, mode: int = PUBLIC_FOLDER_MODE) -> None:
    """Make the folder ``path`` and the parents it lacks, all with ``mode``, whatever the umask.

    One that exists stays as it is. Raises: OSError; FileExistsError when there is a file of that name.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        try:
            folder.mkdir(mode=mode)
        except FileExistsError:  # another thread was first
            continue
        folder.chmod(mode)
    if not path.is_dir():
        raise FileExistsError(errno.EEXIST, "not a folder", str(path))


def read_text(path: Path) -> str | None:
    """The file's text, or None when there is no such file."""
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
