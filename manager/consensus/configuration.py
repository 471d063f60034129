"""Who belongs to the Raft group: the configuration, its history in the log, and which changes are safe.

A configuration entry carries the *whole* configuration, not a delta. It is in force on a member from the
moment the entry is in that member's log (Raft, section 6), and when a conflicting tail is cut the one
before it is in force again: both follow from "the last configuration in the log", with nothing to undo.
"""

from __future__ import annotations

import functools
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace

import msgspec

from manager.consensus.port import CorruptStateError, Member, MembershipError, NodeID


class _Stored(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    group_id: str
    members: list[tuple[NodeID, str, bool]]
    ancestors: tuple[str, ...] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Stored)


@dataclass(frozen=True)
class Configuration:
    """The members of the group.

    Attributes:
        group_id: names the group; made when it is founded and anew by force-new-cluster, so that members
            of the group it was forced out of can never take part in it.
        members: by node ID.
        ancestors: the groups that this one was forced from, oldest first: by these a member of one of them finds out.
    """

    group_id: str
    members: tuple[Member, ...]
    ancestors: tuple[str, ...] = ()

    @functools.cached_property
    def voters(self) -> frozenset[NodeID]:
        return frozenset(member.node_id for member in self.members if not member.learner)

    @functools.cached_property
    def learners(self) -> frozenset[NodeID]:
        return frozenset(member.node_id for member in self.members if member.learner)

    def find(self, node_id: NodeID) -> Member | None:
        return next((member for member in self.members if member.node_id == node_id), None)

    def with_member(self, member: Member) -> Configuration:
        """Add ``member`` or replace the one of its ID."""
        others = [other for other in self.members if other.node_id != member.node_id]
        return replace(self, members=tuple(sorted([*others, member], key=lambda m: m.node_id)))

    def without(self, node_id: NodeID) -> Configuration:
        return replace(self, members=tuple(m for m in self.members if m.node_id != node_id))

    def encode(self) -> bytes:
        members = [(m.node_id, m.address, m.learner) for m in self.members]
        return _encoder.encode(_Stored(self.group_id, members, self.ancestors))

    @classmethod
    def decode(cls, data: bytes) -> Configuration:
        """Raises CorruptStateError: not a configuration."""
        try:
            stored = _decoder.decode(data)
        except ValueError as error:
            raise CorruptStateError(f"configuration entry: {error}") from None
        members = [Member(node_id, address, learner) for node_id, address, learner in stored.members]
        return cls(stored.group_id, tuple(sorted(members, key=lambda m: m.node_id)), stored.ancestors)


EMPTY = Configuration("", ())
"""Of a member that was not admitted to a group yet: it hears nobody."""


def new_group(members: Iterable[Member], *, ancestors: tuple[str, ...] = ()) -> Configuration:
    return Configuration(os.urandom(8).hex(), tuple(sorted(members, key=lambda m: m.node_id)), ancestors)


def majority(voters: int) -> int:
    return voters // 2 + 1


class ConfigurationLog:
    """The configurations in the log by index; the last one is in force.

    Unless the log is history: a member that was admitted with an empty log is sent everything from the beginning. In
    there are configurations of long ago, of groups that a new one was forced from, and some that name this very node,
    from before it was demoted: acting on them it would break with its leader, or elect itself by voters of old. So
    until its log is as far as the group's was when it was admitted, none is in force.

    Attributes:
        end: index of the last entry of the log.
    """

    def __init__(self, base: Configuration = EMPTY) -> None:
        self._base = base
        self._indexes: list[int] = []
        self._configurations: list[Configuration] = []
        self._admitted, self._admitted_index = EMPTY, 0
        self.end = 0

    def admit(self, group_id: str, index: int) -> None:
        """Belong to the group, and let nothing up to ``index`` be in force before all of it is there."""
        self._admitted, self._admitted_index = Configuration(group_id, ()), index

    @property
    def is_history(self) -> bool:
        """The log does not reach as far as the group's did at the admission."""
        return self.end < self._admitted_index

    def was_member(self, node_id: NodeID, committed: int) -> bool:
        """Whether the configuration at ``committed`` names the node, and is no history."""
        return committed >= self._admitted_index and self.at(committed).find(node_id) is not None

    @property
    def current(self) -> Configuration:
        if self.end < self._admitted_index:
            return self._admitted
        return self._configurations[-1] if self._configurations else self._base

    @property
    def current_index(self) -> int:
        """Index of the entry in force; 0 if it came with a snapshot."""
        return self._indexes[-1] if self._indexes else 0

    def at(self, index: int) -> Configuration:
        """The configuration that was in force after the entry at ``index``."""
        position = bisect_right(self._indexes, index)
        return self._configurations[position - 1] if position else self._base

    def add(self, index: int, configuration: Configuration) -> None:
        self.cut(index)
        self._indexes.append(index)
        self._configurations.append(configuration)

    def cut(self, index: int) -> None:
        """Forget configurations at ``index`` and after."""
        position = bisect_left(self._indexes, index)
        del self._indexes[position:], self._configurations[position:]

    def compact(self, index: int) -> None:
        """Forget those before ``index``, keeping what was in force there."""
        self._base = self.at(index)
        position = bisect_right(self._indexes, index)
        del self._indexes[:position], self._configurations[:position]

    def reset(self, base: Configuration, index: int) -> None:
        """Begin behind a snapshot that ends at ``index``."""
        self._base, self.end = base, index
        self._indexes.clear()
        self._configurations.clear()


def check_removal(configuration: Configuration, node_id: NodeID, reachable: frozenset[NodeID]) -> None:
    """Refuse a removal that leaves a group without a reachable majority.

    Raises:
        MembershipError: unknown member, last voter, or the quorum would be lost.

    Reference: swarmkit manager/state/raft, ``CanRemoveMember``.
    """
    member = configuration.find(node_id)
    if member is None:
        raise MembershipError(f"{node_id} is not a member of this group")
    if member.learner:
        return
    rest = configuration.voters - {node_id}
    if not rest:
        raise MembershipError(f"{node_id} is the last manager: removing it would lose the quorum")
    alive = len(rest & reachable)
    if alive < majority(len(rest)):
        raise MembershipError(
            f"removing {node_id} would lose the quorum: {alive} of {len(rest)} remaining managers reachable, "
            f"{majority(len(rest))} needed"
        )


def check_promotion(configuration: Configuration, node_id: NodeID, reachable: frozenset[NodeID]) -> None:
    """Refuse to give a vote to a learner when the larger group has no reachable majority.

    Raises:
        MembershipError
    """
    voters = configuration.voters | {node_id}
    alive = len(voters & reachable)
    if alive < majority(len(voters)):
        raise MembershipError(f"promoting {node_id} would lose the quorum: {alive} of {len(voters)} managers reachable")
