"""Actions and objects as they stand in the log and in snapshots: StoreAction and StoreObject, byte for byte.

To build by hand what is around an object, and to parse only what is inside, spares a copy of every object in both
directions. And the object is a message of its own: within an outer one it would keep that alive. Pure.
"""

from __future__ import annotations

from manager.store.frames import content_start, framed, read_varint, tag_of, varint
from manager.store.kinds.kind import AnyKind, Kinds
from manager.store.objects import StoredObject
from proto.store_pb2 import StoreAction, StoreRemoval

CREATE, UPDATE, REMOVE = (tag_of(StoreAction, verb) for verb in ("create", "update", "remove"))
"""The first byte of an action."""

_CREATE, _UPDATE, _REMOVE = varint(CREATE), varint(UPDATE), varint(REMOVE)


def encode_object(kind: AnyKind, obj: StoredObject) -> bytes:
    """A StoreObject; the same bytes for the same object."""
    return framed(kind.tag, obj.SerializeToString(deterministic=True))


def encode_create(kind: AnyKind, obj: StoredObject) -> bytes:
    """A StoreAction, as the two below."""
    return framed(_CREATE, encode_object(kind, obj))


def encode_update(kind: AnyKind, obj: StoredObject) -> bytes:
    return framed(_UPDATE, encode_object(kind, obj))


def encode_removal(kind: AnyKind, object_id: str, version_index: int) -> bytes:
    removal = StoreRemoval(kind=kind.name, id=object_id, version_index=version_index)
    return framed(_REMOVE, removal.SerializeToString(deterministic=True))


def decode_object(kinds: Kinds, data: bytes, at: int = 0) -> tuple[AnyKind, StoredObject]:
    """The object in the StoreObject that begins at ``at`` and ends with ``data``.

    Raises:
        UnknownKindError, DecodeError.
    """
    tag, start = read_varint(data, at)
    kind = kinds.tagged(tag)
    obj: StoredObject = kind.message.FromString(data[content_start(data, start) :])
    return kind, obj


def decode_written(kinds: Kinds, action: bytes) -> tuple[AnyKind, StoredObject]:
    """The object of an action that begins with ``CREATE`` or ``UPDATE``. Raises: UnknownKindError, DecodeError."""
    return decode_object(kinds, action, content_start(action, 1))


def decode_removal(action: bytes) -> StoreRemoval:
    """Of an action that begins with ``REMOVE``. Raises: DecodeError."""
    return StoreRemoval.FromString(action[content_start(action, 1) :])
