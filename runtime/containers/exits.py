"""Exits: what the monitors report is noted down, told and cleaned up, and the restart policy decides what comes next."""

from __future__ import annotations

import asyncio
import signal
import time

from base.tasks import OwnedTasks
from base.times import rfc3339
from runtime.containers import processes, restart
from runtime.containers.announcements import announce
from runtime.containers.container import Container
from runtime.containers.exec_manager import ExecManager
from runtime.containers.monitors import Monitors
from runtime.containers.releasing import Releasing
from runtime.containers.removal import Removal
from runtime.containers.runc import Runc
from runtime.containers.starting import Starting
from runtime.containers.states import Event, Status
from runtime.containers.store import ContainerStore
from runtime.containers.times import parse_time
from runtime.containers.transitions import Transitions
from runtime.errors import EngineError
from runtime.events import EventBus


class Exits:
    """Ends runs. ``open`` once the monitors watch; a container whose restart is due has a timer in its ``Container``."""

    def __init__(
        self,
        *,
        store: ContainerStore,
        runc: Runc,
        monitors: Monitors,
        releasing: Releasing,
        removal: Removal,
        starting: Starting,
        execs: ExecManager,
        transitions: Transitions,
        events: EventBus,
    ) -> None:
        self._store, self._runc, self._monitors, self._events = store, runc, monitors, events
        self._releasing, self._removal, self._starting = releasing, removal, starting
        self._execs, self._transitions = execs, transitions
        self._tasks = OwnedTasks()

    def open(self) -> None:
        """Follow the monitors."""
        self._tasks.spawn(self._follow(), name="engine.exits")

    async def close(self) -> None:
        """Stop following: after the transitions, some of which wait for an exit. Due restarts are the next daemon's."""
        await self._tasks.close()
        for container in self._store:
            container.cancel_restart_timer()

    async def _follow(self) -> None:
        while True:
            container = await self._monitors.next()
            self._transitions.spawn("exit", container, self._look_at(container))

    async def _look_at(self, container: Container) -> None:
        try:
            await self._note_exit(container)
        except OSError as error:  # no descriptor to look with; nobody would say again that it may have ended
            container.log.warning("exit.not_read", reason=str(error))
            self._monitors.look_again(container)

    async def _note_exit(self, container: Container) -> None:
        async with container.lock:
            if not container.running:
                if self._store.is_safe(container):
                    self._runc.forget_exit(container.id)  # of a start that failed: no run's to come
                return
            status = self._runc.exit_status(container.id)
            if status is None:
                state = container.state
                if processes.is_alive(state.ConmonPid, state.ConmonStart, state.BootID):
                    return
                # Without conmon nobody reads its output or learns its exit status: end it.
                container.log.warning("conmon.lost", pid=state.Pid)
                container.send_signal(signal.SIGKILL)
                status = (128 + signal.SIGKILL, time.time_ns())
                state.Error = "its monitor (conmon) ended unexpectedly, so the container was killed"
            await self.record(container, *status)

    async def record(self, container: Container, exit_code: int, at_ns: int) -> None:
        """Under the lock: set the state, tell everybody, clean up, and do what comes next."""
        state = container.state
        state.OOMKilled = self._runc.was_oom_killed(container.id)
        # A file's time comes from the kernel's coarse clock and may lie a few milliseconds before the start.
        began_ns = parse_time(state.StartedAt)
        at_ns = max(at_ns, began_ns + 1)
        state.ExitCode, state.FinishedAt = exit_code, rfc3339(at_ns)
        ran_s = (at_ns - began_ns) / 1e9
        container.let_go("init")
        delay_s = _next_delay(container, ran_s)
        container.move(Event.EXITED if delay_s is None else Event.EXITED_FOR_NOW, exit_code=exit_code)
        self._store.save_state(container)
        if state.OOMKilled:
            announce(self._events, container, "oom")
        announce(self._events, container, "die", exitCode=str(exit_code), execDuration=str(int(ran_s)))
        self._execs.container_ended(container)
        container.notify("exit")
        await self._releasing.release(container)
        if delay_s is not None:
            self.restart_later(container, delay_s)
        else:
            self._removal.remove_if_automatic(container)

    # ---- restart ---------------------------------------------------------------------------------------------------

    def restart_later(self, container: Container, delay_s: float) -> None:
        """Set the timer of a container that is "restarting"; the next daemon does when this one is closing."""

        def due() -> None:
            self._transitions.spawn("restart", container, self._restart(container))

        if not self._transitions.closed:
            container.restart_delay_s = delay_s
            container.restart_timer = asyncio.get_running_loop().call_later(delay_s, due)

    async def _restart(self, container: Container) -> None:
        async with container.lock:
            container.restart_timer = None
            if container.state.Status is not Status.RESTARTING or container.removing or self._transitions.closed:
                return
            container.state.RestartCount += 1
            try:
                await self._starting.start_locked(container)
            except EngineError as error:
                container.log.warning("container.not_restarted", reason=str(error))
                self._after_failed_restart(container)

    def _after_failed_restart(self, container: Container) -> None:
        """It counts as a run that ended at once; dockerd gives up here, though what was missing may come back."""
        delay_s = _next_delay(container, 0.0)
        if delay_s is None:
            container.move(Event.RESTARTS_GIVEN_UP)
        self._store.save_state(container)
        if delay_s is not None:
            self.restart_later(container, delay_s)


def _next_delay(container: Container, ran_s: float) -> float | None:
    """Seconds until it is started again, None for never."""
    if container.removing:
        return None
    state = container.state
    ended = restart.Ended(state.ExitCode, ran_s, state.RestartCount, container.restart_delay_s, state.StoppedByUser)
    return restart.delay_after(container.record.HostConfig.RestartPolicy, ended)
