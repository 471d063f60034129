"""Debug mode: finding whoever changes a stored message in place.

Stored messages are shared by every reader, so a change in place would be seen by all, on this member alone, past
the log and the version check. Python's protobuf cannot freeze a message; this keeps each one's bytes beside it and
compares. It costs as much as the state is large, so only tests switch it on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from manager.store.errors import MutatedObjectError
from manager.store.objects import StoredObject
from manager.store.watch import Change


class MutationDetector:
    """Knows the bytes of every stored message as it was stored."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[StoredObject, bytes]] = {}

    def note(self, changes: Sequence[Change]) -> None:
        """Follow the store."""
        for change in changes:
            if change.new is None:
                self._known.pop((change.kind.name, change.id), None)
            else:
                self._known[change.kind.name, change.id] = (change.new, _bytes(change.new))

    def reset(self, objects: Mapping[str, Iterable[StoredObject]]) -> None:
        """Start again from these objects, by the name of their kind."""
        self._known = {(name, obj.id): (obj, _bytes(obj)) for name, rows in objects.items() for obj in rows}

    def check_all(self) -> None:
        """Raises: MutatedObjectError for the first message that is not as it was stored."""
        for (kind, object_id), (obj, stored) in self._known.items():
            if _bytes(obj) != stored:
                raise MutatedObjectError(kind=kind, object_id=object_id)


def _bytes(obj: StoredObject) -> bytes:
    return obj.SerializeToString(deterministic=True)
