"""The store's snapshot as a stream of bytes: length-delimited messages, a header first, then the objects in chunks.

Each message stands behind its length as four bytes, big-endian. The pieces in which the stream arrives need not
be those in which it was written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

from google.protobuf.message import DecodeError

from manager.store.encoding import decode_object, encode_object
from manager.store.errors import SnapshotError
from manager.store.kinds import AnyKind, Kinds, UnknownKindError
from manager.store.objects import StoredObject
from proto.store_pb2 import SnapshotChunk, SnapshotHeader

SNAPSHOT_FORMAT = 1

CHUNK_OBJECTS = 256
"""Objects of one chunk; a chunk is therefore some ten KB, and at most what 256 large configs take."""

MESSAGE_SIZE_BYTES_MAX = 512 * 1024 * 1024

_LENGTH = struct.Struct(">I")


def write(
    kinds: Kinds, objects: Mapping[str, Sequence[StoredObject]], *, index: int, recent_transaction_ids: Sequence[str]
) -> Iterator[bytes]:
    """Serialise a state.

    Args:
        kinds: in this order.
        objects: kind name -> its objects; none of them may change while this runs (it may run on another thread).
        index: log index of the last entry applied.
        recent_transaction_ids: oldest first.
    """
    header = SnapshotHeader(
        format=SNAPSHOT_FORMAT,
        index=index,
        objects_total=sum(len(rows) for rows in objects.values()),
        recent_transaction_ids=recent_transaction_ids,
    )
    yield _framed(header.SerializeToString(deterministic=True))
    for kind in kinds:
        rows = objects[kind.name]
        for start in range(0, len(rows), CHUNK_OBJECTS):
            chunk = SnapshotChunk(objects=[encode_object(kind, obj) for obj in rows[start : start + CHUNK_OBJECTS]])
            yield _framed(chunk.SerializeToString(deterministic=True))


def read(kinds: Kinds, pieces: Iterable[bytes]) -> tuple[SnapshotHeader, Iterator[tuple[AnyKind, StoredObject]]]:
    """Parse a snapshot.

    Returns:
        The header, and (kind, object) in the order written; each object is a message of its own. Only the end tells that
        it is whole.

    Raises:
        SnapshotError: here or while iterating: cut short, of another format, unreadable, or not as many objects as the
            header says.
    """
    messages = _messages(pieces)
    first = next(messages, None)
    if first is None:
        raise SnapshotError("snapshot is empty")
    try:
        header = SnapshotHeader.FromString(first)
    except DecodeError as error:
        raise SnapshotError(f"snapshot is unreadable: {error}") from error
    if header.format != SNAPSHOT_FORMAT:
        raise SnapshotError(f"snapshot has format {header.format}, this version reads {SNAPSHOT_FORMAT}")
    return header, _objects(kinds, messages, header.objects_total)


def _objects(kinds: Kinds, messages: Iterator[bytes], total: int) -> Iterator[tuple[AnyKind, StoredObject]]:
    count = 0
    try:
        for message in messages:
            chunk = SnapshotChunk.FromString(message).objects
            count += len(chunk)
            for wrapped in chunk:
                yield decode_object(kinds, wrapped)
    except DecodeError as error:
        raise SnapshotError(f"snapshot is unreadable: {error}") from error
    except UnknownKindError as error:
        raise SnapshotError("snapshot holds an object of a kind that this version does not know") from error
    if count != total:
        raise SnapshotError(f"snapshot holds {count} objects, its header says {total}")


def _messages(pieces: Iterable[bytes]) -> Iterator[bytes]:
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        at = 0
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > MESSAGE_SIZE_BYTES_MAX:
                raise SnapshotError(f"snapshot is unreadable: a message of {length} bytes")
            end = at + _LENGTH.size + length
            if len(buffer) < end:
                break
            yield bytes(buffer[at + _LENGTH.size : end])
            at = end
        del buffer[:at]
    if buffer:
        raise SnapshotError(f"snapshot is cut short: {len(buffer)} bytes of an incomplete message at its end")


def _framed(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data
