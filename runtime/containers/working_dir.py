"""Where a process may begin: never below /proc, whose links lead out of the container (CVE-2024-21626).

What was asked for is refused as it stands. What it leads to, by the links of an image, of a volume or of a container
that runs, is looked at in the container's own view of its files: before an exec, and once a container is made and its
init waits, which then has begun where it will stay.
"""

from __future__ import annotations

import errno
import os
import posixpath

from runtime.errors import InvalidParameterError, StartError
from runtime.kernel.rooted import open_inside
from runtime.kernel.syscalls import filesystem_magic

_PROC, _PROC_ROOT = 0x9FA0, 1  # PROC_SUPER_MAGIC (linux/magic.h), and the number of its top folder


def refuse_proc(path: str) -> None:
    """Raises InvalidParameterError for a path below /proc. Pure."""
    if posixpath.normpath("/" + path.lstrip("/")).startswith("/proc/"):
        raise _leads_into_proc(path)


def check_exec(pid: int, path: str) -> None:
    """That an exec may begin at ``path`` of the container whose init is ``pid``. Blocks.

    Raises:
        InvalidParameterError: it leads into a /proc.
        StartError: there is no such folder, in runc's words; OSError: the container has just ended.
    """
    os.close(_open(pid, path))


def check_created(pid: int, path: str) -> None:
    """That ``pid``, the init of a new container, is at ``path`` of its own files. Blocks.

    Raises: as ``check_exec``; InvalidParameterError also when it is elsewhere.
    """
    wanted = _open(pid, path)
    try:
        if not os.path.samestat(os.fstat(wanted), os.stat(f"/proc/{pid}/cwd")):
            raise _leads_into_proc(path)
    finally:
        os.close(wanted)


def _open(pid: int, path: str) -> int:
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = open_inside(root, path, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _leads_into_proc(path) from error
        reason = os.strerror(error.errno or errno.EIO).lower()
        raise StartError(
            f"OCI runtime exec failed: exec failed: unable to start container process: chdir to cwd "
            f'("{path}") set in config.json failed: {reason}',
            exit_code=127 if error.errno == errno.ENOENT else 126,
        ) from error
    finally:
        os.close(root)
    if filesystem_magic(found) == _PROC and os.fstat(found).st_ino != _PROC_ROOT:
        os.close(found)
        raise _leads_into_proc(path)
    return found


def _leads_into_proc(path: str) -> InvalidParameterError:
    return InvalidParameterError(f"the working directory '{path}' is invalid: it leads into /proc")
