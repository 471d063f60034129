"""One agent's session as the dispatcher keeps it: what is still to be told, and how it ended. No I/O.

Everything in it is level-triggered: a mark says what to look at again, the streams look when they can write
(assignments when it is their turn, ``rounds``). Several changes between two writes become one message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc

from base.connections import Peer
from manager.dispatcher.assignments import Key
from manager.dispatcher.members import Entry
from manager.dispatcher.reports import PendingReport
from proto.ca_pb2 import ManagerAddress
from proto.dispatcher_pb2 import SessionMessage, SessionRequest
from proto.objects_pb2 import Node

Facts = tuple[Sequence[ManagerAddress], Node | None, bytes]
"""What an agent is told: the managers, the leader first; its node's object; the cluster's roots."""


@dataclass(frozen=True, slots=True)
class End:
    """Why a session is over.

    Attributes:
        code: what the agent's streams are answered with; OK when the agent ended it itself.
        redirect: the answer names the leader.
    """

    code: grpc.StatusCode
    reason: str
    redirect: bool = False


class AgentSession:
    """Marks and messages of one session."""

    def __init__(
        self,
        session_id: str,
        node_id: str,
        *,
        boot_nonce: str,
        addr: str,
        period_s: float,
        peer: Peer | None = None,
    ) -> None:
        """
        Args:
            period_s: heartbeat period told to the agent.
            peer: where its connection came from; None when not over TCP.
        """
        self.id, self.node_id, self.peer = session_id, node_id, peer
        self.boot_nonce, self.addr, self.period_s = boot_nonce, addr, period_s
        self.end: End | None = None
        self.ended = asyncio.Event()
        self.message_due = asyncio.Event()
        self.assignments_due = asyncio.Event()
        self.assignments_stream = 0
        """Number of the Assignments call that serves; an earlier one gives way."""
        self.alive = asyncio.Event()
        """Set at each sign of life; who wants to know clears it first."""
        self.report: PendingReport | None = None
        """What its agent reported and was not told yet to be in the log; the only one there is."""
        self.reports = 0
        """Number of the last report that was taken up."""
        self.description: SessionRequest | None = None
        """The last message with a description or an address that is not stored yet."""
        self._tasks: set[str] = set()
        self._keys: set[Key] = set()
        self._entries: set[Entry] = set()
        self._told_managers: list[ManagerAddress] = []
        self._told_node: Node | None = None
        self._told_root_ca = b""
        self._told_period_s = 0.0
        self._told_reports = 0
        self._probe = False
        self._may_have_changed = True

    def finish(self, end: End) -> None:
        """The session is over; the first reason stays."""
        if self.end is None:
            self.end = end
            self.ended.set()
            self.message_due.set()
            self.assignments_due.set()
            self.alive.set()

    def probe(self) -> None:
        """Have the agent prove that it is there: a message with a period is answered by a heartbeat at once."""
        self.alive.clear()
        self._probe = True
        self.mark_message()

    def describe(self, request: SessionRequest) -> None:
        """Its agent said something of the node, which is to be stored, with what was said before and is not stored yet."""
        if self.description is not None and not request.HasField("description"):
            request.description.CopyFrom(self.description.description)
        self.description = request

    def acknowledge(self) -> None:
        """The report is in the log: tell the agent."""
        self.report = None
        self.message_due.set()

    def mark_message(self) -> None:
        """Look again at what the agent is told of managers, its node, the roots and its period."""
        self._may_have_changed = True
        self.message_due.set()

    def mark_task(self, task_id: str) -> None:
        """Look at this task again."""
        self._tasks.add(task_id)

    def mark_needed(self, key: Key) -> None:
        """Look at this object, which a task of the node needs, again."""
        self._keys.add(key)

    def mark_member(self, entry: Entry) -> None:
        """Look at who is on a network of the node again: at this entry."""
        self._entries.add(entry)

    def take_marks(self) -> tuple[set[str], set[Key], set[Entry]]:
        """The marks since the last call."""
        tasks, self._tasks = self._tasks, set()
        keys, self._keys = self._keys, set()
        entries, self._entries = self._entries, set()
        self.assignments_due.clear()
        return tasks, keys, entries

    def next_message(self, facts: Callable[[], Facts]) -> SessionMessage | None:
        """What the agent has not been told yet; None when it knows everything.

        Args:
            facts: as they are now; asked only when they may have changed.
        """
        self.message_due.clear()
        message = SessionMessage()
        if self._may_have_changed:
            self._may_have_changed = False
            self._tell(message, facts())
        if self.report is None and self.reports != self._told_reports:
            message.reported = self._told_reports = self.reports
        return message if message.ByteSize() else None

    def _tell(self, message: SessionMessage, facts: Facts) -> None:
        managers, node, root_ca_pem = facts
        if self._told_period_s == 0.0:
            message.session_id = self.id
        if self._probe or self.period_s != self._told_period_s:
            message.heartbeat_period_ns = round(self.period_s * 1e9)
            self._told_period_s, self._probe = self.period_s, False
        if list(managers) != self._told_managers:
            self._told_managers = list(managers)
            message.managers.extend(managers)
        if node is not None and not _same_node(node, self._told_node):
            message.node.CopyFrom(node)
            self._told_node = node
        if root_ca_pem != self._told_root_ca:
            message.root_ca_pem = root_ca_pem
            self._told_root_ca = root_ca_pem


def _same_node(node: Node, told: Node | None) -> bool:
    """Whether a change is none for the node itself: what it said about itself is not told back."""
    return (
        told is not None
        and node.spec == told.spec
        and node.role == told.role
        and node.certificate_serial == told.certificate_serial
        and node.raft_addr == told.raft_addr
        and node.grpc_addr == told.grpc_addr
        and node.status.state == told.status.state
    )
