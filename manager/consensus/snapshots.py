"""Snapshots on disk: one sealed file each, complete or absent.

Content: a head (index, term, configuration, remembered command IDs), the state machine's chunks, large ones in
parts, and an end that counts the parts. Written to a temporary name, synced, renamed, and the folder synced: after a crash the
old set of snapshots or the new one is there, never a part of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from manager.consensus.configuration import Configuration
from manager.consensus.files import Files
from manager.consensus.port import CorruptStateError
from manager.consensus.sealed import KeyRing, SealedWriter, stream_sealed

MAGIC = b"SWSNAP\x00\x01"
PART_SIZE_BYTES_MAX = 256 * 1024
_NAME = re.compile(r"snapshot-(\d{20})")


@dataclass(frozen=True, slots=True)
class SnapshotHead:
    """What a snapshot stands for.

    Attributes:
        index: of the last entry it contains.
        term: of that entry.
        configuration: in force after that entry.
        command_ids: (index, ID) of the commands applied last, oldest first (see ``commands.py``).
    """

    index: int
    term: int
    configuration: Configuration
    command_ids: tuple[tuple[int, bytes], ...]


class _Head(msgspec.Struct, array_like=True, tag="h", forbid_unknown_fields=True):
    index: int
    term: int
    configuration: bytes
    command_ids: list[tuple[int, bytes]]


class _Part(msgspec.Struct, array_like=True, tag="d", forbid_unknown_fields=True):
    data: bytes
    more: bool  # of the same chunk follows


class _End(msgspec.Struct, array_like=True, tag="e", forbid_unknown_fields=True):
    parts: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Head | _Part | _End)


def encode_head(head: SnapshotHead) -> bytes:
    return _encoder.encode(_Head(head.index, head.term, head.configuration.encode(), list(head.command_ids)))


def decode_head(data: bytes) -> SnapshotHead:
    """Raises CorruptStateError."""
    try:
        stored = _decoder.decode(data)
    except ValueError as error:
        raise CorruptStateError(f"snapshot head: {error}") from None
    if not isinstance(stored, _Head):
        raise CorruptStateError("snapshot does not begin with its head")
    return SnapshotHead(
        stored.index, stored.term, Configuration.decode(stored.configuration), tuple(stored.command_ids)
    )


class SnapshotWriter:
    """Writes one snapshot; nothing of it exists for a reader before ``finish`` returned."""

    def __init__(self, store: SnapshotStore, head: SnapshotHead, *, suffix: str = "write") -> None:
        self._store, self.head, self._parts = store, head, 0
        self._temporary = store.folder / f"{store.name_of(head.index)}.{suffix}"
        store.files.unlink(self._temporary)
        self._writer = SealedWriter(store.files, self._temporary, store.keys, MAGIC)
        self._writer.append(encode_head(head))

    def add(self, chunk: bytes) -> None:
        """Append a chunk; ``open`` gives it back as it is, whatever its size."""
        for start in range(0, max(1, len(chunk)), PART_SIZE_BYTES_MAX):
            end = start + PART_SIZE_BYTES_MAX
            self.add_part(chunk[start:end], more=end < len(chunk))

    def add_part(self, data: bytes, *, more: bool) -> None:
        self._writer.append(_encoder.encode(_Part(data, more)))
        self._parts += 1

    def finish(self) -> None:
        """Make it the newest snapshot, durably."""
        self._writer.append(_encoder.encode(_End(self._parts)))
        self._writer.sync()
        self._writer.close()
        files, folder = self._store.files, self._store.folder
        files.rename(self._temporary, self._store.path_of(self.head.index))
        files.sync_folder(folder)
        self._store.newest_bytes = self._writer.size_bytes

    def abandon(self) -> None:
        self._writer.close()
        self._store.files.unlink(self._temporary)


class SnapshotStore:
    """The snapshots of one member. Methods may be called from any thread, one writer at a time per suffix.

    Attributes:
        newest_bytes: what the snapshot takes that was written or verified last; 0 while there is none.
    """

    def __init__(self, files: Files, folder: Path, keys: KeyRing) -> None:
        self.files, self.folder, self.keys = files, folder, keys
        self.newest_bytes = 0
        files.make_folder(folder)

    @staticmethod
    def name_of(index: int) -> str:
        return f"snapshot-{index:020d}"

    def path_of(self, index: int) -> Path:
        return self.folder / self.name_of(index)

    def indexes(self) -> list[int]:
        """Of all complete snapshots, oldest first."""
        matches = (_NAME.fullmatch(name) for name in self.files.names(self.folder))
        return [int(match[1]) for match in matches if match]

    def write(self, head: SnapshotHead, chunks: Iterable[bytes]) -> None:
        """Write a snapshot. Raises OSError; then none of it remains."""
        writer = SnapshotWriter(self, head)
        try:
            for chunk in chunks:
                writer.add(chunk)
            writer.finish()
        except BaseException:
            writer.abandon()
            raise

    def open(self, index: int) -> tuple[SnapshotHead, Iterator[bytes]]:
        """Head and chunks as they were written; a damaged record is found when it is reached.

        Raises:
            CorruptStateError: here or while iterating.
        """
        head, parts = self.open_parts(index)
        return head, _join(parts)

    def open_parts(self, index: int) -> tuple[SnapshotHead, Iterator[tuple[bytes, bool]]]:
        """As ``open``, in parts of at most ``PART_SIZE_BYTES_MAX``; true with a part whose chunk goes on."""
        path = self.path_of(index)
        records = stream_sealed(self.files, path, self.keys, MAGIC)
        first = next(records, None)
        if first is None:
            raise CorruptStateError(f"{path}: offset 0: empty snapshot")
        head = decode_head(first)
        if head.index != index:
            raise CorruptStateError(f"{path}: holds the snapshot of index {head.index}")
        return head, self._parts(path, records)

    def verify(self, index: int) -> SnapshotHead:
        """Read a snapshot to its end. Raises CorruptStateError."""
        head, parts = self.open_parts(index)
        self.newest_bytes = sum(len(data) for data, _ in parts)
        return head

    def clean(self, *, keep: int) -> None:
        """Delete all but the newest ``keep`` snapshots (at least one stays)."""
        for index in self.indexes()[: -max(1, keep)]:
            self.files.unlink(self.path_of(index))

    def clean_temporary(self) -> None:
        """Delete what interrupted writes left, and make the names of the others durable; at start only.

        An earlier process may have died between a rename and the sync of the folder.
        """
        self.files.sync_folder(self.folder)
        for name in self.files.names(self.folder):
            if not _NAME.fullmatch(name):
                self.files.unlink(self.folder / name)

    @staticmethod
    def _parts(path: Path, records: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
        count, open_chunk = 0, False
        for record in records:
            try:
                part = _decoder.decode(record)
            except ValueError as error:
                raise CorruptStateError(f"{path}: part {count}: {error}") from None
            match part:
                case _Part(data, more):
                    count, open_chunk = count + 1, more
                    yield data, more
                case _End(parts):
                    if parts != count or open_chunk or next(records, None) is not None:
                        raise CorruptStateError(f"{path}: {count} parts, its end says {parts}")
                    return
                case _:
                    raise CorruptStateError(f"{path}: a second head")
        raise CorruptStateError(f"{path}: ends without its end")


def _join(parts: Iterator[tuple[bytes, bool]]) -> Iterator[bytes]:
    waiting: list[bytes] = []
    for data, more in parts:
        waiting.append(data)
        if not more:
            yield b"".join(waiting)
            waiting.clear()
