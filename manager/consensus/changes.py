"""Membership changes of a leader: one at a time, learners first, never at the price of the quorum.

Level-triggered: ``drive`` runs after every tick and does the next thing that is due, so a learner whose
promotion its old leader did not live to see is promoted by the next.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import structlog

from manager.consensus.configuration import Configuration, check_promotion, check_removal
from manager.consensus.core import RaftCore
from manager.consensus.outputs import MEMBERSHIP, Done
from manager.consensus.port import ConsensusError, Member, MembershipError, NodeID, NotLeaderError

log = structlog.get_logger(__name__)

CAUGHT_UP_ENTRIES = 64
"""A learner that lacks no more than this, and has stored the configuration in force, is given its vote."""


@dataclass(slots=True)
class _Add:
    token: int
    member: Member

    @property
    def node_id(self) -> NodeID:
        return self.member.node_id


@dataclass(slots=True)
class _Remove:
    token: int
    node_id: NodeID
    proposed: bool = False


class MembershipChanges:
    """The requests of this member's owner; drives ``core``."""

    def __init__(self, core: RaftCore) -> None:
        self._core = core
        self._requests: deque[_Add | _Remove] = deque()
        self._addresses: dict[NodeID, str] = {}
        core.after_tick.append(self.drive)

    def add(self, token: int, member: Member) -> None:
        """Make ``member`` a voter, by way of a learner; ends in ``Done``."""
        self._requests.append(_Add(token, member))

    def remove(self, token: int, node_id: NodeID) -> None:
        """Take a member out; ends in ``Done``. Who waits for it to be added is told that it will not be."""
        for request in list(self._requests):
            if isinstance(request, _Add) and request.node_id == node_id:
                self._finish(request, MembershipError(f"{node_id} is being removed"))
        self._requests.append(_Remove(token, node_id))

    def forget(self, token: int) -> None:
        """The owner waits no longer. What is in the log already stays."""
        self._requests = deque(request for request in self._requests if request.token != token)

    def note_address(self, node_id: NodeID, address: str) -> None:
        """A member was seen at ``address``: a leader writes it into the configuration when it gets round to it."""
        self._addresses[node_id] = address

    def drive(self) -> None:
        core = self._core
        if not core.is_leading():
            self._fail(NotLeaderError(core.leader_id()))
            return
        # The no-op of this term and the last configuration must be committed first: pysyncobj finding 11 and
        # the correction to single-server changes of 2015 (raft-dev, "bug in single-server membership changes").
        if not core.is_ready() or core.configurations.current_index > core.commit_index() or core.transfer_to:
            return
        configuration = core.configurations.current
        seen: set[NodeID] = set()
        for request in list(self._requests):
            if request.node_id in seen:
                continue  # in order: an addition and a removal at once would undo each other without end
            seen.add(request.node_id)
            change = self._next_step(request, configuration)
            if change is not None:
                self._propose(change)
                return
        if not self._promote(configuration):
            self._write_addresses(configuration)

    def _next_step(self, request: _Add | _Remove, configuration: Configuration) -> Configuration | None:
        try:
            if isinstance(request, _Remove):
                return self._removal(request, configuration)
            return self._addition(request, configuration)
        except ConsensusError as error:
            self._finish(request, error)
            return None

    def _removal(self, request: _Remove, configuration: Configuration) -> Configuration | None:
        if request.proposed and configuration.find(request.node_id) is None:
            self._finish(request, None)
            return None
        if request.node_id == self._core.node_id:
            raise MembershipError("a leader cannot remove itself: it has to transfer leadership first")
        check_removal(configuration, request.node_id, self._core.reachable())
        request.proposed = True
        return configuration.without(request.node_id)

    def _addition(self, request: _Add, configuration: Configuration) -> Configuration | None:
        known = configuration.find(request.node_id)
        if known is None:
            return configuration.with_member(replace(request.member, learner=True))
        if known.address != request.member.address:
            return configuration.with_member(replace(known, address=request.member.address))
        if not known.learner:
            self._finish(request, None)
        return None

    def _promote(self, configuration: Configuration) -> bool:
        core = self._core
        if not configuration.learners:
            return False
        for node_id in sorted(configuration.learners & core.reachable()):
            # It must have stored the configuration it is in: a voter that restarts has to know its group.
            needed = max(2, core.configurations.current_index, core.journal.last_index - CAUGHT_UP_ENTRIES)
            if core.match_index(node_id) < needed:
                continue
            try:
                check_promotion(configuration, node_id, core.reachable())
            except MembershipError:
                continue  # tried again after the next tick
            learner = configuration.find(node_id)
            assert learner is not None
            self._propose(configuration.with_member(replace(learner, learner=False)))
            return True
        return False

    def _write_addresses(self, configuration: Configuration) -> None:
        for node_id, address in list(self._addresses.items()):
            del self._addresses[node_id]
            member = configuration.find(node_id)
            if member is not None and member.address != address:
                self._propose(configuration.with_member(replace(member, address=address)))
                return

    def _propose(self, configuration: Configuration) -> None:
        index = self._core.append(MEMBERSHIP + configuration.encode())
        members = [f"{m.node_id}{' (learner)' if m.learner else ''}" for m in configuration.members]
        log.info("membership.proposed", node_id=self._core.node_id, index=index, members=members)

    def _finish(self, request: _Add | _Remove, error: ConsensusError | None) -> None:
        self._requests.remove(request)
        self._core.outputs.append(Done(request.token, error))

    def _fail(self, error: ConsensusError) -> None:
        while self._requests:
            self._finish(self._requests[0], error)
