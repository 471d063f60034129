"""Nodes that went silent, and what follows: the loop around ``heartbeat`` and ``nodes``, while this manager leads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, MutableMapping, Sequence

import grpc
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from manager.consensus.port import ConsensusError
from manager.constants import HEARTBEAT_GRACE_FACTOR_AFTER_LEADER_CHANGE, HEARTBEAT_PERIOD_S
from manager.dispatcher import nodes
from manager.dispatcher.heartbeat import HeartbeatBook
from manager.dispatcher.intake import Intake, put
from manager.dispatcher.session import AgentSession, End
from manager.model.times import to_timestamp
from manager.store import Store, StoreError, Working
from proto.objects_pb2 import NodeState

log = structlog.get_logger(__name__)

RETRY_S = 1.0
"""After the log refused to take what was found."""

RAFT_HEARING_S = 1.5
"""After an election: by then every manager that lives was heard, and what the old leader said last is forgotten."""

GIVE_UP_PERIOD_S = 60.0
"""Between two looks for nodes that never came."""

STALL_S = 1.0
"""Waking so much later than planned means that this process stood still: paused, swapped out, or short of CPU."""


class Liveness:
    """Times of one leadership after another: ``take_over`` begins anew."""

    def __init__(
        self,
        store: Store,
        intake: Intake,
        sessions: MutableMapping[str, AgentSession],
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        """
        Args:
            sessions: the dispatcher's, by node ID; those of dead nodes are taken out and finished here.
            clock: wall clock, seconds since the epoch; monotonic: what heartbeats are measured with.
        """
        self._store, self._intake, self._sessions = store, intake, sessions
        self._clock, self._monotonic = clock, monotonic
        self._book = HeartbeatBook()
        self._changed = asyncio.Event()

    def now(self) -> Timestamp:
        """The wall clock."""
        return to_timestamp(self._clock())

    def period_s(self) -> float:
        """The heartbeat period of the cluster's spec."""
        return self._store.view.cluster.spec.dispatcher.heartbeat_period_ns / 1e9 or HEARTBEAT_PERIOD_S

    # ------------------------------------------------------------ signs of life

    def admit(self, node_id: str) -> bool:
        """Whether the node may register now (A3.04)."""
        return self._book.admit(node_id, self._monotonic())

    def register(self, session: AgentSession) -> None:
        """A session began, or its period changed."""
        self._book.register(session.node_id, self._monotonic(), period_s=session.period_s)
        self._changed.set()

    def beat(self, session: AgentSession) -> None:
        """The session's agent said something."""
        self._book.beat(session.node_id, self._monotonic())

    def broken(self, node_id: str) -> None:
        """The node's connection broke."""
        self._book.broken(node_id, self._monotonic())
        self._changed.set()

    def expect(self, node_id: str) -> None:
        """The node joined, or is a new leader's: it has to show up within the longer grace."""
        period_s = self.period_s()
        within_s = HEARTBEAT_GRACE_FACTOR_AFTER_LEADER_CHANGE * period_s
        self._book.expect(node_id, self._monotonic(), within_s=within_s, period_s=period_s)
        self._changed.set()

    def forget(self, node_id: str) -> None:
        """The node was removed."""
        self._book.forget(node_id)

    # ------------------------------------------------------------ loops

    async def take_over(self) -> None:
        """Move every node that is not down to UNKNOWN and give it twice the usual time to come (A3.02)."""
        self._book = HeartbeatBook()
        while True:
            try:
                await self._intake.submit(self._declare_unknown)
                break
            except (ConsensusError, StoreError) as error:
                log.warning("takeover.deferred", reason=str(error))
                await asyncio.sleep(RETRY_S)
        for node in self._store.view.nodes.values():
            if node.status.state != NodeState.NODE_STATE_DOWN:
                self.expect(node.id)

    def _declare_unknown(self, working: Working) -> None:
        now = self.now()
        for node in list(working.nodes.values()):
            put(working, nodes.unknown(node, now))

    async def notice_lost_managers(self, unheard: Callable[[], Iterable[str]]) -> None:
        """Shorten the grace of hosts whose managers Raft does not hear either, the old leader's above all.

        Their agents have one period to show up, as after a broken connection: else the tasks of a host that died
        with the leadership on it would wait six periods for others.
        """
        await asyncio.sleep(RAFT_HEARING_S)
        for node_id in unheard():
            if node_id not in self._sessions:
                self.broken(node_id)

    async def watch_heartbeats(self) -> None:
        """Declare down who is silent for too long; until cancelled."""
        while True:
            self._changed.clear()
            dead = self._book.due(self._monotonic())
            if dead:
                await self._declare_down(dead)
            deadline_s = self._book.deadline()
            wait_s = None if deadline_s is None else max(0.0, deadline_s - self._monotonic())
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                self._forgive_own_delay(deadline_s)

    async def give_up_nodes(self) -> None:
        """Remove nodes that joined and never came, now and then; until cancelled."""
        while True:
            await self.give_up_once()
            await asyncio.sleep(GIVE_UP_PERIOD_S)

    async def give_up_once(self) -> None:
        """Remove nodes that joined and never came (``nodes.is_given_up``)."""
        now = self.now()
        found = [node.id for node in self._store.view.nodes if nodes.is_given_up(node, now)]

        def change(working: Working) -> None:
            for node_id in found:
                node = working.nodes.get(node_id)
                if node is not None and nodes.is_given_up(node, now) and node_id not in self._sessions:
                    working.remove(node)
                    working.boundary()

        if not found:
            return
        try:
            await self._intake.submit(change, weight=len(found))
        except (ConsensusError, StoreError) as error:
            log.warning("node.give_up_deferred", node_ids=found, reason=str(error))
            return
        log.info("node.given_up", node_ids=found, reason="joined and never showed up")

    def _forgive_own_delay(self, deadline_s: float | None) -> None:
        """A manager that was paused must not hold the silence against its agents."""
        late_s = 0.0 if deadline_s is None else self._monotonic() - deadline_s
        if late_s > STALL_S:
            log.warning("dispatcher.stalled", late_s=round(late_s, 3))
            self._book.postpone(late_s)

    async def _declare_down(self, dead: Sequence[str]) -> None:
        for node_id in dead:
            session = self._sessions.pop(node_id, None)
            if session is not None:
                session.finish(End(grpc.StatusCode.UNAVAILABLE, nodes.HEARTBEAT_FAILURE))

        def change(working: Working) -> None:
            for node_id in dead:
                node = working.nodes.get(node_id)
                if node is None or node_id in self._sessions:
                    continue  # removed, or back while this waited for the log
                put(working, nodes.down(node, self.now()))

        try:
            await self._intake.submit(change, weight=len(dead))
        except (ConsensusError, StoreError) as error:
            log.warning("node.down_deferred", node_ids=list(dead), reason=str(error))
            for node_id in dead:
                if node_id not in self._sessions:
                    self._book.expect(node_id, self._monotonic(), within_s=RETRY_S)
            return
        log.warning("node.went_down", node_ids=list(dead), reason=nodes.HEARTBEAT_FAILURE)
