"""Network namespaces that no process keeps: a bind mount of each holds it, and is found again by whoever starts next."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

from runtime.kernel.mounts import mount_descriptor, unmount
from runtime.kernel.syscalls import CLONE_NEWNET, filesystem_magic

_NSFS_MAGIC = 0x6E736673
_libc = ctypes.CDLL(None, use_errno=True)


def exists(path: Path) -> bool:
    """Whether a namespace is kept there, and not the bare file of a daemon that was killed on the way."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return filesystem_magic(fd) == _NSFS_MAGIC
    finally:
        os.close(fd)


def keep(path: Path, of: str) -> None:
    """A new one, or the one at the path ``of``. Kept there already is fine. Blocks. Raises OSError."""
    if exists(path):
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    if of:
        _bind(of, path)
    else:
        _make(path)


def _make(path: Path) -> None:
    """By a thread that ends with it: one that could not come back must not go on to serve others."""
    failure: list[OSError] = []

    def make() -> None:
        try:
            if _libc.unshare(CLONE_NEWNET) != 0:
                raise OSError(code := ctypes.get_errno(), os.strerror(code), "unshare")
            _bind("/proc/thread-self/ns/net", path)
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=make, name="namespace")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def _bind(namespace: str, path: Path) -> None:
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        mount_descriptor(path, fd)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Gone already is fine. Blocks. Raises OSError, HostError."""
    unmount(path)
    path.unlink(missing_ok=True)
