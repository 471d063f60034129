"""Tar members from a stream, one at a time, with a bound on everything that is kept in memory.

The header parsing is the standard library's. What it lacks for hostile input: it takes a broken header in the middle
for the end of the archive, reads extended headers of any size into memory, and remembers every member.
"""

from __future__ import annotations

import copy
import hashlib
import tarfile
import threading
from collections.abc import Iterator
from typing import BinaryIO, cast

from base.threads import AbortedError
from runtime.images import compression
from runtime.images.content import Reader
from runtime.images.errors import LayerError

HEADER_BYTES_MAX = 1 << 20
HEADERS_BYTES_MAX = 8 << 20
GLOBAL_HEADERS_MAX = 1000
READ_BYTES = 1 << 20


class _Forward:
    """The file that tarfile sees: forward only, hashed, single reads bounded. Raises LayerError on bad compression."""

    def __init__(self, source: Reader, abort: threading.Event | None) -> None:
        self._source, self._abort = source, abort
        self._position = 0
        self.header_bytes = 0
        self.hash = hashlib.sha256()

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position < self._position:
            raise LayerError("malformed tar: a member begins before the end of the one before it")
        self.skip(position - self._position)
        return position

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes of header unless the stream ends."""
        self.header_bytes += size
        if size > HEADER_BYTES_MAX or self.header_bytes > HEADERS_BYTES_MAX:
            raise LayerError("malformed tar: the headers of one member are too large")
        parts = []
        while size > 0 and (data := self.some(size)):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def some(self, size: int) -> bytes:
        """At most ``size`` bytes; b"" at the end of the stream."""
        if self._abort is not None and self._abort.is_set():
            raise AbortedError
        try:
            data = self._source.read(min(size, READ_BYTES))
        except compression.ERRORS as error:
            raise LayerError(f"malformed layer: {error}") from error
        except OSError as error:
            if error.errno is None:  # gzip and bz2 report bad data so
                raise LayerError(f"malformed layer: {error}") from error
            raise
        self.hash.update(data)
        self._position += len(data)
        return data

    def skip(self, size: int) -> None:
        while size > 0:
            data = self.some(size)
            if not data:
                raise LayerError("malformed tar: unexpected end of data")
            size -= len(data)


class _TarFile(tarfile.TarFile):
    """Keeps the constructor from reading a member."""

    def next(self) -> tarfile.TarInfo | None:
        return None


class TarStream:
    """Members of an uncompressed tar stream in order; ``chunks`` reads the data of the current one.

    Raises LayerError for anything that is no well-formed tar.
    """

    def __init__(self, source: BinaryIO | Reader, *, abort: threading.Event | None = None) -> None:
        self._file = _Forward(source, abort)
        self._tar = _TarFile(fileobj=self._file, mode="r", encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]  # needs only these methods
        self._left = 0

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        while (member := self._next()) is not None:
            yield member

    def _next(self) -> tarfile.TarInfo | None:
        self._file.seek(self._tar.offset)
        self._file.header_bytes = 0
        try:
            member = tarfile.TarInfo.fromtarfile(self._tar)
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]  # not in typeshed
            return None
        except LayerError:
            raise
        except (
            tarfile.TarError,
            ValueError,
            IndexError,
            KeyError,
            UnicodeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise LayerError(f"malformed tar: {error}") from error
        if len(self._tar.pax_headers) > GLOBAL_HEADERS_MAX:
            raise LayerError("malformed tar: too many global headers")
        if member.size < 0:
            raise LayerError(f"malformed tar: {member.name} has a negative size")
        has_data = member.isreg() or member.type not in tarfile.SUPPORTED_TYPES
        stored = sum(size for _, size in segments(member)) if member.sparse else member.size
        self._left = stored if has_data else 0
        return member

    def chunks(self) -> Iterator[bytes]:
        """Data of the current member as it is stored (for a sparse file: its segments one after the other)."""
        while self._left > 0:
            data = self._file.some(self._left)
            if not data:
                raise LayerError("malformed tar: unexpected end of data")
            self._left -= len(data)
            yield data

    def read(self, size: int = -1, /) -> bytes:
        """Data of the current member as a file."""
        want = self._left if size < 0 else min(size, self._left)
        if want <= 0:
            return b""
        data = self._file.some(want)
        if not data:
            raise LayerError("malformed tar: unexpected end of data")
        self._left -= len(data)
        return data

    def drain(self) -> tuple[str, int]:
        """Read to the end of the stream; digest and size of all its bytes."""
        while self._file.some(READ_BYTES):
            pass
        return f"sha256:{self._file.hash.hexdigest()}", self._file.tell()


def segments(member: tarfile.TarInfo) -> list[tuple[int, int]]:
    """``(offset, size)`` of the stored parts of a sparse file."""
    return cast("list[tuple[int, int]]", member.sparse or [])


def data_member(name: str, size: int, *, mtime: int = 0) -> bytes:
    """Header of a regular file; its data and ``padding(size)`` follow."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, mtime, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def directory_member(name: str) -> bytes:
    """Header of a directory."""
    info = copy.copy(tarfile.TarInfo(name))
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info.tobuf(tarfile.PAX_FORMAT)


def padding(size: int) -> bytes:
    """Zeros that fill the last block after ``size`` bytes of data."""
    return bytes(-size % tarfile.BLOCKSIZE)


END_OF_ARCHIVE = bytes(tarfile.BLOCKSIZE * 2)
