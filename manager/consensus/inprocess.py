"""A log of one member in memory: the second implementation of the consensus port, for tests of what stands on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from manager.consensus.commands import Applier
from manager.consensus.outputs import COMMAND_ID_SIZE_BYTES, REGULAR
from manager.consensus.port import (
    ENTRY_SIZE_BYTES_MAX,
    Admission,
    EntryTooLargeError,
    LeaderState,
    Member,
    MembershipError,
    NodeID,
    NotLeaderError,
    ProposalUnknownError,
    StateMachine,
)

_NODE_ID = NodeID("node-1")


class InProcessConsensus:
    """Always leads once started; nothing is kept beyond the object's life.

    Entries proposed in one turn of the loop are applied in one batch in the next, as a real log does.
    Members can be added and removed, but exist in the list only. ``lose_leadership`` and ``fail`` let a
    test of the store see the bad days.
    """

    def __init__(self, node_id: NodeID = _NODE_ID, address: str = "127.0.0.1:2377") -> None:
        self._node_id = node_id
        self._members = {node_id: Member(node_id, address)}
        self._leader = LeaderState(0, None, False)
        self._leader_callbacks: list[Callable[[LeaderState], None]] = []
        self._failure_callbacks: list[Callable[[BaseException], None]] = []
        self._applier: Applier | None = None
        self._index = 1
        self._numbers = count(1)
        self._failed = False
        self._superseded = ""
        self._queue: list[tuple[bytes, bytes, asyncio.Future[object]]] = []

    @property
    def node_id(self) -> NodeID:
        return self._node_id

    @property
    def leader(self) -> LeaderState:
        return self._leader

    @property
    def members(self) -> Sequence[Member]:
        return tuple(self._members[node_id] for node_id in sorted(self._members))

    @property
    def group_id(self) -> str:
        return "in-process"

    @property
    def superseded(self) -> str:
        return self._superseded

    @property
    def reachable(self) -> frozenset[NodeID]:
        return frozenset(self._members)

    @property
    def instances(self) -> Mapping[NodeID, str]:
        return {}

    @property
    def applied_index(self) -> int:
        return self._index

    def on_leader_change(self, callback: Callable[[LeaderState], None]) -> None:
        self._leader_callbacks.append(callback)

    def on_failure(self, callback: Callable[[BaseException], None]) -> None:
        self._failure_callbacks.append(callback)

    async def start(self, machine: StateMachine) -> None:
        self._applier = Applier(machine)
        self._lead()

    async def stop(self, *, transfer: bool = True) -> None:
        self._set_leader(LeaderState(self._leader.term, None, False))
        self._drop_queue("this manager is stopping")

    async def propose(self, data: bytes, *, timeout_s: float = 20.0, command_id: bytes | None = None) -> object:
        if len(data) > ENTRY_SIZE_BYTES_MAX:
            raise EntryTooLargeError(f"entry of {len(data)} bytes, largest is {ENTRY_SIZE_BYTES_MAX}")
        self._check_leading()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        if not self._queue:
            loop.call_soon(self._apply)
        if command_id is None:
            command_id = next(self._numbers).to_bytes(COMMAND_ID_SIZE_BYTES, "big")
        elif len(command_id) != COMMAND_ID_SIZE_BYTES:
            raise ValueError(f"a command ID has {COMMAND_ID_SIZE_BYTES} bytes")
        self._queue.append((command_id, data, future))
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise ProposalUnknownError("the entry was not committed in time") from None

    async def read_barrier(self, *, timeout_s: float = 20.0) -> int:
        self._check_leading()
        await asyncio.sleep(0)
        return self._index

    async def admission(self, *, timeout_s: float = 20.0) -> Admission:
        await self.read_barrier(timeout_s=timeout_s)
        return Admission(self.group_id, self._leader.term, self._node_id, self._index)

    async def admit(self, admission: Admission) -> None:
        """It founded its group."""

    async def add_member(self, member: Member, *, timeout_s: float = 20.0) -> None:
        self._check_leading()
        self._members[member.node_id] = Member(member.node_id, member.address)

    async def remove_member(self, node_id: NodeID, *, timeout_s: float = 20.0) -> None:
        self._check_leading()
        if node_id not in self._members:
            raise MembershipError(f"{node_id} is not a member of this group")
        if node_id == self._node_id:
            raise MembershipError(f"{node_id} is the last manager: removing it would lose the quorum")
        del self._members[node_id]

    async def transfer_leadership(self, to: NodeID | None = None, *, timeout_s: float = 5.0) -> None:
        self._check_leading()
        raise MembershipError(f"cannot transfer leadership: {to or 'no other manager'} is not a reachable voter")

    def update_address(self, node_id: NodeID, address: str) -> None:
        if node_id in self._members:
            self._members[node_id] = Member(node_id, address)

    # For tests of what stands on the log

    def lose_leadership(self) -> None:
        """As if another member led now: what is on its way ends in ProposalUnknownError."""
        self._set_leader(LeaderState(self._leader.term + 1, None, False))
        self._drop_queue("leadership was lost while the entry was on its way")

    def supersede(self, reason: str) -> None:
        """As if a new cluster had been forced from this one elsewhere."""
        self._superseded = reason
        self.lose_leadership()

    def regain_leadership(self) -> None:
        self._lead()

    def fail(self, error: BaseException) -> None:
        """As if the disk had failed."""
        self._failed = True
        self._set_leader(LeaderState(self._leader.term, None, False))
        self._drop_queue(f"this manager failed: {error}")
        for callback in self._failure_callbacks:
            callback(error)

    def _lead(self) -> None:
        self._set_leader(LeaderState(self._leader.term + 1, self._node_id, True))

    def _set_leader(self, state: LeaderState) -> None:
        if state != self._leader:
            self._leader = state
            for callback in self._leader_callbacks:
                callback(state)

    def _drop_queue(self, reason: str) -> None:
        queue, self._queue = self._queue, []
        for _, _, future in queue:
            if not future.done():
                future.set_exception(ProposalUnknownError(reason))

    def _check_leading(self) -> None:
        if self._failed or not self._leader.is_leader:
            raise NotLeaderError(self._leader.leader_id)

    def _apply(self) -> None:
        queue, self._queue = self._queue, []
        if not queue or self._applier is None:
            return
        term = self._leader.term
        entries = [(REGULAR + key + data, self._index + 1 + n, term) for n, (key, data, _) in enumerate(queue)]
        try:
            outcomes = self._applier.apply(entries)
        except Exception as error:
            self._queue = queue
            self.fail(error)
            return
        self._index = self._applier.applied_index
        for (_, _, future), outcome in zip(queue, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome.result, Exception):
                future.set_exception(outcome.result)
            else:
                future.set_result(outcome.result)
