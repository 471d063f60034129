"""The leader's care for who is a manager: wanted roles (the store) brought together with the Raft group (consensus).

``decide`` says what is to be done, ``RoleManager`` does it one step at a time and looks again. A promotion is
finished by the new manager itself, which asks to be taken in (``manager.raft_membership``); a demotion and the removal
of a node are finished here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from manager.consensus.port import Consensus, ConsensusError, Member, MembershipError, NodeID, NoQuorumError
from manager.model.nodes import copy_node
from manager.store import NODES, Change, Store, StoreError, Working
from pki.node_certificate import utc_now
from proto.objects_pb2 import Node
from proto.specs_pb2 import NodeRole

log = structlog.get_logger(__name__)

_MANAGER = NodeRole.NODE_ROLE_MANAGER

ROLE_RECONCILE_PERIOD_S = 5.0
"""Between two looks when nothing changed (features A3.13)."""


@dataclass(frozen=True, slots=True)
class RemoveMember:
    """Take the node out of the Raft group: it was demoted or removed."""

    node_id: NodeID


@dataclass(frozen=True, slots=True)
class SetRole:
    """Record the role a node has in fact."""

    node_id: NodeID
    role: NodeRole.ValueType
    raft_addr: str = ""


RoleAction = RemoveMember | SetRole


def decide(nodes: Iterable[Node], members: Sequence[Member], leader_id: NodeID) -> list[RoleAction]:
    """What brings observed roles and Raft membership in line with the wanted roles.

    Args:
        nodes: those of members and of who has a manager's role, at least; the others make no difference.
        members: the Raft configuration in force, learners included.
        leader_id: this member; its own removal comes last, since it ends its leadership.

    Returns:
        Actions in order; empty once everything agrees. A node that wants to be a manager and is no member
        yet yields none: it has to come by itself.
    """
    by_id = {node.id: node for node in nodes}
    member_ids = {member.node_id for member in members}
    actions: list[RoleAction] = []
    last: list[RoleAction] = []
    for member in members:
        node = by_id.get(member.node_id)
        if node is None or node.spec.role != _MANAGER:
            (last if member.node_id == leader_id else actions).append(RemoveMember(member.node_id))
        elif not member.learner and (node.role != _MANAGER or node.raft_addr != member.address):
            actions.append(SetRole(member.node_id, _MANAGER, member.address))
    actions += [
        SetRole(NodeID(node.id), NodeRole.NODE_ROLE_WORKER)
        for node in by_id.values()
        if node.id not in member_ids and node.role == _MANAGER
    ]
    return actions + last


class RoleManager:
    """Runs while this manager leads."""

    def __init__(self, store: Store, consensus: Consensus, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._store = store
        self._consensus = consensus
        self._clock = clock
        self._wake = asyncio.Event()
        self._managers: set[str] = set()
        """IDs of nodes that have a manager's role; what else concerns this is a member."""

    async def run(self) -> None:
        """Reconcile on every change of a node, and every few seconds; ends by cancellation."""
        forget = self._store.on_change(self._on_change)
        self._managers = {node.id for node in self._store.view.nodes if node.role == NodeRole.NODE_ROLE_MANAGER}
        before: list[RoleAction] = []
        try:
            while True:
                self._wake.clear()
                actions = self._due()
                for action in actions:
                    await self._do(action)
                # A member that went wakes nobody, and its node's role is changed next: a demoted host waits for it.
                if actions and actions != before:
                    before = actions
                    continue
                before = actions
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ROLE_RECONCILE_PERIOD_S):
                        await self._wake.wait()
        finally:
            forget()

    def _due(self) -> list[RoleAction]:
        members = self._consensus.members
        node_ids = self._managers.union(member.node_id for member in members)
        nodes = [node for node_id in sorted(node_ids) if (node := self._store.view.nodes.get(node_id)) is not None]
        return decide(nodes, members, self._consensus.node_id)

    def _on_change(self, changes: Sequence[Change]) -> None:
        """Look at the node that changed: a thousand workers that come up concern nobody here."""
        for change in changes:
            if change.kind is not NODES or not self._concerns(change):
                continue
            self._managers.discard(change.id)
            if isinstance(change.new, Node) and change.new.role == _MANAGER:
                self._managers.add(change.id)
            self._wake.set()

    def _concerns(self, change: Change) -> bool:
        """Whether the node is, or is to be, a manager, or a member."""
        return any(
            isinstance(node, Node) and (node.role == _MANAGER or node.spec.role == _MANAGER)
            for node in (change.old, change.new)
        ) or any(member.node_id == change.id for member in self._consensus.members)

    async def _do(self, action: RoleAction) -> None:
        if action not in self._due():
            return  # the ones before it took their time
        try:
            match action:
                case RemoveMember(node_id):
                    await self._consensus.remove_member(node_id)
                    log.info("member.removed", node_id=node_id)
                case SetRole():
                    await self._store.update(self._role_change(action))
                    log.info("node.role_changed", node_id=action.node_id, role=NodeRole.Name(action.role))
        except (MembershipError, NoQuorumError) as error:
            log.warning("role.change_refused", action=repr(action), error=str(error))
        except (ConsensusError, StoreError) as error:
            log.info("role.change_deferred", action=repr(action), error=str(error))

    def _role_change(self, action: SetRole) -> Callable[[Working], None]:
        change = _role_change(action, self._clock())

        def if_due(working: Working) -> None:
            if action in self._due():  # the node may have been promoted again and have come by now: Join has said all
                change(working)

        return if_due


def _role_change(action: SetRole, now: datetime) -> Callable[[Working], None]:
    def change(working: Working) -> None:
        old = working.nodes.get(action.node_id)
        if old is None:
            return
        node = copy_node(old)
        node.role = action.role
        node.raft_addr = action.raft_addr
        if action.role != _MANAGER:
            node.grpc_addr = ""
            node.manager_certificates_void_before.FromDatetime(now)
        working.update(node)

    return change
