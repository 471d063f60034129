"""What the replicated store may refuse, one class per thing a caller may do about it."""

from __future__ import annotations


class StoreError(Exception):
    """Base of everything the store refuses. (``NotLeaderError`` and the like come from ``consensus.port``.)"""


class SequenceConflictError(StoreError):
    """The object changed between read and write: read it again, then retry."""

    def __init__(self, *, kind: str, object_id: str, expected: int, actual: int) -> None:
        super().__init__(f"{kind} {object_id}: update out of sequence, read version {expected}, now {actual}")
        self.kind, self.object_id, self.expected, self.actual = kind, object_id, expected, actual


class ObjectExistsError(StoreError):
    """An object of that ID is there already."""

    def __init__(self, *, kind: str, object_id: str) -> None:
        super().__init__(f"{kind} {object_id} already exists")
        self.kind, self.object_id = kind, object_id


class NameConflictError(StoreError):
    """Another object of the kind has that name."""

    def __init__(self, *, kind: str, name: str, holder_id: str) -> None:
        super().__init__(f"name conflicts with an existing object: {kind} {name} already exists")
        self.kind, self.name, self.holder_id = kind, name, holder_id


class ObjectNotFoundError(StoreError):
    """No object answers to that reference."""

    def __init__(self, *, kind: str, ref: str) -> None:
        super().__init__(f"{kind} {ref} not found")
        self.kind, self.ref = kind, ref


class AmbiguousReferenceError(StoreError):
    """An ID prefix or a name fits several objects."""

    def __init__(self, *, kind: str, ref: str, matches: int) -> None:
        super().__init__(f"{kind} {ref} is ambiguous ({matches} matches found)")
        self.kind, self.ref, self.matches = kind, ref, matches


class ObjectInUseError(StoreError):
    """What other objects still name cannot be removed."""

    def __init__(self, *, kind: str, name: str, user_kind: str, users: tuple[str, ...]) -> None:
        noun = user_kind if len(users) == 1 else f"{user_kind}s"
        super().__init__(f"{kind} '{name}' is in use by the following {noun}: {', '.join(users)}")
        self.kind, self.name, self.users = kind, name, users


class TransactionTooLargeError(StoreError):
    """More than one log entry may hold; nothing was proposed. Split it, or ask for less at once."""

    def __init__(self, *, size_bytes: int, objects: int) -> None:
        super().__init__(f"transaction too large for one log entry: {size_bytes} bytes, {objects} objects")
        self.size_bytes, self.objects = size_bytes, objects


class SnapshotError(StoreError):
    """A snapshot is cut, of another format or not what its header says; the state was left as it was."""


class MutatedObjectError(StoreError):
    """Debug mode found a stored message that somebody changed in place: a bug of the caller that did."""

    def __init__(self, *, kind: str, object_id: str) -> None:
        super().__init__(f"{kind} {object_id} was changed in place after it was stored; copy it, change the copy")
        self.kind, self.object_id = kind, object_id
