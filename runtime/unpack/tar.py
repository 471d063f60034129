"""Members of a tar stream, one at a time, with a bound on everything that is kept in memory and on what is taken in all."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from runtime.unpack import headers
from runtime.unpack.errors import MalformedArchiveError
from runtime.unpack.headers import BLOCK_BYTES, TarMember

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime.unpack.compression import Reader

PAX_BYTES_MAX = 64 << 10
HEADERS_BYTES_MAX = 2 << 20
"""Of one member: the longest are maps of sparse files, of about 90 000 parts."""
GLOBAL_BYTES_MAX = 1 << 20
"""Of all global headers of an archive."""
MEMBERS_MAX = 1 << 21
READ_BYTES = 1 << 18


class _Bytes:
    """The stream: forward only, hashed, read in large pieces."""

    def __init__(self, source: Reader, check: Callable[[], None] | None) -> None:
        self._source, self._check = source, check
        self._data, self._at = memoryview(b""), 0
        self.hash = hashlib.sha256()
        self.position = 0

    def some(self, size: int) -> memoryview:
        """At most ``size`` bytes; none at the end of the stream."""
        if self._at >= len(self._data):
            if self._check is not None:
                self._check()
            data = self._source.read(READ_BYTES)
            self.hash.update(data)
            self._data, self._at = memoryview(data), 0
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        self.position += len(piece)
        return piece

    def take(self, size: int) -> bytes:
        """Exactly ``size`` bytes unless the stream ends."""
        piece = self.some(size)
        if len(piece) == size:
            return bytes(piece)
        parts = [piece]
        while (size := size - len(parts[-1])) > 0 and (piece := self.some(size)):
            parts.append(piece)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        while size > 0:
            if not (piece := self.some(size)):
                raise MalformedArchiveError("malformed tar: unexpected end of data")
            size -= len(piece)


class TarStream:
    """Members of an uncompressed tar stream in order; ``chunks`` and ``read`` give the data of the current one.

    Raises MalformedArchiveError for anything that is no well-formed tar. ``check`` is called now and then, and ends it by
    what it raises.
    """

    def __init__(self, source: Reader, *, check: Callable[[], None] | None = None) -> None:
        self._bytes = _Bytes(source, check)
        self._left = self._padding = 0
        self._header_bytes = self._global_bytes = 0
        self._global: dict[bytes, bytes] = {}
        self._members = 0

    def __iter__(self) -> Iterator[TarMember]:
        while (member := self._next()) is not None:
            yield member

    def chunks(self) -> Iterator[memoryview]:
        """Data of the current member as it is stored (for a sparse file: its segments one after the other)."""
        while self._left > 0:
            yield self.some(self._left)

    def some(self, size: int) -> memoryview:
        """At most ``size`` bytes of the current member, at least one but at its end."""
        if (wanted := min(size, self._left)) <= 0:
            return memoryview(b"")
        if not (piece := self._bytes.some(wanted)):
            raise MalformedArchiveError("malformed tar: unexpected end of data")
        self._left -= len(piece)
        return piece

    def read(self, size: int = -1, /) -> bytes:
        """Data of the current member as a file."""
        return bytes(self.some(self._left if size < 0 else size))

    def drain(self) -> tuple[str, int]:
        """Read to the end of the stream; digest and size of all its bytes."""
        while self._bytes.some(READ_BYTES):
            pass
        return f"sha256:{self._bytes.hash.hexdigest()}", self._bytes.position

    # -------------------------------------------------------------- headers

    def _next(self) -> TarMember | None:
        self._bytes.skip(self._left + self._padding)
        self._left = self._padding = self._header_bytes = 0
        records, long_name, long_link = list[tuple[bytes, bytes]](), b"", b""
        while True:
            block = self._take(BLOCK_BYTES)
            if not block or block == headers.ZEROS:
                if self._header_bytes > BLOCK_BYTES:
                    raise MalformedArchiveError("malformed tar: it ends after an extended header")
                return None
            member = headers.parse_header(block)
            if member.kind in (headers.PAX, headers.SOLARIS_PAX):
                records = headers.used(headers.parse_pax(self._extended(member)))
            elif member.kind == headers.GLOBAL_PAX:
                self._take_global(member)
            elif member.kind == headers.LONG_NAME:
                long_name = self._extended(member).partition(b"\0")[0]
            elif member.kind == headers.LONG_LINK:
                long_link = self._extended(member).partition(b"\0")[0]
            else:
                break
        self._members += 1
        if self._members > MEMBERS_MAX:
            raise MalformedArchiveError(f"malformed tar: more than {MEMBERS_MAX} members")
        by_key = {**self._global, **dict(records)}
        headers.apply_pax(member, by_key)
        member.name = headers.text(long_name) if long_name else member.name
        member.link_name = headers.text(long_link) if long_link else member.link_name
        headers.finish(member)
        self._padding = -member.stored % BLOCK_BYTES
        if member.kind == headers.GNU_SPARSE:
            self._old_sparse(member, block)
        elif member.kind == headers.REGULAR:
            self._pax_sparse(member, records, dict(records))
        self._left = member.stored
        return member

    def _take(self, size: int) -> bytes:
        self._header_bytes += size
        if self._header_bytes > HEADERS_BYTES_MAX:
            raise MalformedArchiveError("malformed tar: the headers of one member are too large")
        return self._bytes.take(size)

    def _extended(self, member: TarMember) -> bytes:
        """Content of an extended header."""
        size = member.size
        if size > PAX_BYTES_MAX:
            raise MalformedArchiveError(
                f"malformed tar: the headers of one member are too large ({size} bytes, at most {PAX_BYTES_MAX})"
            )
        data = self._take(size + -size % BLOCK_BYTES)
        if len(data) < size:
            raise MalformedArchiveError("malformed tar: unexpected end of data")
        return data[:size]

    def _take_global(self, member: TarMember) -> None:
        data = self._extended(member)
        self._global_bytes += BLOCK_BYTES + len(data)
        if self._global_bytes > GLOBAL_BYTES_MAX:
            raise MalformedArchiveError(f"malformed tar: more than {GLOBAL_BYTES_MAX} bytes of global headers")
        self._global.update(headers.of_all(headers.parse_pax(data)))
        self._header_bytes = 0  # counted above; the next one may be the end of the archive

    # --------------------------------------------------------- sparse files

    def _old_sparse(self, member: TarMember, block: bytes) -> None:
        """Four segments in the header, twenty-one in each block after it."""
        fields, more = [block[386:482]], block[482]
        while more:
            extension = self._take(BLOCK_BYTES)
            if len(extension) < BLOCK_BYTES:
                raise MalformedArchiveError("malformed tar: unexpected end of data")
            fields.append(extension[:504])
            more = extension[504]
        member.kind = headers.REGULAR
        segments = [segment for field in fields for segment in headers.gnu_segments(field)]
        headers.apply_sparse(member, headers.size_of(headers.number(block[483:495])), segments)

    def _pax_sparse(self, member: TarMember, records: list[tuple[bytes, bytes]], by_key: dict[bytes, bytes]) -> None:
        sparse = headers.sparse_map(records, by_key)
        if sparse is None:
            return
        if name := by_key.get(b"GNU.sparse.name"):
            member.name = headers.text(name)
        segments = self._map_before_data(member) if sparse.segments is None else sparse.segments
        headers.apply_sparse(member, sparse.size, segments)

    def _map_before_data(self, member: TarMember) -> headers.Segments:
        """Format 1.0: how many segments, then each one's offset and size, a line each, filled up to whole blocks."""
        rest, values, wanted = b"", list[int](), 1
        while len(values) < wanted:
            if member.stored < BLOCK_BYTES:
                raise MalformedArchiveError("malformed tar: a sparse map longer than its file")
            member.stored -= BLOCK_BYTES
            *lines, rest = (rest + self._take(BLOCK_BYTES)).split(b"\n")
            if len(rest) > BLOCK_BYTES:
                raise MalformedArchiveError("malformed tar: a sparse map that is none")
            for line in lines:
                if len(values) < wanted:
                    values.append(headers.decimal(line))
                    wanted = 1 + 2 * values[0]
        return headers.pairs(values[1:])
