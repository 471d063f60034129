"""The loops around ``suspicion``: sessions' words come in, hosts are looked at, dead nodes go out. No store, no log entry.

What it costs: two questions to this kernel a second for each session (``connections``), one look a minute at each
host that is well, and looks at those in doubt. Silence counts for as long as this manager could hear (``attention``);
when it was late, its kernel is asked what came in meanwhile. Hosts are looked at where their sessions came from, which
nobody can make up, so that a node cannot have managers knock at doors of others.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from base import connections
from base.connections import KernelConnection, Peer
from base.tasks import OwnedTasks
from manager.dispatcher.attention import STALL_S, TICK_S, Attention
from manager.dispatcher.heartbeat import HeartbeatBook
from manager.dispatcher.looking import Answer, is_literal
from manager.dispatcher.session import AgentSession
from manager.dispatcher.suspicion import Look, Suspicions
from pki.addresses import split_host_port

log = structlog.get_logger(__name__)

QUIET_S = 1.5
"""A connection whose other kernel acknowledged nothing for so long is in doubt: it is asked after each idle second."""

LISTEN_PERIOD_S = 0.5
"""Between two questions to this kernel about what it hears of the others."""

LISTEN_AT_ONCE = 200
"""Connections that the kernel is asked about in one turn of the loop."""

LEARN_PERIOD_S = 60.0
"""How often a host that is well is looked at, to know whether it answers."""

LEARN_AGAIN_S = 5.0
"""After it did not answer, once."""

LEARN_WITHIN_S = 1.0
LEARN_AT_ONCE_MAX = 32

HAND_OVER_PERIOD_S = 60.0
"""Between two tries to give the lead to a manager that reaches more nodes."""

JUDGE_PERIOD_S = 0.1
"""Between two looks at deadlines, most of which heartbeats have moved meanwhile; what is told is looked at at once."""


@dataclass(frozen=True, slots=True)
class LookTarget:
    """Where to look at a node.

    Attributes:
        host: a literal IP address.
    """

    node_id: str
    host: str
    port: int


class LookAt(Protocol):
    """Looks at a host, see ``looking.Looker.look``."""

    def __call__(self, host: str, port: int, *, within_s: float = ...) -> Awaitable[Answer]: ...


@dataclass(frozen=True, slots=True)
class Lookout:
    """What is around a manager.

    Attributes:
        look_at: see ``LookAt``.
        ask_others: has other managers look, and returns by node ID whether any of them had an answer; a node is missing
            when nobody was there to ask.
        hand_over: gives the lead to another manager.
        port: which one to look at on a host whose node names none.
    """

    look_at: LookAt
    ask_others: Callable[[Sequence[LookTarget]], Awaitable[Mapping[str, bool]]]
    hand_over: Callable[[], Coroutine[None, None, None]]
    port: int


class NodeWatch:
    """Of one leadership. ``run`` serves; what is told before that counts."""

    def __init__(
        self,
        sessions: Mapping[str, AgentSession],
        around: Lookout,
        *,
        on_dead: Callable[[Sequence[str]], Awaitable[None]],
        monotonic: Callable[[], float],
    ) -> None:
        """
        Args:
            sessions: the dispatcher's, by node ID.
            on_dead: told nodes that are down, which are watched no longer.
            monotonic: seconds.
        """
        self._sessions, self._around = sessions, around
        self._on_dead, self._any_time = on_dead, monotonic
        self._attention = Attention(time.monotonic)
        self._attention.tick()
        self._book = HeartbeatBook()
        self._suspicions = Suspicions(self._book)
        self._hosts: dict[str, LookTarget] = {}
        self._connections: dict[str, KernelConnection] = {}
        self._heard_s: dict[str, float] = {}
        """When their kernels were heard last, as this one said when it was asked last."""
        self._unfound: dict[str, Peer] = {}
        """Those of sessions that came since they were looked for last."""
        self._learn_s: dict[str, float] = {}
        self._learning = 0
        self._hand_over_s = float("-inf")
        self._tasks = OwnedTasks()
        self._changed = asyncio.Event()

    def _monotonic(self) -> float:
        """The clock that heartbeats are measured with: it stands still while nobody can be heard."""
        return self._any_time() - self._attention.lost_s()

    # ------------------------------------------------------------ what the dispatcher tells

    def admit(self, node_id: str) -> bool:
        """Whether the node may register now (A3.04)."""
        return self._book.admit(node_id, self._monotonic())

    def register(self, session: AgentSession, *, grpc_addr: str) -> None:
        """A session began, or its period changed.

        Args:
            grpc_addr: the node's, "" on a worker.
        """
        node_id = session.node_id
        self._suspicions.register(node_id, self._monotonic(), period_s=session.period_s)
        if session.peer is not None:
            port = split_host_port(grpc_addr)[1] if grpc_addr else self._around.port
            self._hosts[node_id] = LookTarget(node_id, session.peer[0], port)
            known = self._connections.get(node_id)
            if known is None or known.peer != session.peer:
                self._lose(node_id)
                self._unfound[node_id] = session.peer
        self._changed.set()

    def beat(self, session: AgentSession) -> None:
        """The session's agent said something."""
        self._suspicions.beat(session.node_id, self._monotonic())

    def closed(self, node_id: str, *, grace_s: float) -> None:
        """See ``Suspicions.closed``."""
        self._lose(node_id)
        self._suspicions.closed(node_id, self._monotonic(), grace_s=grace_s)
        self._changed.set()

    def expect(self, node_id: str, *, within_s: float, period_s: float) -> None:
        """See ``Suspicions.expect``."""
        self._suspicions.expect(node_id, self._monotonic(), within_s=within_s, period_s=period_s)
        self._changed.set()

    def lost(self, node_id: str, addr: str) -> None:
        """See ``Suspicions.lost``. Where a manager named its host by name the grace holds: names may not resolve now.

        Args:
            addr: ``host:port`` at which Raft reached it.
        """
        host, port = split_host_port(addr)
        if is_literal(host):
            self._hosts[node_id] = LookTarget(node_id, host, port)
            self._suspicions.lost(node_id, self._monotonic())
            self._changed.set()

    def forget(self, node_id: str) -> None:
        """The node was removed."""
        self._suspicions.forget(node_id)
        self._lose(node_id)
        self._hosts.pop(node_id, None)
        self._learn_s.pop(node_id, None)

    def _lose(self, node_id: str) -> None:
        self._heard_s.pop(node_id, None)
        self._connections.pop(node_id, None)
        self._unfound.pop(node_id, None)

    # ------------------------------------------------------------ loops

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._attend(), name="dispatcher attention")
                group.create_task(self._judge(), name="dispatcher heartbeats")
                group.create_task(self._listen(), name="dispatcher connections")
        finally:
            await self._tasks.close()

    async def _attend(self) -> None:
        while True:
            late_s = self._attention.tick()
            if late_s > STALL_S:
                log.warning("dispatcher.stalled", late_s=round(late_s, 3))
            await asyncio.sleep(TICK_S)

    async def _judge(self) -> None:
        while True:
            self._changed.clear()
            found = self._suspicions.tick(self._monotonic())
            self._look(found.looks)
            if found.is_cut_off:
                self._give_the_lead_away()
            if found.dead:
                await self._on_dead(found.dead)
            deadline_s = self._suspicions.deadline()
            wait_s = None if deadline_s is None else max(JUDGE_PERIOD_S, deadline_s - self._monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()

    async def _listen(self) -> None:
        while True:
            self._find_connections()
            await self._ask_the_kernel()
            now = self._monotonic()
            for node_id in self._sessions:
                if self._learning >= LEARN_AT_ONCE_MAX:
                    break
                if now >= self._learn_s.get(node_id, now) and node_id in self._hosts:
                    self._learn_s[node_id] = now + LEARN_PERIOD_S
                    self._learning += 1
                    self._tasks.spawn(self._learn(self._hosts[node_id]), name=f"learn {node_id}")

    async def _ask_the_kernel(self) -> None:
        """About every connection, some at a time, in one period."""
        everybody = list(self._connections.items())
        steps = max(1, -(-len(everybody) // LISTEN_AT_ONCE))
        for step in range(steps):
            now, is_behind = self._monotonic(), self._attention.is_behind()
            for node_id, connection in everybody[step::steps]:
                # Heard less than QUIET_S ago it cannot have been quiet for so long, whatever the kernel says now.
                if is_behind or now - self._heard_s.get(node_id, 0.0) > QUIET_S or node_id in self._suspicions:
                    self._hear(node_id, connection.silences_s(), now, is_behind=is_behind)
            await asyncio.sleep(LISTEN_PERIOD_S / steps)

    def _find_connections(self) -> None:
        """Of all new sessions together: a look goes over every descriptor of this process, and a thousand nodes may join."""
        if self._unfound:
            taken = {connection.descriptor for connection in self._connections.values()}
            found = connections.find_all(self._unfound.values(), taken)
            for node_id, peer in self._unfound.items():
                if peer in found:
                    self._connections[node_id] = found[peer]
            self._unfound.clear()

    def _hear(self, node_id: str, silences_s: tuple[float, float] | None, now: float, *, is_behind: bool) -> None:
        if silences_s is None:
            return  # the end of the session says so, too
        silence_s = min(silences_s)
        if node_id in self._connections:  # not lost since it was listed
            self._heard_s[node_id] = now - silence_s
        if is_behind:
            self._suspicions.bytes_came(node_id, now - silences_s[0])
        if silence_s > QUIET_S:
            self._suspicions.quiet(node_id, now)
            self._changed.set()
        else:
            self._suspicions.heard(node_id)

    # ------------------------------------------------------------ looks

    async def _learn(self, host: LookTarget) -> None:
        try:
            answer = await self._around.look_at(host.host, host.port, within_s=LEARN_WITHIN_S)
        finally:
            self._learning -= 1
        now = self._monotonic()
        if answer is not Answer.ANSWERED:
            self._learn_s[host.node_id] = now + LEARN_AGAIN_S
        if answer is not Answer.UNABLE:
            self._suspicions.learned(host.node_id, now, answers=answer is Answer.ANSWERED)

    def _look(self, looks: Sequence[Look]) -> None:
        found = []
        for look in looks:
            if (host := self._hosts.get(look.node_id)) is None:
                self._suspicions.failed(look, self._monotonic())
                continue
            found.append((look, host))
            self._tasks.spawn(self._look_from_here(look, host), name=f"look {look.node_id}")
        if found:
            self._tasks.spawn(self._look_from_elsewhere(found), name="look from elsewhere")

    async def _look_from_here(self, look: Look, host: LookTarget) -> None:
        answer = await self._around.look_at(host.host, host.port)
        # A host that answers is no news, and on a line that loses packets it is looked at often.
        tell_of_it = log.debug if answer is Answer.ANSWERED else log.info
        tell_of_it("host.looked_at", node_id=look.node_id, addr=host.host, port=host.port, answer=answer.name.lower())
        tell = {
            Answer.ANSWERED: self._suspicions.answered,
            Answer.SILENT: self._suspicions.silent,
            Answer.UNABLE: self._suspicions.failed,
        }
        tell[answer](look, self._monotonic())
        self._changed.set()

    async def _look_from_elsewhere(self, looks: Sequence[tuple[Look, LookTarget]]) -> None:
        answers = await self._around.ask_others([host for _, host in looks])
        for look, _ in looks:
            if (answered := answers.get(look.node_id)) is not None:
                self._suspicions.elsewhere(look, answered=answered)
        self._changed.set()

    def _give_the_lead_away(self) -> None:
        now = self._monotonic()
        if now >= self._hand_over_s:
            self._hand_over_s = now + HAND_OVER_PERIOD_S
            log.warning("dispatcher.cut_off", reason="other managers reach nodes that this one does not")
            self._tasks.spawn(self._around.hand_over(), name="hand over")
