"""Sealed files: append-only sequences of encrypted, checksummed records. Journal and snapshots are written in this form.

::

    file   = header record*
    header = magic (8)  key ID (8)  salt (32)  CRC-32 of these (4)
    record = length (4)  number (4)  CRC-32 of payload (4)  CRC-32 of these three (4)  payload (length)

The payload is AES-256-GCM under a key derived (HKDF-SHA256, the file's random salt) from the manager's
data key, with the record's number as nonce and the header as associated data. A file is written by one
process, numbers only rise, and nothing is ever appended to a file of an earlier start, so that no nonce
meets the same key twice: not after a torn tail was cut, not after a restored backup.

Why two checks: the CRC tells damage from a wrong key, and it tells where; the tag tells that the record is ours.

**Torn or damaged?** A writer has at most one record that is not yet synced, the last. A disk writes whole
sectors, so what a crash leaves of that record lacks whole sectors (zeros, or the end of the file). Damage
that this does not explain, or that has a record behind it, is corruption and refused.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from manager.consensus.files import AppendFile, Files
from manager.consensus.port import CorruptStateError

DATA_KEY_SIZE_BYTES = 32
SECTOR_SIZE_BYTES = 512
RECORD_SIZE_BYTES_MAX = 64 * 1024 * 1024

_HEADER = struct.Struct(">8s8s32sI")
_HEAD = struct.Struct(">IIII")
HEADER_SIZE_BYTES = _HEADER.size


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The data keys a member can read with; it writes with the first.

    Attributes:
        keys: 32 bytes each; the current key, then those that older files may still be under.
    """

    keys: tuple[bytes, ...]

    def __init__(self, current: bytes, previous: Sequence[bytes] = ()) -> None:
        keys = (current, *previous)
        if any(len(key) != DATA_KEY_SIZE_BYTES for key in keys):
            raise ValueError(f"a data key has {DATA_KEY_SIZE_BYTES} bytes")
        object.__setattr__(self, "keys", keys)

    def __repr__(self) -> str:
        return f"KeyRing({len(self.keys)} keys)"

    @property
    def current(self) -> bytes:
        return self.keys[0]

    def find(self, key_id: bytes) -> bytes | None:
        return next((key for key in self.keys if _key_id(key) == key_id), None)


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"swarm data key id\0" + key).digest()[:8]


def _cipher(key: bytes, salt: bytes, magic: bytes) -> AESGCM:
    return AESGCM(HKDF(algorithm=SHA256(), length=32, salt=salt, info=magic).derive(key))


class SealedWriter:
    """Writes one sealed file, from its creation to its end.

    Args:
        path: must not exist.
        magic: 8 bytes that name the kind of file.

    Raises:
        OSError: also from every method. After an error the file must not be written any further.
    """

    def __init__(self, files: Files, path: Path, keys: KeyRing, magic: bytes) -> None:
        salt = os.urandom(32)
        body = struct.pack(">8s8s32s", magic, _key_id(keys.current), salt)
        self.path = path
        self._associated = body
        self._cipher = _cipher(keys.current, salt, magic)
        self._number = 0
        self._file: AppendFile = files.create(path)
        header = body + struct.pack(">I", zlib.crc32(body))
        self._file.write(header)
        self.size_bytes = len(header)

    def append(self, plain: bytes) -> None:
        """Write one record; durable after ``sync``."""
        payload = self._cipher.encrypt(_nonce(self._number), plain, self._associated)
        if len(payload) > RECORD_SIZE_BYTES_MAX:
            raise ValueError(f"record of {len(payload)} bytes, largest is {RECORD_SIZE_BYTES_MAX}")
        first = struct.pack(">III", len(payload), self._number, zlib.crc32(payload))
        self._number += 1
        self._file.write(b"".join((first, struct.pack(">I", zlib.crc32(first)), payload)))
        self.size_bytes += _HEAD.size + len(payload)

    def sync(self) -> None:
        self._file.sync()

    def close(self) -> None:
        self._file.close()


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


@dataclass(frozen=True, slots=True)
class SealedContent:
    """What a sealed file holds.

    Attributes:
        records: the plain records in order.
        end: offset behind the last whole record.
        torn: bytes behind ``end`` are what a crash left of one unsynced record.
    """

    records: list[bytes]
    end: int
    torn: bool


def read_sealed(files: Files, path: Path, keys: KeyRing, magic: bytes) -> SealedContent:
    """Read and verify a whole file.

    Raises:
        CorruptStateError: damaged otherwise than by a torn tail, of another kind, or under an unknown key.
    """
    data = files.read(path)
    if len(data) < HEADER_SIZE_BYTES or not any(data[:HEADER_SIZE_BYTES]):
        if len(data) <= HEADER_SIZE_BYTES or not any(data):
            return SealedContent([], 0, torn=True)  # crashed while creating it; nothing was in it
        raise CorruptStateError(f"{path}: offset 0: header missing")
    cipher, associated = _open_header(path, data[:HEADER_SIZE_BYTES], keys, magic)
    records: list[bytes] = []
    offset = HEADER_SIZE_BYTES
    while offset < len(data):
        head = data[offset : offset + _HEAD.size]
        length = _head_length(head, len(records))
        payload = data[offset + _HEAD.size : offset + _HEAD.size + length] if length is not None else b""
        if length is None or len(payload) < length or zlib.crc32(payload) != struct.unpack_from(">I", head, 8)[0]:
            if _is_torn(data, offset, length):
                return SealedContent(records, offset, torn=True)
            raise CorruptStateError(f"{path}: offset {offset}: record {len(records)} is damaged")
        records.append(_decrypt(path, offset, cipher, associated, len(records), payload))
        offset += _HEAD.size + length
    return SealedContent(records, offset, torn=False)


def stream_sealed(files: Files, path: Path, keys: KeyRing, magic: bytes) -> Iterator[bytes]:
    """The plain records of a file that must be whole, one at a time.

    Raises:
        CorruptStateError: anything at all is wrong with it, a torn tail included.
    """
    buffer = bytearray()
    chunks = files.read_chunks(path, 1 << 20)

    def fill(size: int, *, offset: int) -> bool:
        while len(buffer) < size:
            chunk = next(chunks, None)
            if chunk is None:
                if buffer:
                    raise CorruptStateError(f"{path}: offset {offset}: file ends inside a record")
                return False
            buffer.extend(chunk)
        return True

    if not fill(HEADER_SIZE_BYTES, offset=0):
        raise CorruptStateError(f"{path}: offset 0: file is empty")
    cipher, associated = _open_header(path, bytes(buffer[:HEADER_SIZE_BYTES]), keys, magic)
    del buffer[:HEADER_SIZE_BYTES]
    offset, number = HEADER_SIZE_BYTES, 0
    while fill(_HEAD.size, offset=offset):
        head = bytes(buffer[: _HEAD.size])
        length = _head_length(head, number)
        if length is None:
            raise CorruptStateError(f"{path}: offset {offset}: record {number} is damaged")
        fill(_HEAD.size + length, offset=offset)
        payload = bytes(buffer[_HEAD.size : _HEAD.size + length])
        if zlib.crc32(payload) != struct.unpack_from(">I", head, 8)[0]:
            raise CorruptStateError(f"{path}: offset {offset}: record {number} is damaged")
        del buffer[: _HEAD.size + length]
        yield _decrypt(path, offset, cipher, associated, number, payload)
        offset, number = offset + _HEAD.size + length, number + 1


def _open_header(path: Path, header: bytes, keys: KeyRing, magic: bytes) -> tuple[AESGCM, bytes]:
    found_magic, key_id, salt, crc = _HEADER.unpack(header)
    if zlib.crc32(header[:-4]) != crc:
        raise CorruptStateError(f"{path}: offset 0: header is damaged")
    if found_magic != magic:
        raise CorruptStateError(f"{path}: offset 0: not a file of this kind or version")
    key = keys.find(key_id)
    if key is None:
        raise CorruptStateError(f"{path}: offset 0: encrypted with a key this manager does not have")
    return _cipher(key, salt, magic), header[:-4]


def _decrypt(path: Path, offset: int, cipher: AESGCM, associated: bytes, number: int, payload: bytes) -> bytes:
    try:
        return cipher.decrypt(_nonce(number), payload, associated)
    except InvalidTag:
        raise CorruptStateError(f"{path}: offset {offset}: record {number} fails authentication") from None


def _head_length(head: bytes, number: int) -> int | None:
    """The payload's length, or None if the head is not that of record ``number``."""
    if len(head) < _HEAD.size:
        return None
    length, found, _, crc = _HEAD.unpack(head)
    if zlib.crc32(head[:12]) != crc or found != number or length > RECORD_SIZE_BYTES_MAX:
        return None
    return int(length)


def _is_torn(data: bytes, offset: int, length: int | None) -> bool:
    """Can a crash during the last write explain the bad record at ``offset``?

    ``length`` is None where the head itself is bad; then only the head's own sectors are judged, and a
    whole record further on convicts.
    """
    end = offset + _HEAD.size + (length or 0)
    if length is not None and end < len(data):
        return False  # something was written behind it, so it had been synced
    if length is None and _record_follows(data, offset + 1):
        return False
    position = offset
    while position < end:
        sector_end = min(end, (position // SECTOR_SIZE_BYTES + 1) * SECTOR_SIZE_BYTES)
        if sector_end > len(data) or not any(data[position:sector_end]):
            return True
        position = sector_end
    return False


def _record_follows(data: bytes, offset: int) -> bool:
    for position in range(offset, len(data) - _HEAD.size):
        length, _, payload_crc, crc = _HEAD.unpack_from(data, position)
        if zlib.crc32(data[position : position + 12]) == crc and length <= RECORD_SIZE_BYTES_MAX and length >= 16:
            payload = data[position + _HEAD.size : position + _HEAD.size + length]
            if len(payload) == length and zlib.crc32(payload) == payload_crc:
                return True
    return False
