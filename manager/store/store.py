"""The replicated store of one manager: reads of its state, transactions through the log, watches."""

from __future__ import annotations

import asyncio  # noqa: TID251 - this is the proposer's side, which waits for the log; nothing here applies
import os  # noqa: TID251 - DEBUG_ENVIRONMENT
import secrets  # noqa: TID251 - transaction IDs are made by the proposer
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from manager.consensus.port import ENTRY_SIZE_BYTES_MAX, Consensus, Entry, ProposalUnknownError
from manager.store.errors import SequenceConflictError, TransactionTooLargeError
from manager.store.kinds import KINDS, AnyKind, Kinds
from manager.store.machine import Machine
from manager.store.mutation import MutationDetector
from manager.store.views import View, Working
from manager.store.watch import Change, Watch
from proto.store_pb2 import Transaction

TRANSACTION_SIZE_BYTES_MAX = 1_500_000
"""Largest entry of several objects (A3.08); one object alone may take ``ENTRY_SIZE_BYTES_MAX``."""

TRANSACTION_OBJECTS_MAX = 200
"""Most objects of one entry (A3.08)."""

DEBUG_ENVIRONMENT = "SWARM_STORE_DEBUG"

PROPOSALS_MAX = 3
"""How often an entry is proposed while its outcome stays unknown and this member leads."""

R = TypeVar("R")


class Store:
    """Objects replicated by a log; the log's state machine (``consensus.port.StateMachine``).

    Lives on the loop that owns the consensus member. Reads are of this member's state, which on a follower (and on
    a deposed leader) may be behind: a read that must see every acknowledged write goes through the consensus'
    ``read_barrier`` first.
    """

    def __init__(
        self, consensus: Consensus, *, clock: Callable[[], float], debug: bool | None = None, kinds: Kinds = KINDS
    ) -> None:
        """
        Args:
            consensus: the log; the caller starts it with this store as its machine.
            clock: seconds since the epoch; read when proposing, never when applying.
            kinds: what it holds.
            debug: detect stored messages changed in place (``debug``); by default when ``SWARM_STORE_DEBUG`` is 1.
        """
        if debug is None:
            debug = os.environ.get(DEBUG_ENVIRONMENT, "") == "1"
        self.debug = debug
        """Whether what is slow and finds bugs is done: here, and by who keeps what is derived from the store."""
        self._consensus = consensus
        self._clock = clock
        self._detector = MutationDetector() if debug else None
        self._machine = Machine(self._detector, kinds=kinds)
        self._watches: set[Watch] = set()
        self._callbacks: list[Callable[[Sequence[Change]], None]] = []

    @property
    def view(self) -> View:
        """The committed state as this member knows it."""
        return self._machine.view

    @property
    def index(self) -> int:
        """Log index up to which entries have been applied here."""
        return self._machine.index

    # ------------------------------------------------------------------ writing

    def begin(self) -> Working:
        """A new transaction over the state as it is. Build it without awaiting: reads follow the committed state."""
        return self._machine.begin()

    async def commit(self, working: Working, *, timeout_s: float = 20.0, split: bool = False) -> int:
        """Put a transaction through the log.

        Args:
            timeout_s: for the whole of it.
            split: allow several entries, cut where ``working.boundary()`` was called. They are committed in order;
                when one is refused, those before it stand and those after it are not proposed.

        Returns:
            The index of the (last) entry; the state of this member includes it. An empty transaction is no entry.

        Raises:
            SequenceConflictError, ObjectExistsError, NameConflictError, ObjectNotFoundError, ObjectInUseError:
                somebody else's entry came first; nothing (of this part) was changed.
            TransactionTooLargeError: nothing was proposed.
            NotLeaderError, ProposalUnknownError: see ``consensus.port``.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        index = self._machine.index
        for part in self._parts(working, split=split):
            index = await self._propose(part, deadline)
        return index

    async def update(self, change: Callable[[Working], R], *, attempts: int = 3, timeout_s: float = 20.0) -> R:
        """Read, change and commit; again from the start when another entry got in between.

        Args:
            change: writes into the transaction, without awaiting; may be called several times. What it raises ends
                the update, with nothing committed.

        Returns:
            What ``change`` returned the last time.

        Raises:
            As ``commit``; SequenceConflictError after ``attempts`` conflicts.
        """
        while True:
            attempts -= 1
            working = self.begin()
            result = change(working)
            try:
                await self.commit(working, timeout_s=timeout_s)
            except SequenceConflictError:
                if attempts <= 0:
                    raise
            else:
                return result

    # ------------------------------------------------------------------ watching

    def watch(self, *kinds: AnyKind) -> Watch:
        """Changes of objects of these kinds (none means all) from now on."""
        watch = Watch(frozenset(kinds), self._watches.discard)
        self._watches.add(watch)
        return watch

    def on_change(self, callback: Callable[[Sequence[Change]], None]) -> Callable[[], None]:
        """Call ``callback`` after every batch of entries applied here; it must be quick and must not write.

        Returns:
            A function that ends this.
        """
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def check_unmutated(self) -> None:
        """In debug mode, raise MutatedObjectError when a stored message was changed in place."""
        if self._detector is not None:
            self._detector.check_all()

    # ------------------------------------------------------------------ StateMachine

    def apply(self, entries: Sequence[Entry]) -> Sequence[object]:
        results: list[object] = []
        changes: list[Change] = []
        for entry in entries:
            result, changed = self._machine.apply(entry.index, entry.data)
            results.append(result)
            changes.extend(changed)
        self._tell(changes)
        return results

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        return self._machine.snapshot()

    def load(self, chunks: Iterable[bytes], index: int) -> Callable[[], None]:
        install = self._machine.load(chunks, index)
        return lambda: self._tell(install())

    # ------------------------------------------------------------------ internals

    def _tell(self, changes: Sequence[Change]) -> None:
        if not changes:
            return
        for callback in tuple(self._callbacks):
            callback(changes)
        for watch in tuple(self._watches):
            watch.offer(changes)

    async def _propose(self, transaction: bytes, deadline: float) -> int:
        loop = asyncio.get_running_loop()
        for attempt in range(1, PROPOSALS_MAX + 1):
            try:
                # Should the first proposal be applied as well, the entry's ID makes the second one do nothing.
                result = await self._consensus.propose(transaction, timeout_s=max(deadline - loop.time(), 0.001))
            except ProposalUnknownError:
                if attempt == PROPOSALS_MAX or not self._consensus.leader.is_leader or loop.time() >= deadline:
                    raise
            else:
                assert isinstance(result, int)
                return result
        raise AssertionError("unreachable")

    def _parts(self, working: Working, *, split: bool) -> list[bytes]:
        """The entries of a transaction, serialised; checks sizes before anything is proposed."""
        groups = working.groups() if split else [working.actions]
        parts: list[list[bytes]] = []
        size_bytes = 0
        for group in groups:
            group_size_bytes = sum(map(len, group))
            if not split or not parts or not _fits(len(parts[-1]) + len(group), size_bytes + group_size_bytes):
                parts.append([])
                size_bytes = 0
            parts[-1].extend(group)
            size_bytes += group_size_bytes
        return [self._serialised(part) for part in parts if part]

    def _serialised(self, actions: list[bytes]) -> bytes:
        seconds, nanos = divmod(int(self._clock() * 1e9), 1_000_000_000)
        transaction = Transaction(
            id=secrets.token_hex(16), proposed_at=Timestamp(seconds=seconds, nanos=nanos), actions=actions
        )
        data = transaction.SerializeToString(deterministic=True)
        size_max = ENTRY_SIZE_BYTES_MAX if len(actions) == 1 else TRANSACTION_SIZE_BYTES_MAX
        if len(data) > size_max or len(actions) > TRANSACTION_OBJECTS_MAX:
            raise TransactionTooLargeError(size_bytes=len(data), objects=len(actions))
        return data


def _fits(objects: int, size_bytes: int) -> bool:
    # What stands around the actions in an entry is small beside the margin to 1.5 MiB.
    return objects <= TRANSACTION_OBJECTS_MAX and size_bytes <= TRANSACTION_SIZE_BYTES_MAX - 4096
