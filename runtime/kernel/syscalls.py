"""System calls that Python 3.11 does not offer: setns, openat2, statfs and inotify, by way of libc."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNET = 0x40000000

RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 0x02, 0x04, 0x08, 0x10
_OPENAT2 = 437  # the same number on every architecture that Linux 5.6 knew but alpha
_MOUNT_SETATTR = 442
_OPEN_HOW = struct.Struct("QQQ")
_STATFS_BYTES = 256

IN_MODIFY = 0x2
IN_CLOSE_WRITE = 0x8
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_Q_OVERFLOW = 0x4000
_IN_IGNORED = 0x8000
_X32_BIT = 0x40000000
_EVENT = struct.Struct("iIII")


def _checked(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def setns(fd: int, kind: int) -> None:
    """Move the calling thread into a namespace (setns(2)). Raises OSError."""
    _checked(_libc.setns(fd, kind), "setns")


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """Open ``path`` below a directory's descriptor, restricted by ``resolve`` (openat2(2), Linux 5.6); close-on-exec.

    Raises OSError: EXDEV for what leads out, ELOOP for a link that may not be followed, EAGAIN when something was moved
    meanwhile.
    """
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, 0, resolve)
    size = ctypes.c_size_t(_OPEN_HOW.size)
    fd = int(_libc.syscall(ctypes.c_long(_OPENAT2), ctypes.c_int(directory), os.fsencode(path), how, size))
    if fd < 0:
        raise OSError(error := ctypes.get_errno(), os.strerror(error), path)
    return fd


def supports_openat2() -> bool:
    """Whether this kernel has it, and nothing around us filters it."""
    try:
        os.close(openat2(-1, "/", os.O_PATH, 0))
    except OSError:
        return False
    return True


def supports_mount_setattr() -> bool:
    """Whether attributes of a mount and of those below it can be set at once (Linux 5.12): asked without a change."""
    arguments = (ctypes.c_int(-1), b"", ctypes.c_uint(0), None, ctypes.c_size_t(0))
    return _libc.syscall(ctypes.c_long(_MOUNT_SETATTR), *arguments) < 0 and ctypes.get_errno() == errno.EINVAL


def filesystem_magic(fd: int) -> int:
    """Which kind of file system a descriptor is on, as the ``f_type`` of statfs(2). Raises OSError."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    _checked(_libc.fstatfs(fd, buffer), "fstatfs")
    return ctypes.c_long.from_buffer(buffer).value


def supports_x32() -> bool:
    """Whether this kernel runs x32 programs, by asking it for getpid through that table (ENOSYS where it has none)."""
    return platform.machine() == "x86_64" and _libc.syscall(ctypes.c_long(_X32_BIT | 39)) > 0


class Watcher:
    """One inotify instance for a whole engine: callbacks by folder, run on the event loop.

    One instance, because the kernel allows 128 a user by default and each log follower would need one.
    A callback gets the name of the file that changed inside the folder, or "" when events were lost and it has to
    look at everything.
    """

    def __init__(self) -> None:
        import asyncio  # here: small processes use this module for its system calls alone

        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")
        self._callbacks: dict[int, list[Callable[[str], None]]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._readable)

    def watch(self, folder: Path, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call ``callback`` for each file that is made, written or renamed inside ``folder``; returns what ends it."""
        mask = IN_MODIFY | IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE
        descriptor = _checked(_libc.inotify_add_watch(self._fd, os.fsencode(folder), mask), f"inotify {folder}")
        callbacks = self._callbacks.setdefault(descriptor, [])
        callbacks.append(callback)

        def stop() -> None:
            if callback in callbacks:
                callbacks.remove(callback)
            if not callbacks and self._callbacks.get(descriptor) is callbacks:
                del self._callbacks[descriptor]
                if self._fd >= 0:
                    _libc.inotify_rm_watch(self._fd, descriptor)

        return stop

    def close(self) -> None:
        """Stop watching. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(data):
            descriptor, mask, _cookie, length = _EVENT.unpack_from(data, offset)
            name = os.fsdecode(data[offset + _EVENT.size : offset + _EVENT.size + length].rstrip(b"\0"))
            offset += _EVENT.size + length
            if mask & IN_Q_OVERFLOW:
                for callbacks in list(self._callbacks.values()):
                    for callback in list(callbacks):
                        callback("")
            elif not mask & _IN_IGNORED:
                for callback in list(self._callbacks.get(descriptor, ())):
                    callback(name)
