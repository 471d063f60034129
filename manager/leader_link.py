"""A manager's way to the leader: one channel, made anew when somebody else leads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc
import grpc.aio

from base.tasks import OwnedTasks
from base.unix_rpc import rpc_error
from manager.consensus.port import Consensus, NodeID
from manager.store import Store
from pki.grpc_credentials import answer_of
from proto.ca_pb2 import ManagerAddress

T = TypeVar("T")

_LEADER_CHANGED = "the leader changed while the call was under way"
RETIRE_GRACE_S = 1.0
"""For the answers of an old leader that has handed over in good order: one that Raft hears."""

RETIRE_CHECK_S = 0.02


async def leader_answer(call: Callable[[], Awaitable[T]]) -> T:
    """What a call on ``LeaderLink.channel`` answers, also when the channel is closed because somebody else leads.

    Raises:
        AioRpcError: UNAVAILABLE when the channel was closed before the call, or under it: it may have been carried out.
    """
    try:
        return await answer_of(call(), if_closed=_LEADER_CHANGED)
    except grpc.aio.UsageError as error:
        raise rpc_error(grpc.StatusCode.UNAVAILABLE, _LEADER_CHANGED) from error


class LeaderLink:
    """Knows where the leader's gRPC server is and holds a channel to it.

    Args:
        connect: makes a channel to ``host:port``; closed here.
        known: managers told at the start, for a member whose store is still empty.
    """

    def __init__(
        self,
        store: Store,
        consensus: Consensus,
        connect: Callable[[str], grpc.aio.Channel],
        known: Sequence[ManagerAddress],
    ) -> None:
        self._store, self._consensus, self._connect = store, consensus, connect
        self._known = {manager.node_id: manager for manager in known}
        self._channel: grpc.aio.Channel | None = None
        self._channel_to: tuple[NodeID | None, str] = (None, "")
        self._closing = OwnedTasks()

    def managers(self) -> list[ManagerAddress]:
        """Every manager, the leader first."""
        leader_id = self._consensus.leader.leader_id
        found = [
            ManagerAddress(node_id=member.node_id, grpc_addr=self._grpc_addr(member.node_id), raft_addr=member.address)
            for member in self._consensus.members
            if not member.learner and self._grpc_addr(member.node_id)
        ]
        return sorted(found, key=lambda manager: (manager.node_id != leader_id, manager.node_id))

    def _grpc_addr(self, node_id: str) -> str:
        node = self._store.view.nodes.get(node_id)
        known = self._known.get(node_id)
        return (node.grpc_addr if node is not None else "") or (known.grpc_addr if known is not None else "")

    def leader_addr(self) -> str:
        """``host:port`` of the leader's gRPC server, "" when there is none or it is not known."""
        leader_id = self._consensus.leader.leader_id
        return self._grpc_addr(leader_id) if leader_id is not None else ""

    def channel(self) -> grpc.aio.Channel | None:
        """The channel to the leader; None when there is none, or when it is this manager itself."""
        leader_id, target = self._consensus.leader.leader_id, self.leader_addr()
        if not target or leader_id == self._consensus.node_id:
            return None
        if self._channel is None or self._channel_to != (leader_id, target):
            self._retire()
            self._channel, self._channel_to = self._connect(target), (leader_id, target)
        return self._channel

    def leader_changed(self) -> None:
        """Somebody else leads: calls that wait for the old leader, who may be cut off, end soon and not at their time-out."""
        if self._channel is not None and self._channel_to != (self._consensus.leader.leader_id, self.leader_addr()):
            self._retire()

    def _retire(self) -> None:
        old, self._channel = self._channel, None
        if old is not None:
            self._closing.spawn(self._close(old, self._channel_to[0]), name="leader_link.retire")

    async def _close(self, old: grpc.aio.Channel, leader_id: NodeID | None) -> None:
        """Wait for answers while the old leader lives: who asked one that lost its power need not."""
        for _ in range(round(RETIRE_GRACE_S / RETIRE_CHECK_S)):
            if leader_id not in self._consensus.reachable:
                break
            await asyncio.sleep(RETIRE_CHECK_S)
        await old.close()

    async def close(self) -> None:
        self._retire()
        await self._closing.wait()
