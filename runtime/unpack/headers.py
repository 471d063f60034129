"""Headers of tar archives: bytes in, checked values out, in time linear in the bytes; no I/O.

The standard library's parser is not used: before Python 3.11.10 a pax header of a permitted size keeps the interpreter
busy for minutes (CVE-2024-6232), and it takes negative sizes.

Sources: POSIX.1-2017 ``pax``; GNU tar manual, "Basic Tar Format" and "Storing Sparse Files"; Go ``archive/tar`` where
they leave a choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from runtime.unpack.errors import MalformedArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

BLOCK_BYTES = 512
ZEROS = bytes(BLOCK_BYTES)
SIZE_MAX = (1 << 63) - 1
DIGITS_MAX = 20
MTIME_S_MAX = 1 << 34

REGULAR, LINK, SYMLINK, CHARACTER, BLOCK, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
CONTIGUOUS, OLD_REGULAR, GNU_SPARSE = b"7", b"\0", b"S"
LONG_NAME, LONG_LINK, PAX, SOLARIS_PAX, GLOBAL_PAX = b"L", b"K", b"x", b"X", b"g"
_WITHOUT_DATA = frozenset({LINK, SYMLINK, CHARACTER, BLOCK, DIRECTORY, FIFO})
XATTR = b"SCHILY.xattr."
_USED = frozenset({b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"})
_SPARSE = b"GNU.sparse."

Segments = list[tuple[int, int]]
"""``(offset, size)`` of the stored parts of a sparse file, ascending."""


class TarMember:
    """One member of an archive.

    Attributes:
        name, link_name: as they are in the archive; bytes that are no UTF-8 as surrogates.
        kind: ``REGULAR``, ``LINK``, ... or a type that is not known here.
        size: of the file as it shall be; 0 for what has no data.
        stored: bytes of data that follow in the archive.
        segments: of a sparse file; None for others.
        mtime_ns: 0 for a time that cannot be.
        xattrs: by their names without a prefix of tar's.
    """

    __slots__ = (
        "gid",
        "kind",
        "link_name",
        "major",
        "minor",
        "mode",
        "mtime_ns",
        "name",
        "segments",
        "size",
        "stored",
        "uid",
        "xattrs",
    )

    def __init__(self) -> None:
        self.name, self.link_name, self.kind = "", "", REGULAR
        self.mode = self.uid = self.gid = self.size = self.stored = self.mtime_ns = self.major = self.minor = 0
        self.segments: Segments | None = None
        self.xattrs: dict[str, bytes] = {}


class SparseMap(NamedTuple):
    """What pax records say of a sparse file: its segments, or that they come before the data (format 1.0)."""

    size: int
    segments: Segments | None


def parse_header(block: bytes) -> TarMember:
    """One block, without what extended headers before it say. Raises MalformedArchiveError."""
    if len(block) < BLOCK_BYTES:
        raise MalformedArchiveError("malformed tar: truncated header")
    _check_sum(block)
    member = TarMember()
    member.kind = REGULAR if (kind := block[156:157]) in (OLD_REGULAR, CONTIGUOUS) else kind
    member.name, member.link_name = text(_until_nul(block[:100])), text(_until_nul(block[157:257]))
    if block[257:263] == b"ustar\0" and (prefix := _until_nul(block[345:500])):
        member.name = f"{text(prefix)}/{member.name}"
    member.mode, member.uid, member.gid = number(block[100:108]), number(block[108:116]), number(block[116:124])
    member.size = member.stored = size_of(number(block[124:136]))
    member.mtime_ns = _checked_time(number(block[136:148]) * 1_000_000_000)
    if kind in (CHARACTER, BLOCK):
        member.major, member.minor = number(block[329:337]), number(block[337:345])
    return member


def finish(member: TarMember) -> None:
    """Once all headers were taken in, as a long name's first 100 bytes may end anywhere: what has no data has none."""
    if member.kind == REGULAR and member.name.endswith("/"):  # how tars of before POSIX write directories
        member.kind = DIRECTORY
    if member.kind in _WITHOUT_DATA:
        member.size = member.stored = 0


def parse_pax(data: bytes) -> list[tuple[bytes, bytes]]:
    """Records ``"<length> <key>=<value>\\n"`` in their order. Raises MalformedArchiveError."""
    records, at = list[tuple[bytes, bytes]](), 0
    while at < len(data):
        space = data.find(b" ", at, at + DIGITS_MAX)
        digits = data[at:space]
        end = at + int(digits) if space > at and digits.isdigit() else 0
        if not space < end <= len(data) or data[end - 1 : end] != b"\n":
            raise MalformedArchiveError("malformed tar: an extended header that is none")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise MalformedArchiveError("malformed tar: an extended header that is none")
        records.append((key, value))
        at = end
    return records


def used(records: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Those that mean something here; the rest need not be kept."""
    return [(key, value) for key, value in records if key in _USED or key.startswith((XATTR, _SPARSE))]


def of_all(records: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What a global header may say of all members to come: few things, as each of them pays for it again."""
    return [(key, value) for key, value in records if key in _USED]


def apply_pax(member: TarMember, records: Mapping[bytes, bytes]) -> None:
    """What pax records say of a member; an empty value is none. Raises MalformedArchiveError."""
    for key, value in records.items():
        if key.startswith(XATTR):
            member.xattrs[text(key[len(XATTR) :])] = value
        elif not value:
            continue
        elif key == b"path":
            member.name = text(value)
        elif key == b"linkpath":
            member.link_name = text(value)
        elif key == b"size":
            member.size = member.stored = decimal(value)
        elif key == b"uid":
            member.uid = decimal(value)
        elif key == b"gid":
            member.gid = decimal(value)
        elif key == b"mtime":
            member.mtime_ns = _checked_time(_pax_time(value))


def sparse_map(records: Iterable[tuple[bytes, bytes]], by_key: Mapping[bytes, bytes]) -> SparseMap | None:
    """Of a member with these records; None for one that is not sparse. Raises MalformedArchiveError.

    Formats: 0.0 repeats two keys for each segment, 0.1 has all in one value, 1.0 puts them before the data.
    """
    version = by_key.get(b"GNU.sparse.major", b""), by_key.get(b"GNU.sparse.minor", b"")
    if version == (b"1", b"0"):
        return SparseMap(decimal(by_key.get(b"GNU.sparse.realsize", b"")), None)
    if b"GNU.sparse.map" in by_key:
        values = by_key[b"GNU.sparse.map"].split(b",")
    else:
        values = [value for key, value in records if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes")]
    if not values and b"GNU.sparse.size" not in by_key:
        return None
    size = decimal(by_key.get(b"GNU.sparse.size", by_key.get(b"GNU.sparse.realsize", b"")))
    return SparseMap(size, pairs([decimal(value) for value in values if value]))


def apply_sparse(member: TarMember, size: int, segments: Segments) -> None:
    """Make it a sparse file of these parts. Raises MalformedArchiveError: they overlap, or are not what is stored."""
    end = total = 0
    for offset, length in segments:
        if offset < end:
            raise MalformedArchiveError(f"malformed tar: {member.name[:200]!r} has data outside of the file")
        end, total = offset + length, total + length
    if end > size or total > member.stored:
        raise MalformedArchiveError(f"malformed tar: {member.name[:200]!r} has data outside of the file")
    member.size, member.segments = size, segments


def gnu_segments(fields: bytes) -> Segments:
    """Of the old GNU format: ``fields`` are pairs of twelve bytes each; an empty one ends them."""
    found = Segments()
    for at in range(0, len(fields) - 23, 24):
        if not fields[at : at + 24].strip(b"\0"):
            break
        found.append((size_of(number(fields[at : at + 12])), size_of(number(fields[at + 12 : at + 24]))))
    return found


def pairs(values: list[int]) -> Segments:
    """Raises MalformedArchiveError for an odd number of values."""
    if len(values) % 2:
        raise MalformedArchiveError("malformed tar: a sparse file with half a segment")
    return list(zip(values[::2], values[1::2], strict=True))


def number(field: bytes) -> int:
    """Octal digits between blanks, or base 256 (GNU). Raises MalformedArchiveError."""
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        return value - (1 << bits) if field[0] & 0x40 else value
    digits = field.strip(b" \0").partition(b"\0")[0].rstrip(b" ")
    if digits.strip(b"01234567"):
        _refuse(field)
    return int(digits or b"0", 8)


def decimal(value: bytes) -> int:
    """A size, offset or ID of a pax record. Raises MalformedArchiveError."""
    if not value.isdigit() or len(value) > DIGITS_MAX:
        _refuse(value)
    return size_of(int(value))


def size_of(value: int) -> int:
    """Raises MalformedArchiveError for one that no file can have."""
    if not 0 <= value <= SIZE_MAX:
        raise MalformedArchiveError(f"malformed tar: impossible size {value}")
    return value


def text(value: bytes) -> str:
    """A name; bytes that are no UTF-8 come back from it unchanged."""
    return value.decode("utf-8", "surrogateescape")


def _refuse(field: bytes) -> int:
    raise MalformedArchiveError(f"malformed tar: {field[:24]!r} is no number")


def _until_nul(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _check_sum(block: bytes) -> None:
    stated = number(block[148:156])
    without = block[:148] + block[156:]
    total = sum(without) + 8 * 0x20
    # Some old tars add up signed bytes.
    if stated != total and stated != total - 256 * sum(byte >= 0x80 for byte in without):
        raise MalformedArchiveError("malformed tar: bad checksum")


def _pax_time(value: bytes) -> int:
    """Nanoseconds of ``"1700000000.123456789"``; what is finer is cut off."""
    whole, _, fraction = value.partition(b".")
    sign = -1 if whole.startswith(b"-") else 1
    whole = whole.removeprefix(b"-")
    if not (whole or b"0").isdigit() or not (fraction or b"0").isdigit() or len(whole) > DIGITS_MAX:
        _refuse(value)
    return sign * (int(whole or b"0") * 1_000_000_000 + int(fraction[:9].ljust(9, b"0")))


def _checked_time(ns: int) -> int:
    return ns if 0 <= ns <= MTIME_S_MAX * 1_000_000_000 else 0
