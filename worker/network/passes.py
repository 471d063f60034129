"""Work that follows what is told: one pass at a time, another when more was told meanwhile, and again after a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from base.backoff import Backoff
from base.tasks import OwnedTasks
from runtime.errors import HostError

RETRY_DELAY_S, RETRY_DELAY_S_MAX = 0.1, 5.0


class Passes:
    """The passes over one thing.

    Args:
        work: one pass. OSError and HostError mean that the kernel refused: it is tried again, later each time.
        failed: told of these.
    """

    def __init__(
        self, tasks: OwnedTasks, work: Callable[[], Awaitable[None]], failed: Callable[[Exception], None], name: str
    ) -> None:
        self._tasks, self._work, self._failed, self._name = tasks, work, failed, name
        self._told = self._done = 0
        self._progress = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    def tell(self) -> None:
        """Something is to be done: a pass begins after this."""
        self._told += 1
        if self._runner is None or self._runner.done():
            self._runner = self._tasks.spawn(self._run(), name=self._name)

    @property
    def are_done(self) -> bool:
        """Whether nothing is left to do."""
        return self._done == self._told

    async def settled(self) -> None:
        """Return once what was told before is done. As long as that fails, it is tried again."""
        wanted = self._told
        while self._done < wanted:
            await self._progress.wait()

    async def _run(self) -> None:
        backoff = Backoff(RETRY_DELAY_S, RETRY_DELAY_S_MAX)
        while self._done < self._told:
            told = self._told
            try:
                await self._work()
            except (OSError, HostError) as error:
                self._failed(error)
                await asyncio.sleep(backoff.next_s())
                continue
            except Exception as error:
                self._failed(error)  # a defect: the next pass begins from nothing, and nobody takes this one for done
                raise
            backoff.reset()
            self._done = told
            self._progress.set()
            self._progress = asyncio.Event()
