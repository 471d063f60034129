"""What stands around a message inside another one: its tag and its length, as protobuf writes them. Pure.

Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError, Message

_LENGTH_DELIMITED = 2


def tag_of(message: type[Message], field: str) -> int:
    """The number before the length of a message that stands in that field."""
    return message.DESCRIPTOR.fields_by_name[field].number << 3 | _LENGTH_DELIMITED


def varint(value: int) -> bytes:
    """A number of no fixed size."""
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    pieces = bytearray()
    while value >= 0x80:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)


def framed(tag: bytes, content: bytes) -> bytes:
    return b"".join((tag, varint(len(content)), content))


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at ``at``, and where it ends. Raises: DecodeError."""
    try:
        byte = data[at]
        if byte < 0x80:
            return byte, at + 1
        value, shift = byte & 0x7F, 7
        while True:
            at += 1
            byte = data[at]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at + 1
            shift += 7
    except IndexError:
        raise DecodeError("cut short") from None


def content_start(data: bytes, at: int) -> int:
    """Where what the length at ``at`` speaks of begins; it has to reach to the end. Raises: DecodeError."""
    length, start = read_varint(data, at)
    if start + length != len(data):
        raise DecodeError(f"frame of {length} bytes around {len(data) - start}")
    return start
