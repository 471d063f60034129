"""The journal: the Raft log, term and vote on disk, in segments that are only ever appended to.

pysyncobj keeps its log in an object with the interface of ``pysyncobj.journal.Journal``; this is ours.
Entries are held in memory as well (the library indexes into them), bounded by snapshots.

**Group commit.** Changes since the last ``sync`` form one record, written and synced in one go. The caller
syncs before any message leaves and before the leader counts itself; between two syncs nothing was promised
to anybody, so a torn last record costs nothing.

**Nothing is overwritten.** Cutting a conflicting tail, a new term, a reset by an installed snapshot are
changes written behind the others. Every segment opens with a checkpoint (term, vote, commit index, what this member
was admitted to and superseded by), so old segments can be deleted whole once a snapshot covers their entries.

**What was durable is not forgotten.** A mark beside the folder says how far the newest segment was synced (``end_mark.py``).

Layout of a record's plain text: a msgpack list of changes, see ``_Change``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import msgspec

from manager.consensus.end_mark import EndMark, JournalEnd
from manager.consensus.files import Files
from manager.consensus.port import CorruptStateError
from manager.consensus.sealed import KeyRing, SealedWriter, read_sealed

MAGIC = b"SWJRNL\x00\x01"
SEGMENT_SIZE_BYTES = 8 * 1024 * 1024
PENDING_SIZE_BYTES_MAX = 8 * 1024 * 1024
"""More than this since the last sync is synced at once, which bounds a record's size."""

LogEntry = tuple[bytes, int, int]
"""(command, index, term), as pysyncobj has it."""

_NO_OP = b"\x01"
_SEGMENT_NAME = re.compile(r"journal-(\d{10})")


class _Checkpoint(msgspec.Struct, array_like=True, tag="c", forbid_unknown_fields=True):
    node_id: str
    previous: int  # number of the segment before this one; 0 for the first
    term: int
    voted_for: str | None
    commit_index: int
    admitted_to: str = ""
    admitted_index: int = 0
    superseded_by: str = ""


class _Append(msgspec.Struct, array_like=True, tag="a", forbid_unknown_fields=True):
    index: int
    term: int
    command: bytes


class _Cut(msgspec.Struct, array_like=True, tag="x", forbid_unknown_fields=True):
    index: int  # this one and all after it are gone


class _Vote(msgspec.Struct, array_like=True, tag="v", forbid_unknown_fields=True):
    term: int
    voted_for: str | None


class _Commit(msgspec.Struct, array_like=True, tag="m", forbid_unknown_fields=True):
    index: int


class _Reset(msgspec.Struct, array_like=True, tag="r", forbid_unknown_fields=True):
    index: int  # the log now starts here, behind a snapshot
    term: int


class _Admitted(msgspec.Struct, array_like=True, tag="j", forbid_unknown_fields=True):
    group_id: str
    index: int


class _Superseded(msgspec.Struct, array_like=True, tag="s", forbid_unknown_fields=True):
    by: str


_Change = _Checkpoint | _Append | _Cut | _Vote | _Commit | _Reset | _Admitted | _Superseded
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[_Change])


@dataclass(slots=True)
class _Segment:
    path: Path
    last_index: int = 0  # highest index of an entry (or of a log start) in it; 0 if it holds none
    marks: bool = False  # holds a cut, which older segments need


class Journal:
    """The log of one member.

    Args:
        folder: holds the segments and nothing else.
        node_id: written into every segment, so that a state folder cannot be taken for another node's.

    Raises:
        CorruptStateError: from the constructor; names file and offset.
        OSError: from ``sync`` and all that may call it. The journal is then ``failed`` for good: whether
            the data is on the disk is unknown, and a second fsync would lie (the kernel forgets the error).
    """

    def __init__(
        self,
        files: Files,
        folder: Path,
        keys: KeyRing,
        node_id: str,
        *,
        segment_size_bytes: int = SEGMENT_SIZE_BYTES,
    ) -> None:
        self._files, self._folder, self._keys, self._node_id = files, folder, keys, node_id
        self._segment_size_bytes = segment_size_bytes
        self._entries: list[LogEntry] = []
        self._term = 0
        self._voted_for: str | None = None
        self._commit_index = 1
        self._admitted_to, self._admitted_index = "", 0
        self._superseded_by = ""
        self._pending: list[_Change] = []
        self._pending_bytes = 0
        self._dirty = False
        self._commit_pending = False
        self._segments: list[_Segment] = []
        self._last_number = 0
        self._writer: SealedWriter | None = None
        self.failed: BaseException | None = None
        self.syncs = 0
        self.size_bytes = 0
        self.on_append: Callable[[LogEntry], None] = lambda entry: None
        self.on_cut: Callable[[int], None] = lambda index: None
        self.on_commit: Callable[[], None] = lambda: None
        self.vote_dirty = False  # term or vote changed since the last sync
        files.make_folder(folder)
        self._mark = EndMark(files, folder.with_name(f"{folder.name}.end"))
        try:
            self._recover()
        except BaseException:
            self.close()
            raise

    # What pysyncobj calls. Names and argument order are the library's.

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Append an entry; the index must follow the last."""
        if self._entries and idx != self._entries[-1][1] + 1:
            raise AssertionError(f"journal: index {idx} behind {self._entries[-1][1]}")
        entry = (command, idx, term)
        if self.failed is not None:
            raise self.failed
        size = len(command)
        self._entries.append(entry)
        self.size_bytes += size
        self._pending.append(_Append(idx, term, command))
        self._pending_bytes += size + 24
        self._dirty = True
        segment = self._segments[-1]
        if idx > segment.last_index:
            segment.last_index = idx
        self.on_append(entry)
        if self._pending_bytes >= PENDING_SIZE_BYTES_MAX:
            self.sync()

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803  # the library's name
        """Cut the tail; ``entryFrom`` is a position in the list, not an index."""
        if entryFrom >= len(self._entries):
            return
        index = self._entries[entryFrom][1]
        self.size_bytes -= sum(len(entry[0]) for entry in self._entries[entryFrom:])
        del self._entries[entryFrom:]
        self._note(_Cut(index), 16)
        self.on_cut(index)

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: N802, N803  # the library's name
        """Forget the oldest ``entryTo`` entries (a position); a durable snapshot must cover them.

        Nothing needs writing: a log that reaches further back than needed does no harm. Segments whose
        entries are all below the new start are deleted.
        """
        self.size_bytes -= sum(len(entry[0]) for entry in self._entries[:entryTo])
        del self._entries[:entryTo]
        self._drop_segments()

    def clear(self) -> None:
        raise NotImplementedError("the adapter resets the journal with reset()")

    @overload
    def __getitem__(self, item: int) -> LogEntry: ...
    @overload
    def __getitem__(self, item: slice) -> list[LogEntry]: ...
    def __getitem__(self, item: int | slice) -> LogEntry | list[LogEntry]:
        return self._entries[item]

    def __len__(self) -> int:
        return len(self._entries)

    def _destroy(self) -> None:
        self.close()

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803  # the library's name
        """Goes to disk with the next record: a hint that shortens a restart, never a promise."""
        if raftCommitIndex > self._commit_index:
            self._commit_index = raftCommitIndex
            self._commit_pending = True
            self.on_commit()

    def getRaftCommitIndex(self) -> int:  # noqa: N802  # the library's name
        return self._commit_index

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803  # the library's name
        self._term, self._voted_for = term, votedForNodeId
        self.vote_dirty = True
        self._note(_Vote(term, votedForNodeId), 40)

    def getCurrentTerm(self) -> int:  # noqa: N802  # the library's name
        return self._term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802  # the library's name
        return self._voted_for

    def onOneSecondTimer(self) -> None:  # noqa: N802  # the library's name
        pass

    # What the adapter calls.

    @property
    def first_index(self) -> int:
        return self._entries[0][1]

    @property
    def last_index(self) -> int:
        return self._entries[-1][1]

    @property
    def commit_index(self) -> int:
        return self._commit_index

    @property
    def admission(self) -> tuple[str, int]:
        """The group that this member was admitted to with an empty log, and the index its log has to reach; ("", 0)."""
        return self._admitted_to, self._admitted_index

    def note_admission(self, group_id: str, index: int) -> None:
        self._admitted_to, self._admitted_index = group_id, index
        self._note(_Admitted(group_id, index), 32)

    @property
    def superseded_by(self) -> str:
        """The group that was forced from this member's, "" while none is known."""
        return self._superseded_by

    def note_superseded(self, by: str) -> None:
        """``by``: empty when this member forces a group of its own."""
        self._superseded_by = by
        self._note(_Superseded(by), 32)

    @property
    def dirty(self) -> bool:
        """Something was changed that is not durable yet."""
        return self._dirty

    def term_at(self, index: int) -> int | None:
        """The term of the entry at ``index``, or None if the log does not hold it."""
        position = index - self._entries[0][1]
        return self._entries[position][2] if 0 <= position < len(self._entries) else None

    def entry_bytes(self, index: int) -> int:
        """The size of the entry at ``index``, 0 if the log does not hold it."""
        position = index - self._entries[0][1]
        return len(self._entries[position][0]) if 0 <= position < len(self._entries) else 0

    def slice(self, first: int, last: int) -> list[LogEntry]:
        """Entries with ``first`` <= index <= ``last``."""
        base = self._entries[0][1]
        return self._entries[max(0, first - base) : max(0, last - base + 1)]

    def cut_from(self, index: int) -> None:
        self.deleteEntriesFrom(index - self._entries[0][1])

    def compact(self, index: int) -> None:
        """Let the log start at ``index`` (kept as the entry that what follows is compared against)."""
        if index > self.first_index:
            self.deleteEntriesTo(index - self.first_index)

    def reset(self, index: int, term: int) -> None:
        """Start anew behind an installed snapshot that ends at ``index``; durable on return."""
        self._entries = [(_NO_OP, index, term)]
        self.size_bytes = 0
        self._commit_index = max(self._commit_index, index)
        self._note(_Reset(index, term), 24)
        self.sync()
        self._rotate()
        self._drop_segments()

    def sync(self) -> None:
        """Make all changes durable: one write, one fdatasync, or nothing if there are none.

        Raises:
            OSError: and from then on every time.
        """
        if self.failed is not None:
            raise self.failed
        if not self._dirty:
            return
        assert self._writer is not None
        if self._commit_pending:
            self._pending.append(_Commit(self._commit_index))
            self._commit_pending = False
        try:
            self._writer.append(_encoder.encode(self._pending))
            self._writer.sync()
            self.syncs += 1
            self._pending.clear()
            self._pending_bytes, self._dirty, self.vote_dirty = 0, False, False
            self._note_end()
            if self._writer.size_bytes >= self._segment_size_bytes:
                self._rotate()
        except Exception as error:
            self.failed = error
            raise

    def rekey(self, keys: KeyRing) -> None:
        """Write under ``keys.current`` from here on; what is older stays under its key until compacted."""
        self.sync()
        self._keys = keys
        self._rotate()

    def close(self) -> None:
        self._close_writer()
        self._mark.close()

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _note_end(self) -> None:
        assert self._writer is not None
        self._mark.note(JournalEnd(self._last_number, self._writer.size_bytes))

    def _note(self, change: _Change, size_bytes: int) -> None:
        if self.failed is not None:
            raise self.failed
        self._pending.append(change)
        self._dirty = True
        segment = self._segments[-1]
        if isinstance(change, _Reset):
            segment.last_index = max(segment.last_index, change.index)
        elif isinstance(change, _Cut):
            segment.marks = True
        self._pending_bytes += size_bytes
        if self._pending_bytes >= PENDING_SIZE_BYTES_MAX:
            self.sync()

    def _rotate(self) -> None:
        """Go on in a new segment; its checkpoint is durable before anything relies on it."""
        if self.failed is not None:
            raise self.failed
        number = self._last_number + 1
        previous = self._number(self._segments[-1].path) if self._segments else 0
        path = self._folder / f"journal-{number:010d}"
        try:
            writer = SealedWriter(self._files, path, self._keys, MAGIC)
            checkpoint = _Checkpoint(
                self._node_id,
                previous,
                self._term,
                self._voted_for,
                self._commit_index,
                self._admitted_to,
                self._admitted_index,
                self._superseded_by,
            )
            writer.append(_encoder.encode([checkpoint]))
            writer.sync()
            self._files.sync_folder(self._folder)
        except Exception as error:
            self.failed = error
            raise
        self._close_writer()
        self._writer = writer
        self._segments.append(_Segment(path))
        self._last_number = number
        self._note_end()

    def _drop_segments(self) -> None:
        """Delete from the oldest on those segments that the log no longer reaches."""
        first = self._entries[0][1] if self._entries else 0
        doomed = 0
        while doomed < len(self._segments) - 1 and self._segments[doomed].last_index < first:
            doomed += 1
        # In order, so that a crash in between leaves a contiguous rest.
        for segment in self._segments[:doomed]:
            self._files.unlink(segment.path)
            self._files.sync_folder(self._folder)
        del self._segments[:doomed]

    @staticmethod
    def _number(path: Path) -> int:
        match = _SEGMENT_NAME.fullmatch(path.name)
        assert match is not None
        return int(match[1])

    def _recover(self) -> None:
        paths = [self._folder / name for name in self._files.names(self._folder) if _SEGMENT_NAME.fullmatch(name)]
        if paths:
            self._files.sync_folder(self._folder)
        self._mark.check_segments(self._folder, self._number(paths[-1]) if paths else 0)
        for position, path in enumerate(paths):
            self._recover_segment(path, last=position == len(paths) - 1)
        # A segment that holds nothing but its checkpoint is superseded by the new one: restarts leave no trail.
        empty = [segment for segment in self._segments if not segment.last_index and not segment.marks]
        self._segments = [segment for segment in self._segments if segment not in empty]
        self._rotate()
        for segment in empty:
            self._files.unlink(segment.path)
        if empty:
            self._files.sync_folder(self._folder)

    def _recover_segment(self, path: Path, *, last: bool) -> None:
        content = read_sealed(self._files, path, self._keys, MAGIC)
        self._mark.check_end(path, JournalEnd(self._number(path), content.end))
        if content.torn:
            if not last:
                raise CorruptStateError(f"{path}: offset {content.end}: torn, but not the last segment")
            if not content.records:  # crashed while creating it: its checkpoint was not durable, so nothing followed
                self._files.unlink(path)
                self._files.sync_folder(self._folder)
                return
            self._files.truncate(path, content.end)
        elif last:
            # An earlier process may have died between write and sync: what is believed now must outlive a power loss.
            self._files.sync_file(path)
        segment = _Segment(path)
        self._last_number = self._number(path)
        for number, record in enumerate(content.records):
            try:
                changes = _decoder.decode(record)
            except ValueError as error:
                raise CorruptStateError(f"{path}: record {number}: {error}") from None
            if number == 0:
                self._check_opening(path, changes)
            for change in changes:
                self._replay(segment, change)
        self._segments.append(segment)

    def _check_opening(self, path: Path, changes: list[_Change]) -> None:
        """The first record names the node and the segment before: a lost file shows."""
        if not changes or not isinstance(changes[0], _Checkpoint):
            raise CorruptStateError(f"{path}: record 0: no checkpoint")
        if changes[0].node_id != self._node_id:
            raise CorruptStateError(f"{path}: belongs to node {changes[0].node_id}, not {self._node_id}")
        present = {self._number(segment.path) for segment in self._segments}
        if present and changes[0].previous not in present:
            raise CorruptStateError(f"{self._folder}: segment {changes[0].previous} is missing")

    def _replay(self, segment: _Segment, change: _Change) -> None:
        match change:
            case _Checkpoint(_, _, term, voted_for, commit_index, admitted_to, admitted_index, superseded_by):
                self._term, self._voted_for = term, voted_for
                self._commit_index = max(self._commit_index, commit_index)
                self._admitted_to, self._admitted_index = admitted_to, admitted_index
                self._superseded_by = superseded_by
            case _Admitted(group_id, index):
                self._admitted_to, self._admitted_index = group_id, index
            case _Superseded(by):
                self._superseded_by = by
            case _Vote(term, voted_for):
                self._term, self._voted_for = term, voted_for
            case _Commit(index):
                self._commit_index = max(self._commit_index, index)
            case _Append(index, term, command):
                if self._entries and index != self._entries[-1][1] + 1:
                    raise CorruptStateError(f"{segment.path}: entry {index} does not follow {self._entries[-1][1]}")
                self._entries.append((command, index, term))
                self.size_bytes += len(command)
                segment.last_index = max(segment.last_index, index)
            case _Cut(index):
                while self._entries and self._entries[-1][1] >= index:
                    self.size_bytes -= len(self._entries.pop()[0])
                segment.marks = True
            case _Reset(index, term):
                self._entries = [(_NO_OP, index, term)]
                self.size_bytes = 0
                self._commit_index = max(self._commit_index, index)
                segment.last_index = max(segment.last_index, index)
