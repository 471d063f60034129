"""How far the journal is durable, in a file beside it: what tells a journal that lost its end from one that a crash left.

A crash leaves at most one record that was not synced, and a journal that ends before it is whole. A file that was cut, emptied
or removed afterwards (a repair of the file system, a copy from a disk that was full) looks the same, and a member that
believes it has forgotten what it acknowledged: with it alone the writes are gone, beside others it votes as if they were not.

The mark is written after each sync of the journal and never synced itself, so it costs a write to the page cache. What the
disk has of it after a power loss is an older one, which is as true: the journal only grows. One that cannot be read, or was
removed, says nothing.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from manager.consensus.files import Files
from manager.consensus.port import CorruptStateError

_MARK = struct.Struct(">8sIQI")
_MAGIC = b"SWEND\x00\x00\x01"


@dataclass(frozen=True, slots=True, order=True)
class JournalEnd:
    """A place in the journal: number of the segment, bytes in it."""

    segment: int
    size_bytes: int


class EndMark:
    """The mark of one journal, held open until ``close``. Raises: OSError, from the constructor alone."""

    def __init__(self, files: Files, path: Path) -> None:
        self.path = path
        try:
            self._known = _decode(files.read(path))
        except FileNotFoundError:
            self._known = None
        self._file = files.open_mark(path)

    def check_segments(self, folder: Path, newest: int) -> None:
        """``newest``: number of the newest segment that is there, 0 if there is none. Raises: CorruptStateError."""
        if self._known is not None and newest < self._known.segment:
            raise CorruptStateError(
                f"{folder}: segment {self._known.segment} is missing, which was on the disk ({self.path})"
            )

    def check_end(self, path: Path, found: JournalEnd) -> None:
        """``found``: where the segment at ``path`` ends. Raises: CorruptStateError."""
        known = self._known
        if known is not None and found.segment == known.segment and found < known:
            raise CorruptStateError(
                f"{path}: ends at {found.size_bytes}, but {known.size_bytes} bytes were on the disk ({self.path})"
            )

    def note(self, end: JournalEnd) -> None:
        """All up to there is durable. A disk that does not take it leaves the one before, which is true as well."""
        body = struct.pack(">8sIQ", _MAGIC, end.segment, end.size_bytes)
        with contextlib.suppress(OSError):
            self._file.write(body + struct.pack(">I", zlib.crc32(body)))

    def close(self) -> None:
        self._file.close()


def _decode(data: bytes) -> JournalEnd | None:
    if len(data) != _MARK.size or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "big"):
        return None
    magic, segment, size_bytes, _ = _MARK.unpack(data)
    return JournalEnd(segment, size_bytes) if magic == _MAGIC else None
