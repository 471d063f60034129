"""Reads archives that may be compressed: the first bytes decide, never a media type or file name.

Bounds: a decompressor takes no more than ``WINDOW_BYTES_MAX`` for its window, whatever a header of a few bytes asks for
(132 bytes of xz may ask for 4 GB), and what comes out is at most ``FREE_BYTES`` and ``RATIO_MAX`` times what went in.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import TYPE_CHECKING, Protocol, cast

import zstandard
from isal import igzip_threaded, isal_zlib

from runtime.unpack.errors import MalformedArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

GZIP, ZSTD, BZIP2, XZ = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\x00"
MAGIC_BYTES = 6
WINDOW_BYTES_MAX = 1 << 27
"""What zstd itself takes by default, and twice what the highest level of xz wants."""
FREE_BYTES, RATIO_MAX = 8 << 30, 1100
"""gzip cannot do better than 1032 to one; beyond it lie files of zeros, and bombs."""
READ_BYTES = 1 << 17
_RLE_BLOCK = 1
_CUT_OFF = "compressed file ended before the end-of-stream marker was reached"  # as gzip words it

_ISAL_ERROR = cast("type[Exception]", isal_zlib.error)  # its stub calls the class an instance
_ERRORS: tuple[type[Exception], ...] = (EOFError, zlib.error, _ISAL_ERROR, zstandard.ZstdError, lzma.LZMAError)


class Reader(Protocol):
    """What of a binary file is read here."""

    def read(self, size: int = -1, /) -> bytes: ...


class _Plain(Reader, Protocol):
    def close(self) -> None: ...


class _Decompressor(Protocol):
    """What ``bz2`` and ``lzma`` agree upon."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


class Decompressed:
    """The plain bytes of ``source``, forward only. Close it, it may own a thread; the source stays open."""

    def __init__(self, source: Reader) -> None:
        self._source = _Counted(source)
        self._plain = _opened(self._source)
        self._out = 0

    def __enter__(self) -> Decompressed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._plain.close()

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes, at least one but at the end. Raises MalformedArchiveError, and what the source does."""
        try:
            data = self._plain.read(size)
        except _ERRORS as error:
            raise MalformedArchiveError(f"malformed layer: {error}") from error
        except OSError as error:
            if error.errno is None:  # gzip and bz2 report bad data so
                raise MalformedArchiveError(f"malformed layer: {error}") from error
            raise
        self._out += len(data)
        if self._out > FREE_BYTES + RATIO_MAX * self._source.taken:
            raise MalformedArchiveError(
                f"malformed layer: {self._source.taken} bytes decompress to more than {self._out - len(data)}"
            )
        return data


class _Counted:
    """A source whose first bytes were looked at."""

    def __init__(self, source: Reader) -> None:
        self._source, self.head = source, b""
        while len(self.head) < MAGIC_BYTES and (more := source.read(MAGIC_BYTES - len(self.head))):
            self.head += more
        self._rest = self.head
        self.taken = 0

    def close(self) -> None:
        """Not ours to close."""

    def read(self, size: int = -1, /) -> bytes:
        if self._rest:
            cut = len(self._rest) if size < 0 else size
            data, self._rest = self._rest[:cut], self._rest[cut:]
        else:
            data = self._source.read(size)
        self.taken += len(data)
        return data

    def readinto(self, buffer: object, /) -> int:
        view = memoryview(cast("bytearray", buffer))
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


class _Streams:
    """One compressed stream after another, with nothing but zeros between and after them."""

    def __init__(self, source: Reader, make: Callable[[], _Decompressor]) -> None:
        self._source, self._make = source, make
        self._current, self._input = make(), b""

    def close(self) -> None:
        """Nothing is held."""

    def read(self, size: int = -1, /) -> bytes:
        while True:
            if self._current.eof:
                if not self._next():
                    return b""
            elif self._current.needs_input and not self._input:
                self._input = self._source.read(READ_BYTES)
                if not self._input:
                    raise EOFError(_CUT_OFF)
            given, self._input = self._input, b""
            if data := self._current.decompress(given, size):
                return data

    def _next(self) -> bool:
        """Whether another stream follows; its bytes are the input then."""
        self._input = self._current.unused_data.lstrip(b"\0")
        while not self._input:
            if not (more := self._source.read(READ_BYTES)):
                return False
            self._input = more.lstrip(b"\0")
        self._current = self._make()
        return True


class _Frames:
    """Where in a stream of zstd's frames its reader is (RFC 8878, section 3.1): the fields that say how long others are.

    The library itself takes the end of its input for the end of the stream, also in the middle of a frame, and what of
    it knows better (``decompressobj``) puts out at once all that its input becomes, 32 000 times as much.
    """

    def __init__(self) -> None:
        self._field, self._skip = b"", 0
        self._await(4, self._magic)

    @property
    def between(self) -> bool:
        """Whether the last frame is whole and none has begun after it."""
        return self._then == self._magic and not self._field and not self._skip

    def follow(self, data: bytes) -> None:
        """``data`` is read next."""
        at = 0
        while at < len(data):
            if self._skip:
                passed = min(self._skip, len(data) - at)
                self._skip -= passed
                at += passed
                continue
            more = data[at : at + self._wanted - len(self._field)]
            at += len(more)
            self._field += more
            if len(self._field) == self._wanted:
                field, self._field = self._field, b""
                self._then(field)

    def _await(self, wanted: int, then: Callable[[bytes], None], *, skip: int = 0) -> None:
        self._skip, self._wanted, self._then = skip, wanted, then

    def _magic(self, field: bytes) -> None:
        if field == ZSTD:
            self._await(1, self._descriptor)
        else:  # a frame to be skipped; anything else the library refuses
            self._await(4, self._skippable)

    def _skippable(self, field: bytes) -> None:
        self._await(4, self._magic, skip=int.from_bytes(field, "little"))

    def _descriptor(self, field: bytes) -> None:
        single, self._checksum_bytes = field[0] >> 5 & 1, 4 * (field[0] >> 2 & 1)
        window, dictionary, content = 1 - single, (0, 1, 2, 4)[field[0] & 3], (single, 2, 4, 8)[field[0] >> 6]
        self._await(3, self._block, skip=window + dictionary + content)

    def _block(self, field: bytes) -> None:
        header = int.from_bytes(field, "little")
        stored = 1 if header >> 1 & 3 == _RLE_BLOCK else header >> 3
        if header & 1:  # the last one
            self._await(4, self._magic, skip=stored + self._checksum_bytes)
        else:
            self._await(3, self._block, skip=stored)


class _Zstd:
    """zstd, one frame after another, the last one whole."""

    def __init__(self, source: Reader) -> None:
        self._frames = _Frames()
        decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
        file = cast("BinaryIO", _Followed(source, self._frames))  # as much of one as the library uses
        self._plain = cast("_Plain", decompressor.stream_reader(file, read_across_frames=True, closefd=False))

    def close(self) -> None:
        self._plain.close()

    def read(self, size: int = -1, /) -> bytes:
        data = self._plain.read(size)
        if not data and size and not self._frames.between:
            raise EOFError(_CUT_OFF)
        return data


class _Followed:
    """What is read of ``source``, told to ``frames``."""

    def __init__(self, source: Reader, frames: _Frames) -> None:
        self._source, self._frames = source, frames

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size)
        self._frames.follow(data)
        return data


def _opened(source: _Counted) -> _Plain:
    head = source.head
    file = cast("BinaryIO", source)  # as much of one as these libraries use
    if head.startswith(GZIP):
        return cast("_Plain", igzip_threaded.open(file, "rb", threads=1))  # type: ignore[no-untyped-call]  # no stub
    if head.startswith(ZSTD):
        return _Zstd(source)
    if head.startswith(BZIP2):
        return _Streams(source, bz2.BZ2Decompressor)
    if head.startswith(XZ):
        return _Streams(source, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=WINDOW_BYTES_MAX))
    return source
