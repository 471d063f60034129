"""Where a process may begin: never below /proc, whose links lead out of the container (CVE-2024-21626).

What was asked for is refused as it stands. What it leads to, by the links of an image, of a volume or of a container
that runs, is looked at in the container's own view of its files: before an exec, and once a container is made and its
init waits, which then has begun where it will stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import posixpath
import threading

from runtime.errors import EngineError, HostError, InvalidParameterError, StartError
from runtime.kernel.rooted import open_inside
from runtime.kernel.syscalls import filesystem_magic

ANSWER_TIMEOUT_S = 5.0
_PROC, _PROC_ROOT = 0x9FA0, 1  # PROC_SUPER_MAGIC (linux/magic.h), and the number of its top folder


def refuse_proc(path: str) -> None:
    """Raises InvalidParameterError for a path below /proc. Pure."""
    if posixpath.normpath("/" + path.lstrip("/")).startswith("/proc/"):
        raise _leads_into_proc(path)


class WorkingDirs:
    """Looks at where execs are to begin, in threads of its own.

    A file system that does not answer (a server that is gone, a FUSE of the container's own) would hold a thread of the
    engine's pool at each health probe, until no container can be started. Here the next looks into that container are
    refused until the first has come back.
    """

    def __init__(self) -> None:
        self._unanswered: set[str] = set()

    async def check_exec(self, container_id: str, pid: int, path: str) -> None:
        """That an exec may begin at ``path`` of the container whose init is ``pid``.

        Raises:
            InvalidParameterError: it leads into a /proc.
            StartError: there is no such folder, in runc's words; its file system gives no answer.
            HostError: the container has just ended.
        """
        if container_id in self._unanswered:
            raise _no_answer(path)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[None] = loop.create_future()

        def look() -> None:
            try:
                os.close(_open(pid, path))
                error = None
            except (EngineError, OSError) as caught:
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._answered, container_id, answer, error)

        threading.Thread(target=look, name=f"working directory {container_id[:12]}", daemon=True).start()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await answer
        except TimeoutError:
            raise _no_answer(path) from None
        except OSError as error:
            raise HostError(f"cannot look at the files of container {container_id[:12]}: {error}") from error
        finally:
            if answer.cancelled():  # the thread is still at it
                self._unanswered.add(container_id)

    def _answered(self, container_id: str, answer: asyncio.Future[None], error: Exception | None) -> None:
        self._unanswered.discard(container_id)
        if answer.done():
            return
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)


def check_created(pid: int, path: str) -> None:
    """That ``pid``, the init of a new container, is at ``path`` of its own files. Blocks.

    Raises: as ``check_exec``, and OSError; InvalidParameterError also when it is elsewhere.
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


def _no_answer(path: str) -> StartError:
    return StartError(
        f"OCI runtime exec failed: the file system of the working directory '{path}' does not answer", exit_code=126
    )


def _leads_into_proc(path: str) -> InvalidParameterError:
    return InvalidParameterError(f"the working directory '{path}' is invalid: it leads into /proc")
