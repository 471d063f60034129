"""A log of one member in memory: the second implementation of the consensus port, for tests of what stands on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from manager.consensus.port import (
    ENTRY_SIZE_BYTES_MAX,
    Entry,
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
        self._machine: StateMachine | None = None
        self._index = 1
        self._failed = False
        self._queue: list[tuple[bytes, asyncio.Future[object]]] = []

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
    def reachable(self) -> frozenset[NodeID]:
        return frozenset(self._members)

    @property
    def applied_index(self) -> int:
        return self._index

    def on_leader_change(self, callback: Callable[[LeaderState], None]) -> None:
        self._leader_callbacks.append(callback)

    def on_failure(self, callback: Callable[[BaseException], None]) -> None:
        self._failure_callbacks.append(callback)

    async def start(self, machine: StateMachine) -> None:
        self._machine = machine
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
        self._queue.append((data, future))
        return await future

    async def read_barrier(self, *, timeout_s: float = 20.0) -> int:
        self._check_leading()
        await asyncio.sleep(0)
        return self._index

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
        for _, future in queue:
            if not future.done():
                future.set_exception(ProposalUnknownError(reason))

    def _check_leading(self) -> None:
        if self._failed or not self._leader.is_leader:
            raise NotLeaderError(self._leader.leader_id)

    def _apply(self) -> None:
        queue, self._queue = self._queue, []
        if not queue or self._machine is None:
            return
        entries = [Entry(self._index + 1 + offset, data) for offset, (data, _) in enumerate(queue)]
        try:
            results = self._machine.apply(entries)
        except Exception as error:
            self._queue = queue
            self.fail(error)
            return
        self._index = entries[-1].index
        for (_, future), result in zip(queue, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
