"""Whose assignments are sent when: in rounds, each session once in a round.

A round takes those who have something to be told, and lets others have the loop after some of them. What changes
meanwhile waits for the next round, which begins after a pause as long as this one took, and not sooner after it than
``constants.PACE_S``: what comes alone is sent at once, and while thousands of tasks are being given out, each agent gets what
several passes decided in one message, and sending takes half of the loop at most.
"""

from __future__ import annotations

import asyncio

from base.pace import Pace
from manager.constants import PACE_S
from manager.dispatcher.session import AgentSession

AT_ONCE = 50
"""Sessions whose messages are made in one turn of the loop; one takes some 0.3 ms."""

PAUSE_S_MAX = 0.2


class Rounds:
    """``run`` it while this manager leads."""

    def __init__(self) -> None:
        self._due: dict[AgentSession, None] = {}  # in order
        self._wake = asyncio.Event()

    def add(self, session: AgentSession) -> None:
        """The session has something to be told, or may have."""
        self._due[session] = None
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        loop, pace = asyncio.get_running_loop(), Pace(PACE_S)
        while True:
            await self._wake.wait()
            await pace.turn()
            self._wake.clear()
            due, self._due = self._due, {}
            began_s = loop.time()
            for number, session in enumerate(due, start=1):
                session.assignments_due.set()
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(min(loop.time() - began_s, PAUSE_S_MAX))
