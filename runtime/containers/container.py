"""A container in memory: its record and state, its lock, who waits for it, and the processes that are held."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import structlog

from runtime.containers.attach import AttachStream
from runtime.containers.record import Record, RunState
from runtime.containers.states import TRANSITIONS, Event, IllegalMoveError, Status, Story
from runtime.types import TASK_ID_LABEL, ContainerState, WaitResult

log = structlog.get_logger(__name__)


class Container:
    """One container in memory. Changed by the engine on its event loop; ``lock`` is held over every transition."""

    def __init__(self, record: Record, state: RunState, folder: Path) -> None:
        self.record = record
        self.state = state
        self.folder = folder
        self.lock = asyncio.Lock()
        self.removing = False
        self.restart_timer: asyncio.TimerHandle | None = None
        self.restart_delay_s = 0.0
        labels = record.Config.Labels or {}
        task = {"task_id": labels[TASK_ID_LABEL]} if TASK_ID_LABEL in labels else {}
        self.log = log.bind(container_id=record.ID, **task)
        self._story = Story(state.Status)
        self.exec_ids: list[str] = []
        self.pending_attaches: list[AttachStream] = []
        self._pidfds: dict[str, int] = {}
        self._waiters: dict[str, list[asyncio.Future[WaitResult]]] = {}

    @property
    def id(self) -> str:
        return self.record.ID

    @property
    def running(self) -> bool:
        """Whether its process exists, paused included."""
        return self.state.Status in (Status.RUNNING, Status.PAUSED)

    def move(self, event: Event, **facts: object) -> None:
        """Into the state that follows; ``facts`` are for the log line. The caller holds the lock, and saves.

        Raises:
            IllegalMoveError: the table has no such move; nothing is changed.
        """
        before = self.state.Status
        after = TRANSITIONS.get((before, event))
        if after is None:
            raise IllegalMoveError(self.id, before, event, str(self._story))
        self.state.Status = after
        self._story.add(event, after)
        self.log.info(event.value, before=before.value, state=after.value, **facts)

    @property
    def log_path(self) -> Path:
        """conmon's log."""
        return self.folder / f"{self.id}.log"

    def state_json(self) -> ContainerState:
        """A copy for inspect."""
        state = self.state
        return ContainerState(
            Status="removing" if self.removing and not self.running else state.Status.value,
            Running=self.running or state.Status is Status.RESTARTING,
            Paused=state.Status is Status.PAUSED,
            Restarting=state.Status is Status.RESTARTING,
            OOMKilled=state.OOMKilled,
            Pid=state.Pid if self.running else 0,
            ExitCode=state.ExitCode,
            Error=state.Error,
            StartedAt=state.StartedAt,
            FinishedAt=state.FinishedAt,
            Health=state.Health,
        )

    def cancel_restart_timer(self) -> None:
        """Idempotent; the state stays."""
        if self.restart_timer is not None:
            self.restart_timer.cancel()
            self.restart_timer = None

    def close_pending_attaches(self) -> None:
        """End the streams of clients that wait for a start."""
        for stream in self.pending_attaches[:]:
            stream.close()

    def wait(self, condition: str) -> asyncio.Future[WaitResult]:
        """A future that ends at the next exit or removal ("exit", "removed")."""
        future: asyncio.Future[WaitResult] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(condition, [])
        waiters.append(future)
        future.add_done_callback(lambda done: waiters.remove(done) if done in waiters else None)
        return future

    def notify(self, condition: str) -> None:
        """Tell the waiters how it ended."""
        result = WaitResult(StatusCode=self.state.ExitCode, Error=self.state.Error)
        for future in tuple(self._waiters.get(condition, ())):
            if not future.done():
                future.set_result(result)

    def hold(self, role: str, pid: int) -> int:
        """Keep a pidfd of a process ("init", "conmon"). Raises ProcessLookupError."""
        self.let_go(role)
        self._pidfds[role] = os.pidfd_open(pid)
        return self._pidfds[role]

    def watch(self, role: str, pid: int, ended: Callable[[], None]) -> None:
        """Hold it and call ``ended`` once on the event loop when it has exited. Raises ProcessLookupError."""
        fd = self.hold(role, pid)
        asyncio.get_running_loop().add_reader(fd, ended)

    def reap(self, role: str) -> None:
        """Let go of a process that has ended; it is ours to bury when the daemon is its namespace's init."""
        fd = self._pidfds.get(role)
        if fd is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
            self.let_go(role)

    def let_go(self, *roles: str) -> None:
        """Close pidfds, all without an argument."""
        for role in roles or tuple(self._pidfds):
            fd = self._pidfds.pop(role, None)
            if fd is not None:
                asyncio.get_running_loop().remove_reader(fd)
                os.close(fd)

    def send_signal(self, number: int) -> bool:
        """Signal the init by its pidfd, so that never a stranger is hit. False when it is gone."""
        fd = self._pidfds.get("init")
        if fd is None:
            return False
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        return True
