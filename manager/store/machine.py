"""The deterministic half of the store: the state, and what a log entry does to it.

Nothing here reads a clock, a random number, the environment or a file: every member that applies the same entries
holds the same bytes, which a test compares. Times and IDs stand in the entry, made by its proposer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from manager.store import snapshot
from manager.store.errors import SnapshotError, StoreError
from manager.store.kinds import KINDS, AnyKind, Kinds
from manager.store.mutation import MutationDetector
from manager.store.objects import StoredObject
from manager.store.views import Committed, View, Working, empty_state
from manager.store.watch import Change
from proto.store_pb2 import SnapshotHeader, StoreAction, Transaction

TRANSACTION_IDS_KEPT = 4096
"""Transactions remembered so that an entry proposed twice (its outcome was unknown) changes the state once."""


class Machine:
    """The state of one member, moved by log entries alone.

    Attributes:
        view: the state.
        index: log index of the last entry applied.
    """

    def __init__(self, detector: MutationDetector | None = None, *, kinds: Kinds = KINDS) -> None:
        self._kinds = kinds
        self._state = empty_state(kinds)
        self._nothing = empty_state(kinds)
        self._recent: OrderedDict[str, int] = OrderedDict()
        self._detector = detector
        self.view = View(kinds, self._state)
        self.index = 0

    def begin(self) -> Working:
        return Working(self._kinds, self._state, self._nothing)

    def apply(self, index: int, data: bytes) -> tuple[int | StoreError, list[Change]]:
        """Apply one entry: all of it or nothing.

        Returns:
            The index at which it took effect (an earlier one when it was applied before) or why it was refused,
            and what it changed.

        Raises:
            google.protobuf.message.DecodeError: the entry is no transaction; a broken invariant.
        """
        transaction = Transaction.FromString(data)
        self.index = index
        applied_at = self._recent.get(transaction.id)
        if applied_at is not None:
            return applied_at, []
        working = Working(self._kinds, self._state, self._nothing)
        try:
            for action in transaction.actions:
                self._perform(working, action, transaction, index)
        except StoreError as refusal:
            return refusal, []
        self._remember(transaction.id, index)
        return index, self._merge(working, index)

    def objects(self) -> dict[str, list[StoredObject]]:
        """An immutable view of everything: lists of their own, of messages that never change."""
        return {name: list(rows.objects.values()) for name, rows in self._state.items()}

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        """Take the state as it is; the function returned serialises it, on whatever thread."""
        objects, index, recent = self.objects(), self.index, list(self._recent)
        return lambda: snapshot.write(self._kinds, objects, index=index, recent_transaction_ids=recent)

    def load(self, chunks: Iterable[bytes], index: int) -> Callable[[], list[Change]]:
        """Read a snapshot, on whatever thread; the state stays as it is.

        Returns:
            A function that replaces the state by the snapshot and says how it differs from the old one.

        Raises:
            SnapshotError.
        """
        header, objects = snapshot.read(self._kinds, chunks)
        if header.index > index:
            raise SnapshotError(f"snapshot holds entry {header.index}, but was said to end at {index}")
        state = empty_state(self._kinds)
        for kind, obj in objects:
            if state[kind.name].put(obj) is not None:
                raise SnapshotError(f"snapshot holds {kind.name} {obj.id} twice")
        return lambda: self._install(state, header, index)

    def _install(self, state: Committed, header: SnapshotHeader, index: int) -> list[Change]:
        changes: list[Change] = []
        for name, rows in state.items():
            kind, old, new = rows.kind, self._state[name].objects, rows.objects
            for object_id, before in old.items():
                after = new.get(object_id)
                if after is None or before.version.index != after.version.index:
                    changes.append(Change(kind, object_id, before, after, index))
            changes += (Change(kind, key, None, after, index) for key, after in new.items() if key not in old)
        # In place: views and transactions of others hold on to these very rows.
        for name, rows in state.items():
            self._state[name].replace_by(rows)
        self._recent = OrderedDict((transaction_id, header.index) for transaction_id in header.recent_transaction_ids)
        self.index = index
        if self._detector is not None:
            self._detector.reset(self.objects())
        return changes

    def _perform(self, working: Working, action: StoreAction, transaction: Transaction, index: int) -> None:
        verb = action.WhichOneof("action")
        if verb == "create":
            _, obj = self._kinds.unwrap(action.create)
            obj.created_at.CopyFrom(transaction.proposed_at)
            obj.updated_at.CopyFrom(transaction.proposed_at)
            obj.version.index = 0
            working.create(obj)
            # The version is set last: until then it is what the check compares.
            obj.version.index = index
        elif verb == "update":
            _, obj = self._kinds.unwrap(action.update)
            old = working.existing(obj)
            obj.created_at.CopyFrom(old.created_at)
            obj.updated_at.CopyFrom(transaction.proposed_at)
            working.update(obj)
            obj.version.index = index
        elif verb == "remove":
            removal = action.remove
            working.remove_by_id(self._kinds.named(removal.kind), removal.id, removal.version_index)
        else:
            raise ValueError(f"transaction {transaction.id} holds an action this version does not know")

    def _remember(self, transaction_id: str, index: int) -> None:
        self._recent[transaction_id] = index
        while len(self._recent) > TRANSACTION_IDS_KEPT:
            self._recent.popitem(last=False)

    def _merge(self, working: Working, index: int) -> list[Change]:
        changes: list[Change] = []

        def record(kind: AnyKind, old: StoredObject | None, new: StoredObject | None) -> None:
            changed = new if new is not None else old
            assert changed is not None
            changes.append(Change(kind, changed.id, old, new, index))

        working.merge(record)
        if self._detector is not None:
            self._detector.check_all()
            self._detector.note(changes)
        return changes
