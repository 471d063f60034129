"""The manager process of this host, as the node sees it: start, adopt, watch, restart, stop.

The manager holds an exclusive lock on STATE/manager.lock and writes its PID there. A node that comes
back finds a manager that outlived it by that lock (``manager_lock``) and adopts it instead of starting a second one.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from base.backoff import Backoff
from base.tasks import OwnedTasks, cancel_and_wait
from proto.node_pb2 import ManagerConfig
from worker.membership.manager_lock import lock_holder
from worker.membership.zygote import Zygote, ZygoteError

log = structlog.get_logger(__name__)

RESTART_DELAY_S_MIN = 0.5
RESTART_DELAY_S_MAX = 15.0
STOP_TIMEOUT_S = 20.0
HEALTHY_AFTER_S = 30.0
WATCH_RETRY_S = 5.0


class ManagerProcess:
    """Keeps one manager running until ``stop``.

    Args:
        zygote: forks it.
        lock_path: STATE/manager.lock.
        on_exit: called with the config when the manager ended by itself; returns the config to start it
            again with, or None to let it be.
        restart_delay_s_min: before the first start again; it doubles, to 15 s.
        watch_retry_s: after it could not be watched.
    """

    def __init__(
        self,
        zygote: Zygote,
        lock_path: Path,
        *,
        on_exit: Callable[[ManagerConfig], ManagerConfig | None],
        restart_delay_s_min: float = RESTART_DELAY_S_MIN,
        watch_retry_s: float = WATCH_RETRY_S,
    ) -> None:
        self._restart_delay_s_min, self._watch_retry_s = restart_delay_s_min, watch_retry_s
        self._zygote = zygote
        self._lock_path = lock_path
        self._on_exit = on_exit
        self._pid: int | None = None
        self._since_s = 0.0
        self._has_pid, self._has_none = asyncio.Event(), asyncio.Event()
        self._has_none.set()
        self._tasks, self._launches = OwnedTasks(), OwnedTasks()
        self._watch: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self._pid is not None

    async def wait_running(self) -> None:
        """Return once a manager runs, started or adopted."""
        await self._has_pid.wait()

    async def wait_ended(self) -> None:
        """Return once the manager that runs now has ended, even if another one runs by then; at once if none runs."""
        await self._has_none.wait()

    async def start(self, config: ManagerConfig) -> None:
        """Adopt the manager that runs, or start one; from now on restart it when it ends."""
        if self._watch is not None:
            return
        await self._launch(config)
        self._watch = self._tasks.spawn(self._keep(config), name="manager.watch")

    async def stop(self) -> None:
        """Ask the manager to end (it hands leadership over), and wait; kill it after 20 s."""
        watch, self._watch = self._watch, None
        if watch is not None:
            await cancel_and_wait(watch)
        await self._launches.wait()
        pid, since_s = self._pid, self._since_s
        self._set_pid(None)
        if pid is None:
            pid, since_s = lock_holder(self._lock_path), time.clock_gettime(time.CLOCK_BOOTTIME)
        if pid is None:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if _begun_s(pid) > since_s:
                return  # another process by now: the manager ended and its number was given away
            await _end(pid, pidfd)
        finally:
            os.close(pidfd)

    async def _launch(self, config: ManagerConfig) -> None:
        """Goes on when this is cancelled, and ``stop`` waits for it: what was asked of the zygote comes, known or not."""
        await self._launches.run_to_end(self._adopt_or_start(config), name="manager.launch")

    async def _adopt_or_start(self, config: ManagerConfig) -> None:
        pid = lock_holder(self._lock_path)
        if pid is not None:
            log.info("manager.adopted", pid=pid)
        else:
            pid = await self._zygote.start(config.SerializeToString())
            log.info("manager.started", pid=pid)
        self._set_pid(pid)

    def _set_pid(self, pid: int | None) -> None:
        self._pid, self._since_s = pid, time.clock_gettime(time.CLOCK_BOOTTIME)
        came, went = (self._has_none, self._has_pid) if pid is None else (self._has_pid, self._has_none)
        went.clear()
        came.set()

    async def _keep(self, config: ManagerConfig) -> None:
        backoff = Backoff(self._restart_delay_s_min, RESTART_DELAY_S_MAX)
        loop = asyncio.get_running_loop()
        while self._pid is not None:
            started = loop.time()
            await self._exited(self._pid)
            self._set_pid(None)
            if loop.time() - started > HEALTHY_AFTER_S:
                backoff.reset()
            again = self._on_exit(config)
            if again is None:
                self._watch = None
                return
            config = again
            while self._pid is None:
                delay_s = backoff.next_s()
                log.warning("manager.exited", restart_delay_s=delay_s)
                await asyncio.sleep(delay_s)
                try:
                    await self._launch(config)
                except (ZygoteError, OSError) as error:  # out of descriptors, of processes, of memory: not for ever
                    log.error("manager.not_restarted", error=str(error))

    async def _exited(self, pid: int) -> None:
        while True:
            try:
                return await _wait_exit(pid)
            except OSError as error:
                log.error("manager.not_watched", pid=pid, error=str(error))
                await asyncio.sleep(self._watch_retry_s)


async def _end(pid: int, pidfd: int) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return
        try:
            await asyncio.wait_for(_ended(pidfd), STOP_TIMEOUT_S)
        except TimeoutError:
            log.warning("manager.stop_timed_out", pid=pid, timeout_s=STOP_TIMEOUT_S)
        else:
            return


async def _wait_exit(pid: int) -> None:
    """Wait until the process is gone. It need not be a child of ours."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await _ended(pidfd)
    finally:
        os.close(pidfd)


async def _ended(pidfd: int) -> None:
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(pidfd, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(pidfd)


def _begun_s(pid: int) -> float:
    """When a process began, in seconds since the boot (proc_pid_stat(5), field 22); infinitely late when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return math.inf
    return int(stat.rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
