"""What the Raft core hands to whoever drives it (``raft.py`` on a thread, the simulation on virtual time).

Outputs are strictly ordered: a snapshot marker stands exactly behind the entries it covers, a restored
snapshot before the entries that follow it.
"""

from __future__ import annotations

from dataclasses import dataclass

from manager.consensus.configuration import Configuration
from manager.consensus.journal import LogEntry
from manager.consensus.port import ConsensusError

COMMAND_ID_SIZE_BYTES = 16
REGULAR, NO_OP, MEMBERSHIP = b"\x00", b"\x01", b"\x02"
"""First byte of a log entry: a command (its ID and data follow), a leader's first entry, a configuration."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Committed entries of every kind, in order. Report ``RaftCore.consumed`` when applied."""

    entries: list[LogEntry]


@dataclass(frozen=True, slots=True)
class Restore:
    """Replace the state by the snapshot of ``index`` in the store (already verified)."""

    index: int


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Take a view of the state now, write it, then call ``RaftCore.snapshot_written``."""

    index: int
    term: int
    configuration: Configuration


@dataclass(frozen=True, slots=True)
class Ready:
    """This member leads ``term`` and every entry of earlier terms stands before this in the outputs."""

    term: int


@dataclass(frozen=True, slots=True)
class Deposed:
    """This member leads no longer: the outcome of its proposals that were not applied yet is unknown."""

    term: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """The proposal was not appended."""

    command_id: bytes
    error: ConsensusError


@dataclass(frozen=True, slots=True)
class Done:
    """The read barrier or membership request of ``token`` ended; ``error`` is None if it succeeded."""

    token: int
    error: ConsensusError | None = None


Output = Apply | Restore | TakeSnapshot | Ready | Deposed | Rejected | Done
