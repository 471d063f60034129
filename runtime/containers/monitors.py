"""Which containers may have ended: an exit file appeared, or a conmon went away.

conmon renames an exit file into place (one inotify watch for all containers); that one was killed is seen by its process
(one pidfd each). Nothing polls.
"""

from __future__ import annotations

import asyncio
import contextlib

from runtime.containers.container import Container
from runtime.containers.runc import Runc
from runtime.containers.store import ContainerStore
from runtime.kernel.syscalls import Watcher

LOOK_AGAIN_S = 0.5
ID_LENGTH = 64


class Monitors:
    """One per engine. Says which container to look at, not what became of it: it may be the same one twice."""

    def __init__(self, *, store: ContainerStore, runc: Runc) -> None:
        self._store, self._runc = store, runc
        self._due: asyncio.Queue[Container] = asyncio.Queue()

    def open(self, watcher: Watcher) -> None:
        """Watch for exit files. What happened while nobody watched is ``Readoption``'s."""
        watcher.watch(self._runc.paths.exits, self._exit_file_changed)

    def close(self) -> None:
        """Let go of every process; they run on."""
        for container in self._store:
            container.let_go()

    async def next(self) -> Container:
        """Wait for one that is to be looked at."""
        return await self._due.get()

    def look_again(self, container: Container) -> None:
        """In a moment: it could not be looked at."""
        asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._due.put_nowait, container)

    def watch(self, container: Container) -> None:
        """Notice the end of the monitor of a container that runs, and with it the container's."""

        def ended() -> None:
            container.reap("conmon")
            self._due.put_nowait(container)

        try:
            container.watch("conmon", container.state.ConmonPid, ended)
        except ProcessLookupError:
            self._due.put_nowait(container)
        else:
            if self._runc.exit_status(container.id) is not None:
                self._due.put_nowait(container)

    def _exit_file_changed(self, name: str) -> None:
        if name:
            if (container := self._store.find(name)) is not None:
                self._due.put_nowait(container)
            elif len(name) == ID_LENGTH:  # else it is conmon's temporary file, on its way to become one
                with contextlib.suppress(OSError):  # of one whose start failed, and that is removed by now
                    self._runc.forget_exit(name)
            return
        for container in self._store:  # events were lost: look at all
            if container.running and self._runc.exit_status(container.id):
                self._due.put_nowait(container)
