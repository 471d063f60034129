"""Proposals on their way: who waits for which command, how much there may be, when their time is up."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from itertools import count

from manager.consensus.outputs import COMMAND_ID_SIZE_BYTES
from manager.consensus.port import ConsensusError, ProposalUnknownError

PENDING_BYTES_MAX = 64 * 1024 * 1024
"""More than this on its way makes ``propose`` wait."""
SWEEP_PERIOD_S = 0.1
"""Proposals end at most this much after their time is up."""


@dataclass(slots=True)
class _Pending:
    future: asyncio.Future[object]
    size_bytes: int
    deadline_s: float


class Proposals:
    """Used on the owner's loop only."""

    def __init__(self) -> None:
        self._pending: dict[bytes, _Pending] = {}
        self._pending_bytes = 0
        self._room = asyncio.Event()
        self._sweeper: asyncio.TimerHandle | None = None
        self._id_prefix = os.urandom(COMMAND_ID_SIZE_BYTES - 8)  # of this start: unique without a system call each
        self._id_numbers = count()

    def new_id(self) -> bytes:
        return self._id_prefix + next(self._id_numbers).to_bytes(8, "big")

    async def wait_for_room(self) -> None:
        while self._pending_bytes > PENDING_BYTES_MAX:
            self._room.clear()
            await self._room.wait()

    def find(self, command_id: bytes) -> asyncio.Future[object] | None:
        """The future of a command that is on its way already."""
        pending = self._pending.get(command_id)
        return pending.future if pending is not None else None

    def add(self, command_id: bytes, size_bytes: int, timeout_s: float) -> asyncio.Future[object]:
        """The caller awaits the future and then calls ``remove``, whatever happens."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        self._pending[command_id] = _Pending(future, size_bytes, loop.time() + timeout_s)
        self._pending_bytes += size_bytes
        if self._sweeper is None:
            self._sweeper = loop.call_later(SWEEP_PERIOD_S, self._sweep, loop)
        return future

    def remove(self, command_id: bytes) -> None:
        self._pending_bytes -= self._pending.pop(command_id).size_bytes
        self._room.set()

    def resolve(self, command_id: bytes, result: object) -> None:
        """``result`` is what the state machine returned: an exception instance is raised to the proposer."""
        pending = self._pending.get(command_id)
        if pending is None or pending.future.done():
            return
        if isinstance(result, Exception):
            pending.future.set_exception(result)
        else:
            pending.future.set_result(result)

    def fail_all(self, reason: str) -> None:
        """The outcome of everything on its way is unknown."""
        for command_id in list(self._pending):
            self.resolve(command_id, ProposalUnknownError(reason))

    def reject(self, command_id: bytes, error: ConsensusError) -> None:
        self.resolve(command_id, error)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """End those whose time is up; one timer for all is cheaper than one each."""
        now = loop.time()
        for command_id, pending in list(self._pending.items()):
            if pending.deadline_s <= now:
                self.resolve(command_id, ProposalUnknownError("the entry was not committed in time"))
        self._sweeper = loop.call_later(SWEEP_PERIOD_S, self._sweep, loop) if self._pending else None

    def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
