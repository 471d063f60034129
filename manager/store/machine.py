"""The deterministic half of the store: the state, and what a log entry does to it.

Nothing here reads a clock, a random number, the environment or a file: every member that applies the same entries
holds the same bytes, which a test compares. Times and IDs stand in the entry, made by its proposer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from google.protobuf.timestamp_pb2 import Timestamp

from manager.store import snapshot
from manager.store.encoding import CREATE, REMOVE, UPDATE, decode_removal, decode_written
from manager.store.errors import SnapshotError, StoreError
from manager.store.kinds import KINDS, Kinds
from manager.store.mutation import MutationDetector
from manager.store.objects import StoredObject
from manager.store.views import Committed, Layer, View, Working, empty_state
from manager.store.watch import Change
from proto.store_pb2 import SnapshotHeader, Transaction

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
        self._recent: OrderedDict[str, int] = OrderedDict()
        self._detector = detector
        self.view = View(kinds, self._state)
        self.index = 0
        self._layer = Layer(kinds, self._state)

    def begin(self) -> Working:
        return Working(self._kinds, self._state)

    def apply(self, index: int, data: bytes) -> tuple[int | StoreError, list[Change]]:
        """Apply one entry: all of it or nothing.

        Returns:
            The index at which it took effect (an earlier one when it was applied before) or why it was refused,
            and what it changed.

        Raises:
            google.protobuf.message.DecodeError, ValueError: the entry is no transaction; a broken invariant.
        """
        transaction = Transaction.FromString(data)
        self.index = index
        applied_at = self._recent.get(transaction.id)
        if applied_at is not None:
            return applied_at, []
        layer, proposed_at = self._layer, transaction.proposed_at
        try:
            for action in transaction.actions:
                self._perform(layer, action, proposed_at, index)
        except StoreError as refusal:
            layer.clear()
            return refusal, []
        except BaseException:
            layer.clear()  # all or nothing, whoever goes on from here
            raise
        self._remember(transaction.id, index)
        changes = [Change(kind, object_id, old, new, index) for kind, object_id, old, new in layer.merge()]
        layer.clear()
        if self._detector is not None:
            self._detector.check_all()
            self._detector.note(changes)
        return index, changes

    def objects(self) -> dict[str, list[StoredObject]]:
        """An immutable view of everything: lists of their own, of messages that never change."""
        return {name: list(rows.objects.values()) for name, rows in self._state.items()}

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        """Take the state as it is; the function returned serialises it, on whatever thread."""
        objects, index, recent = self.objects(), self.index, list(self._recent)
        return lambda: snapshot.write(self._kinds, objects, index=index, recent_transaction_ids=recent)

    def load(self, chunks: Iterable[bytes], index: int) -> Callable[[], list[Change]]:
        """Read a snapshot, on whatever thread; the state stays as it is, and no entry may be applied meanwhile.

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
            if state[kind.name].put(obj.id, obj) is not None:
                raise SnapshotError(f"snapshot holds {kind.name} {obj.id} twice")
        changes = self._differences(state, index)
        loaded_at = self.index

        def install() -> list[Change]:
            if self.index != loaded_at:
                raise AssertionError(f"entry {self.index} was applied while a snapshot was loaded")
            self._install(state, header, index)
            return changes

        return install

    def _differences(self, state: Committed, index: int) -> list[Change]:
        """How ``state`` differs from the present one. An object is another one if its version is."""
        changes: list[Change] = []
        for name, rows in state.items():
            kind, old, new = rows.kind, self._state[name].objects, rows.objects
            for object_id, before in old.items():
                after = new.get(object_id)
                if after is None or before.version.index != after.version.index:
                    changes.append(Change(kind, object_id, before, after, index))
            changes += (Change(kind, key, None, after, index) for key, after in new.items() if key not in old)
        return changes

    def _install(self, state: Committed, header: SnapshotHeader, index: int) -> None:
        # In place: views and transactions of others hold on to these very rows.
        for name, rows in state.items():
            self._state[name].replace_by(rows)
        self._recent = OrderedDict((transaction_id, header.index) for transaction_id in header.recent_transaction_ids)
        self.index = index
        if self._detector is not None:
            self._detector.reset(self.objects())

    def _perform(self, layer: Layer, action: bytes, proposed_at: Timestamp, index: int) -> None:
        verb = action[0] if action else 0
        if verb == UPDATE:
            kind, obj = decode_written(self._kinds, action)
            old = layer.put_changed(kind, obj)
            obj.created_at.CopyFrom(old.created_at)
        elif verb == CREATE:
            kind, obj = decode_written(self._kinds, action)
            layer.put_new(kind, obj)
            obj.created_at.CopyFrom(proposed_at)
        elif verb == REMOVE:
            removal = decode_removal(action)
            layer.drop(self._kinds.named(removal.kind), removal.id, removal.version_index)
            return
        else:
            raise ValueError(f"an entry holds the action {verb}, which this version does not know")
        obj.updated_at.CopyFrom(proposed_at)
        obj.version.index = index

    def _remember(self, transaction_id: str, index: int) -> None:
        self._recent[transaction_id] = index
        while len(self._recent) > TRANSACTION_IDS_KEPT:
            self._recent.popitem(last=False)
