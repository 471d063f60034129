"""What is done to a container that runs: signals, stop, kill, the freezer."""

from __future__ import annotations

import asyncio
import contextlib
import signal

from runtime.containers import signals
from runtime.containers.announcements import announce
from runtime.containers.container import Container
from runtime.containers.runc import Runc
from runtime.containers.states import Event, Status
from runtime.containers.store import ContainerStore
from runtime.errors import ConflictError, NotModifiedError, NotRunningError
from runtime.events import EventBus

STOP_TIMEOUT_S = 10.0


class Stopping:
    """Asks processes to end; that they have is ``Exits``' to notice, so nothing here waits with the lock held."""

    def __init__(self, *, store: ContainerStore, runc: Runc, events: EventBus) -> None:
        self._store, self._runc, self._events = store, runc, events

    async def stop(self, container: Container, timeout_s: float | None, name: str | None) -> None:
        """See ``Engine.stop``."""
        config = container.record.Config
        number = signals.parse(name or config.StopSignal or "SIGTERM")
        if timeout_s is None:
            timeout_s = STOP_TIMEOUT_S if config.StopTimeout is None else float(config.StopTimeout)
        if not container.running:
            async with container.lock:
                if container.state.Status is Status.RESTARTING:
                    container.cancel_restart_timer()
                    container.move(Event.RESTART_CANCELLED)
                    self._note_stop(container)
                    return
            if not container.running:
                raise NotModifiedError(f"container {container.id[:12]} is already stopped")
        self._note_stop(container)
        ended = container.wait("exit")
        self.signal(container, number)
        try:
            await asyncio.wait_for(asyncio.shield(ended), timeout_s if timeout_s >= 0 else None)
        except TimeoutError:
            container.log.info("container.killed", after_s=timeout_s)
            self.signal(container, signal.SIGKILL)
            await ended
        finally:
            ended.cancel()
        announce(self._events, container, "stop")

    async def kill(self, container: Container, name: str, *, ref: str) -> None:
        """See ``Engine.kill``; ``ref`` is how its caller named the container."""
        number = signals.parse(name or "SIGKILL")
        if not container.running:
            raise ConflictError(f"cannot kill container: {ref}: container {container.id} is not running")
        if number in (signal.SIGKILL, signals.parse(container.record.Config.StopSignal or "SIGTERM")):
            self._note_stop(container)
        if number != signal.SIGKILL:
            self.signal(container, number)
            return
        ended = container.wait("exit")
        self.signal(container, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended, STOP_TIMEOUT_S)

    def signal(self, container: Container, number: int) -> None:
        """Send a signal and say so as an event; a frozen container is thawed for SIGKILL, whatever our record says."""
        delivered = container.send_signal(number)
        if delivered and number == signal.SIGKILL:
            self._runc.thaw(container.id)
        if delivered:
            announce(self._events, container, "kill", signal=str(number))

    async def pause(self, container: Container) -> None:
        """See ``Engine.pause``."""
        async with container.lock:
            if not container.running:
                raise NotRunningError(container.id)
            if container.state.Status is Status.PAUSED:
                raise ConflictError(f"container {container.id} is already paused")
            await self._runc.pause(container.id)
            container.move(Event.PAUSED)
            self._store.save_state(container)
        announce(self._events, container, "pause")

    async def unpause(self, container: Container) -> None:
        """See ``Engine.unpause``."""
        async with container.lock:
            if container.state.Status is not Status.PAUSED:
                raise ConflictError(f"container {container.id} is not paused")
            await self._runc.resume(container.id)
            container.move(Event.UNPAUSED)
            self._store.save_state(container)
        announce(self._events, container, "unpause")

    def _note_stop(self, container: Container) -> None:
        """Kept over a restart of the daemon, for "unless-stopped"."""
        container.state.StoppedByUser = True
        self._store.save_state(container)
