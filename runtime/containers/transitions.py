"""The starts, exits and removals under way: tasks named after their container, owned by the engine."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from base.tasks import OwnedTasks
from runtime.containers.container import Container

CLOSE_GRACE_S = 10.0


class Transitions:
    """One per engine. Each transition takes its container's lock itself."""

    def __init__(self) -> None:
        self._tasks = OwnedTasks()
        self.closed = False
        """Nothing new is begun then: what is due is the next daemon's."""

    # Any: what a coroutine yields and is sent is the loop's.
    def spawn(self, what: str, container: Container, work: Coroutine[Any, Any, None]) -> None:
        """Begin one that nobody waits for; what it raises is logged."""
        self._tasks.spawn(work, name=f"{what} {container.id[:12]}")

    async def to_its_end(self, what: str, container: Container, work: Coroutine[Any, Any, None]) -> None:
        """Await one that goes on when the caller is cancelled: half a start or removal would be nobody's."""
        await self._tasks.run_to_end(work, name=f"{what} {container.id[:12]}")

    async def close(self) -> None:
        """Finish what is under way, for at most ten seconds."""
        self.closed = True
        await self._tasks.close(grace_s=CLOSE_GRACE_S)
