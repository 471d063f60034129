"""Snapshots on their way from a leader to a member whose next entry is no longer in the leader's log.

Pieces are numbered and travel between the entries of the same stream. The receiver writes them, encrypted
under its own key, to a temporary file and installs the whole atomically; any gap starts it over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from manager.consensus import wire
from manager.consensus.port import CorruptStateError, NodeID
from manager.consensus.snapshots import (
    PART_SIZE_BYTES_MAX,
    SnapshotHead,
    SnapshotStore,
    SnapshotWriter,
    decode_head,
    encode_head,
)


@dataclass(slots=True)
class _Stream:
    head: SnapshotHead
    parts: Iterator[tuple[bytes, bool]]
    number: int
    ahead: tuple[bytes, bool] | None  # read one ahead, to know the last


class SnapshotSender:
    """Streams the newest snapshot to any number of peers."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._streams: dict[NodeID, _Stream] = {}

    def next_piece(self, peer: NodeID, term: int, seq: int) -> wire.InstallSnapshot:
        """The next piece for ``peer``; begins a stream where there is none, ends it with the last piece.

        Raises:
            CorruptStateError, OSError: the snapshot cannot be read.
        """
        stream = self._streams.get(peer)
        if stream is None:
            stream = self._streams[peer] = self._begin()
        first = stream.number == 0
        (data, more), stream.ahead = stream.ahead or (b"", False), next(stream.parts, None)
        last = stream.ahead is None
        head = encode_head(stream.head) if first else b""
        piece = wire.InstallSnapshot(term, seq, stream.head.index, stream.number, head, data, more, last)
        stream.number += 1
        if last:
            del self._streams[peer]
        return piece

    def index_for(self, peer: NodeID) -> int:
        """Of the snapshot that ``peer`` is being sent; 0 if none."""
        stream = self._streams.get(peer)
        return stream.head.index if stream is not None else 0

    def cancel(self, peer: NodeID) -> None:
        self._streams.pop(peer, None)

    def _begin(self) -> _Stream:
        indexes = self._store.indexes()
        if not indexes:
            raise CorruptStateError(f"{self._store.folder}: the log was compacted but there is no snapshot")
        head, parts = self._store.open_parts(indexes[-1])
        return _Stream(head, parts, 0, next(parts, None))


class SnapshotReceiver:
    """Assembles the snapshot of one leader at a time."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._writer: SnapshotWriter | None = None
        self._from: tuple[NodeID, int, int] | None = None  # peer, term, index: pieces of two snapshots never mix
        self._next_number = 0

    def receive(self, peer: NodeID, piece: wire.InstallSnapshot) -> SnapshotHead | bool:
        """Take a piece.

        Returns:
            The head once the snapshot is complete and durable; True if more is to come; False if the
            piece does not fit what came before, so that the leader has to begin again.

        Raises:
            ProtocolError: the head is none.
            OSError: the disk is full or broken; nothing is left of the snapshot.
        """
        if len(piece.data) > PART_SIZE_BYTES_MAX or (piece.last and piece.more):
            raise wire.ProtocolError(f"piece {piece.number} of snapshot {piece.index} is not one")
        if piece.number == 0:
            self.abandon()
            self._open(piece)
            self._from, self._next_number = (peer, piece.term, piece.index), 0
        expected = (peer, piece.term, piece.index)
        if self._writer is None or self._from != expected or piece.number != self._next_number:
            self.abandon()
            return False
        self._next_number += 1
        try:
            self._writer.add_part(piece.data, more=piece.more)
            if piece.last:
                self._writer.finish()
        except OSError:
            self.abandon()
            raise
        if not piece.last:
            return True
        head, self._writer = self._writer.head, None
        return head

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None

    def _open(self, piece: wire.InstallSnapshot) -> None:
        try:
            head = decode_head(piece.head)
        except CorruptStateError as error:
            raise wire.ProtocolError(str(error)) from None
        if head.index != piece.index:
            raise wire.ProtocolError(f"snapshot of index {piece.index} with the head of {head.index}")
        if head.term > piece.term or not head.configuration.voters:
            raise wire.ProtocolError(f"snapshot of term {head.term}, of no group that a leader of {piece.term} leads")
        self._writer = SnapshotWriter(self._store, head, suffix="install")
