"""The receive guard: what an AppendEntries message means for this log, decided before the library sees it.

pysyncobj cuts its log behind ``prevLogIdx`` even where nothing conflicts, answers with what it has instead of
what it verified, and commits a tail it did not verify. The guard turns every message into one of the few that
the library handles correctly. Pure: reads the log, changes nothing.

Reference: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm", section 5.3, figure 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from manager.consensus.wire import Append


class Log(Protocol):
    """What the guard reads; ``term_at`` is None outside first_index..last_index."""

    @property
    def first_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    def term_at(self, index: int) -> int | None: ...


class LogDivergedError(Exception):
    """A leader contradicts an entry that is committed here: a broken invariant, the member must end."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The log does not reach the message's start, or disagrees there.

    Attributes:
        cut_from: first conflicting index, to be cut; None if the log only ends too early.
        next_index: where the leader should go on.
    """

    cut_from: int | None
    next_index: int


@dataclass(frozen=True, slots=True)
class Known:
    """Everything in it is here already; ``verified`` is the last index the message proves equal."""

    verified: int
    commit_index: int


@dataclass(frozen=True, slots=True)
class Extend:
    """Entries are new, from ``prev_index`` + 1 on; what this log holds there conflicts and goes.

    Attributes:
        skip: how many of the message's entries are here already.
        commit_index: the leader's, capped at the last entry that the message proves equal.
    """

    prev_index: int
    prev_term: int
    skip: int
    verified: int
    commit_index: int


def check_append(log: Log, committed: int, message: Append) -> Missing | Known | Extend:
    """Decide what to do with ``message``, whose term is not below ours.

    Args:
        committed: this member's commit index.

    Raises:
        LogDivergedError
    """
    position, skip = message.prev_index, 0
    if position < log.first_index:
        # Everything up to the log's start is in a snapshot, hence committed, hence equal.
        skip = min(log.first_index - position, len(message.entries))
        if position + skip < log.first_index:
            return Known(position + skip, min(message.commit_index, position + skip))
        position = log.first_index
    elif position > log.last_index:
        return Missing(None, log.last_index + 1)
    elif log.term_at(position) != message.prev_term:
        return _conflict(log, committed, position)

    while skip < len(message.entries):
        term = log.term_at(position + 1)
        if term is None or term != message.entries[skip][0]:
            break
        position, skip = position + 1, skip + 1
    verified = message.prev_index + len(message.entries)
    commit_index = min(message.commit_index, verified)
    if skip == len(message.entries):
        return Known(verified, commit_index)
    if position < committed:
        raise LogDivergedError(f"leader of term {message.term} replaces entry {position + 1}, committed to {committed}")
    prev_term = log.term_at(position)
    assert prev_term is not None
    return Extend(position, prev_term, skip, verified, commit_index)


def _conflict(log: Log, committed: int, position: int) -> Missing:
    """The leader's term at ``position`` is another: back to where that term began here, in one step."""
    if position <= committed:
        raise LogDivergedError(f"leader disagrees at {position}, committed to {committed}")
    term, hint = log.term_at(position), position
    while hint - 1 > max(committed, log.first_index) and log.term_at(hint - 1) == term:
        hint -= 1
    return Missing(position, hint)
