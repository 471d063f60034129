"""Paths below a directory whose content nobody trusts: a container's root, a volume.

The kernel resolves them (openat2), so that there is no moment between a look and an open at which a link could take a
folder's place. Magic links (``/proc/PID/fd/N`` and the like) are never followed: they lead out of any root. What is
opened with ``O_PATH`` stays what it is, whatever happens to its name; that descriptor, or a mount made from it, is what
is handed on.

All functions block.
"""

from __future__ import annotations

import errno
import os
import stat

from runtime.kernel.syscalls import RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

_TRIES = 128


def open_root(path: str | os.PathLike[str]) -> int:
    """A descriptor of the directory that others are resolved below; its own path is the engine's. Raises OSError."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def open_inside(root: int, path: str, flags: int = os.O_PATH) -> int:
    """Open ``path`` as a process would whose root directory is ``root``: no link and no ``..`` leads above it.

    Raises:
        OSError: as open(2) has it; ELOOP also for a magic link, EAGAIN when the way changes all the time.
    """
    return _open(root, path, flags, RESOLVE_IN_ROOT)


def open_beneath(root: int, path: str, flags: int = os.O_PATH) -> int:
    """Open the relative ``path`` below ``root``; a link or ``..`` that leads out of it is an error.

    Raises:
        OSError: as for ``open_inside``; EXDEV when it leads out.
    """
    return _open(root, path, flags, RESOLVE_BENEATH)


def read_file(root: int, path: str, size_max: int) -> bytes:
    """The content of a file inside ``root``, which is opened only once it is known to be a regular one.

    A device would do something when it is opened, a pipe would wait.

    Raises:
        OSError: as for ``open_inside``; EINVAL for what is no regular file, EFBIG for more than ``size_max`` bytes.
    """
    found = open_inside(root, path)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        with open(f"/proc/self/fd/{found}", "rb") as file:
            data = file.read(size_max + 1)
    finally:
        os.close(found)
    if len(data) > size_max:
        raise OSError(errno.EFBIG, f"larger than {size_max} bytes", path)
    return data


def _open(root: int, path: str, flags: int, resolve: int) -> int:
    """Somebody renames folders: the kernel gives up where a ``..`` could be fooled by that, and wants to be asked again."""
    for _ in range(_TRIES):
        try:
            return openat2(root, path, flags, resolve | RESOLVE_NO_MAGICLINKS)
        except BlockingIOError:
            continue
    raise BlockingIOError(errno.EAGAIN, "what is on the way is moved all the time", path)
