"""Applying on the owner's side: entries to the state machine, each command at most once.

A proposer that does not learn the outcome may propose the same command again under the same ID, here or on
another member. The IDs of the last ``WINDOW_COMMANDS`` commands are therefore part of the replicated state:
every member remembers the same ones, and snapshots carry them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from manager.consensus.journal import LogEntry
from manager.consensus.outputs import COMMAND_ID_SIZE_BYTES
from manager.consensus.port import Entry, StateMachine
from manager.consensus.snapshots import SnapshotHead

WINDOW_COMMANDS = 4096
_DATA_START = 1 + COMMAND_ID_SIZE_BYTES
_REGULAR = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command: the result of its first application (None if that was before a restored snapshot)."""

    command_id: bytes
    index: int
    result: object


class Applier:
    """Owns the state machine's position. Called on the owner's loop only."""

    def __init__(self, machine: StateMachine) -> None:
        self._machine = machine
        self._window: OrderedDict[bytes, tuple[int, object]] = OrderedDict()
        self.applied_index = 1

    def apply(self, entries: Sequence[LogEntry]) -> list[Outcome]:
        """Apply a batch of log entries of any kind; one outcome a command, in order.

        Raises:
            Exception: what the state machine raised; the member must end.
        """
        fresh: list[Entry] = []
        order: list[tuple[bytes, int, int]] = []  # (command ID, index, position in fresh or -1)
        positions: dict[bytes, int] = {}
        for command, index, _ in entries:
            if command[0] != _REGULAR or index <= self.applied_index:
                continue  # of other kinds, or in a newer snapshot that was restored already
            command_id = command[1:_DATA_START]
            if command_id in self._window:
                order.append((command_id, index, -1))
            elif command_id in positions:
                order.append((command_id, index, positions[command_id]))
            else:
                positions[command_id] = len(fresh)
                order.append((command_id, index, len(fresh)))
                fresh.append(Entry(index, command[_DATA_START:]))
        results = self._machine.apply(fresh) if fresh else []
        if len(results) != len(fresh):
            raise AssertionError(f"state machine returned {len(results)} results for {len(fresh)} entries")
        outcomes: list[Outcome] = []
        for command_id, index, position in order:
            result = self._window[command_id][1] if position < 0 else results[position]
            if position >= 0:
                self._window.setdefault(command_id, (fresh[position].index, result))
            outcomes.append(Outcome(command_id, index, result))
        while len(self._window) > WINDOW_COMMANDS:
            self._window.popitem(last=False)
        if entries:
            self.applied_index = max(self.applied_index, entries[-1][1])
        return outcomes

    def snapshot(self) -> tuple[tuple[tuple[int, bytes], ...], Callable[[], Iterator[bytes]]]:
        """The remembered command IDs and a view of the state, both of right now."""
        ids = tuple((index, command_id) for command_id, (index, _) in self._window.items())
        return ids, self._machine.snapshot()

    def load(self, head: SnapshotHead, chunks: Iterable[bytes]) -> Callable[[], None]:
        """Read a snapshot, on any thread; the function returned puts it in the place of the state."""
        install = self._machine.load(chunks, head.index)

        def restore() -> None:
            install()
            self._window = OrderedDict((command_id, (index, None)) for index, command_id in head.command_ids)
            self.applied_index = head.index

        return restore
