"""Reads tars that may be compressed: the first bytes decide, never a media type or file name."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from typing import BinaryIO, cast

import zstandard
from isal import igzip_threaded, isal_zlib

from runtime.images.content import Reader

GZIP, ZSTD, BZIP2, XZ = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\x00"
MAGIC_BYTES = 6

_ISAL_ERROR = cast("type[Exception]", isal_zlib.error)  # its stub calls the class an instance
ERRORS: tuple[type[Exception], ...] = (EOFError, zlib.error, _ISAL_ERROR, zstandard.ZstdError, lzma.LZMAError)
"""What a decompressor raises on bad input, besides OSError without errno (gzip, bz2)."""


class Rewound(io.RawIOBase):
    """A source whose first bytes were looked at; forward only."""

    def __init__(self, head: bytes, source: Reader) -> None:
        super().__init__()
        self._head, self._source = head, source

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            return self.readall()
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._source.read(size)

    def readinto(self, buffer: object, /) -> int:
        view = memoryview(cast("bytearray", buffer))
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


def decompressed(source: Reader) -> BinaryIO:
    """A binary file of the plain bytes of ``source``; close it, it may own a thread (the source stays open)."""
    head = b""
    while len(head) < MAGIC_BYTES and (more := source.read(MAGIC_BYTES - len(head))):
        head += more
    whole = Rewound(head, source)
    if head.startswith(GZIP):
        return cast("BinaryIO", igzip_threaded.open(whole, "rb", threads=1))  # type: ignore[no-untyped-call]  # no stub
    if head.startswith(ZSTD):
        reader = zstandard.ZstdDecompressor().stream_reader(
            cast("BinaryIO", whole), read_across_frames=True, closefd=False
        )
        return cast("BinaryIO", reader)
    if head.startswith(BZIP2):
        return cast("BinaryIO", bz2.BZ2File(cast("BinaryIO", whole)))
    if head.startswith(XZ):
        return cast("BinaryIO", lzma.LZMAFile(cast("BinaryIO", whole)))
    return cast("BinaryIO", whole)
