"""What the silence of nodes does to the store: the loops around ``watching`` and ``nodes``, while this manager leads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from functools import partial

import grpc
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from manager.consensus.port import ConsensusError
from manager.constants import (
    HEARTBEAT_GRACE_FACTOR,
    HEARTBEAT_GRACE_FACTOR_AFTER_LEADER_CHANGE,
    HEARTBEAT_PERIOD_S,
)
from manager.dispatcher import nodes
from manager.dispatcher.heartbeat import told_period_s
from manager.dispatcher.intake import Intake, put
from manager.dispatcher.session import AgentSession, End
from manager.dispatcher.watching import Lookout, NodeWatch
from manager.model.times import to_timestamp
from manager.store import Store, StoreError, TransactionTooLargeError, Working
from manager.store.store import TRANSACTION_OBJECTS_MAX
from proto.objects_pb2 import NodeState

log = structlog.get_logger(__name__)

RETRY_S = 1.0
"""After the log refused to take what was found."""

RAFT_HEARING_S = 1.5
"""After an election: by then every manager that lives was heard, and what the old leader said last is forgotten."""

GIVE_UP_PERIOD_S = 60.0
"""Between two looks for nodes that never came."""


class Liveness:
    """Times of one leadership after another: ``take_over`` begins anew."""

    def __init__(
        self,
        store: Store,
        intake: Intake,
        sessions: MutableMapping[str, AgentSession],
        lookout: Lookout,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        """
        Args:
            sessions: the dispatcher's, by node ID; those of dead nodes are taken out and finished here.
            lookout: hosts to look at, managers to ask.
            clock: wall clock, seconds since the epoch; monotonic: what heartbeats are measured with.
        """
        self._store, self._intake, self._sessions = store, intake, sessions
        self._lookout, self._clock, self._monotonic = lookout, clock, monotonic
        self._watch = self._new_watch()

    def _new_watch(self) -> NodeWatch:
        return NodeWatch(self._sessions, self._lookout, on_dead=self._declare_down, monotonic=self._monotonic)

    def now(self) -> Timestamp:
        """The wall clock."""
        return to_timestamp(self._clock())

    def period_s(self) -> float:
        """The heartbeat period of the cluster's spec."""
        return self._store.view.cluster.spec.dispatcher.heartbeat_period_ns / 1e9 or HEARTBEAT_PERIOD_S

    # ------------------------------------------------------------ signs of life

    def admit(self, node_id: str) -> bool:
        """Whether the node may register now (A3.04)."""
        return self._watch.admit(node_id)

    def register(self, session: AgentSession) -> None:
        """A session began, or its period changed."""
        self._watch.register(session, grpc_addr=self._grpc_addr(session.node_id))

    def _grpc_addr(self, node_id: str) -> str:
        node = self._store.view.nodes.get(node_id)
        return node.grpc_addr if node is not None else ""

    def beat(self, session: AgentSession) -> None:
        """The session's agent said something."""
        self._watch.beat(session)

    def closed(self, node_id: str) -> None:
        """The node's session ended: its daemon has the longest grace there is to come back, if its host lives."""
        self._watch.closed(node_id, grace_s=HEARTBEAT_GRACE_FACTOR * told_period_s(self.period_s(), 1.0))

    def expect(self, node_id: str) -> None:
        """The node joined, or is a new leader's: it has to show up within the longer grace."""
        period_s = self.period_s()
        within_s = HEARTBEAT_GRACE_FACTOR_AFTER_LEADER_CHANGE * period_s
        self._watch.expect(node_id, within_s=within_s, period_s=period_s)

    def forget(self, node_id: str) -> None:
        """The node was removed."""
        self._watch.forget(node_id)

    # ------------------------------------------------------------ loops

    async def take_over(self) -> None:
        """Move every node that is not down to UNKNOWN and give it twice the usual time to come (A3.02).

        A node that does not fit into the log is passed over: no object may keep a leader from serving the others.
        """
        self._watch = self._new_watch()
        while True:
            try:
                await self._declare_all_unknown()
                break
            except (ConsensusError, StoreError) as error:
                log.warning("takeover.deferred", reason=str(error))
                await asyncio.sleep(RETRY_S)
        for node in self._store.view.nodes.values():
            if node.status.state != NodeState.NODE_STATE_DOWN:
                self.expect(node.id)

    async def _declare_all_unknown(self) -> None:
        everybody = [node.id for node in self._store.view.nodes]
        for begin in range(0, len(everybody), TRANSACTION_OBJECTS_MAX):  # nobody waits for more than an entry
            node_ids = everybody[begin : begin + TRANSACTION_OBJECTS_MAX]
            try:
                await self._intake.submit(partial(self._declare_unknown, node_ids=node_ids), weight=len(node_ids))
            except TransactionTooLargeError:
                await self._declare_unknown_one_by_one(node_ids)

    async def _declare_unknown_one_by_one(self, node_ids: Sequence[str]) -> None:
        for node_id in node_ids:
            try:
                await self._intake.submit(partial(self._declare_unknown, node_ids=[node_id]))
            except TransactionTooLargeError as error:
                log.error("node.left_as_it_is", node_id=node_id, reason=str(error))

    def _declare_unknown(self, working: Working, node_ids: Iterable[str]) -> None:
        now = self.now()
        for node_id in node_ids:
            if (node := working.nodes.get(node_id)) is not None:
                put(working, nodes.unknown(node, now))

    async def notice_lost_managers(self, unheard: Callable[[], Mapping[str, str]]) -> None:
        """Look at the hosts of managers that Raft does not hear either, the old leader's above all.

        Else the tasks of a host that died with the leadership on it would wait six periods for others.

        Args:
            unheard: Raft's addresses, ``host:port``, of managers that were connected once, by node ID.
        """
        await asyncio.sleep(RAFT_HEARING_S)
        for node_id, addr in unheard().items():
            if node_id not in self._sessions:
                self._watch.lost(node_id, addr)

    async def watch(self) -> None:
        """Declare down whose host or daemon is dead; until cancelled."""
        await self._watch.run()

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
                if node_id not in self._sessions and node_id in self._store.view.nodes:
                    self._watch.expect(node_id, within_s=RETRY_S, period_s=self.period_s())
            return
        log.warning("node.went_down", node_ids=list(dead), reason=nodes.HEARTBEAT_FAILURE)
