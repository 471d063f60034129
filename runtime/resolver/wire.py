"""DNS messages as bytes (RFC 1035, 2782, 6891): questions are read, answers put together, nothing is decided. Pure.

Names are kept in wire form and lower case: a length of a label is at most 63, below every letter, so that
``bytes.lower`` leaves lengths alone. A compressed name stands in no question.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Sequence

import msgspec

A, PTR, AAAA, SRV, OPT, ANY = 1, 12, 28, 33, 41, 255
META_TYPES = range(128, 255)
"""Questions about messages and whole zones (RFC 6895, section 3.1), ``ANY`` left out: nothing a resolver passes on."""
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
_BADVERS = 16

HEADER_BYTES = 12
UDP_BYTES_MIN = 512
"""What a client takes that says nothing of sizes (RFC 1035, section 4.2.1)."""
UDP_BYTES_MAX = 65507
TCP_BYTES_MAX = 65535
EDNS_BYTES = 1232
"""What we say that we take: no fragments (RFC 9715)."""

TTL_S = 2
"""So long a client may keep an answer: a task that goes leaves the answers before it is told to stop."""

_NAME_BYTES_MAX = 255
_LABEL_BYTES_MAX = 63
_POINTER = 0xC0
_QUESTION_NAME = b"\xc0\x0c"
"""A pointer to the name of the question, which begins behind the header."""
_V4_ZONE, _V6_ZONE = b"\7in-addr\4arpa\0", b"\3ip6\4arpa\0"
_DECIMAL = re.compile(rb"0|[1-9][0-9]{0,2}")
_COUNTS = struct.Struct(">HHHH")
_FIXED = struct.Struct(">HHIH")
_SHORT = struct.Struct(">H")
_RESPONSE, _OPCODE, _TRUNCATED, _RECURSION_DESIRED = 0x80, 0x78, 0x02, 0x01
_RECURSION_AVAILABLE, _CHECKING_DISABLED = 0x80, 0x10
_DNSSEC_OK = 0x8000


def name_bytes(text: str) -> bytes:
    """A name in wire form, lower case; a dot at its end counts for nothing.

    Raises ValueError: an empty label, one of more than 63 bytes, more than 255 in all.
    """
    labels = [label.encode() for label in text.removesuffix(".").split(".")]
    if any(not 0 < len(label) <= _LABEL_BYTES_MAX for label in labels):
        raise ValueError(f"no name of the DNS: {text!r}")
    found = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    if len(found) > _NAME_BYTES_MAX:
        raise ValueError(f"no name of the DNS: {text!r}")
    return found.lower()


def address_bytes(address: str) -> bytes:
    """4 or 16 bytes. Raises OSError for what is no address."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def reversed_address(name: bytes) -> bytes | None:
    """The address, 4 or 16 bytes, that a reverse question's name (lower case) asks for (RFC 1035, 3.5; RFC 3596, 2.5)."""
    if name.endswith(_V4_ZONE):
        labels = name.removesuffix(_V4_ZONE)
        numbers = [labels[at + 1 : at + 1 + labels[at]] for at in _label_starts(labels)]
        if len(numbers) == 4 and all(_DECIMAL.fullmatch(number) and int(number) < 256 for number in numbers):
            return bytes(int(number) for number in reversed(numbers))
    elif name.endswith(_V6_ZONE) and len(name) == 64 + len(_V6_ZONE) and name[:64:2] == b"\1" * 32:
        digits = name[63:0:-2]
        if all(digit in b"0123456789abcdef" for digit in digits):
            return bytes.fromhex(digits.decode())
    return None


def _label_starts(labels: bytes) -> list[int]:
    found, at = [], 0
    while at < len(labels):
        found.append(at)
        at += 1 + labels[at]
    return found


class Query(msgspec.Struct, frozen=True):
    """A question that can be answered.

    ``name`` is lower case; ``kind`` its type, of class IN; ``question`` as it came. ``size_bytes`` is how much the client
    takes by UDP, ``edns`` whether it speaks EDNS, with ``dnssec`` for its DO bit.
    """

    message: bytes
    name: bytes
    kind: int
    question: bytes
    size_bytes: int = UDP_BYTES_MIN
    edns: bool = False
    dnssec: bool = False


class Refusal(msgspec.Struct, frozen=True):
    """What a question gets that cannot be answered, as a whole message."""

    answer: bytes


def parse(message: bytes) -> Query | Refusal | None:
    """None for what must not be answered: no question at all (two servers would answer each other for ever)."""
    if len(message) < HEADER_BYTES or message[2] & _RESPONSE:
        return None
    if message[2] & _OPCODE:
        return _refusal(message, NOTIMP)
    questions, answers, authorities, additional = _COUNTS.unpack_from(message, 4)
    end = _end_of_name(message, HEADER_BYTES)
    if questions != 1 or answers or authorities or not end or end + 4 > len(message):
        return _refusal(message, FORMERR)
    kind, class_ = struct.unpack_from(">HH", message, end)
    question = message[HEADER_BYTES : end + 4]
    options = _edns(message, end + 4, additional)
    if options is None or kind == OPT:
        return _refusal(message, FORMERR, question)
    size, flags, edns = options
    query = Query(
        message,
        message[HEADER_BYTES:end].lower(),
        kind,
        question,
        min(max(size, UDP_BYTES_MIN), UDP_BYTES_MAX),
        edns,
        bool(flags & _DNSSEC_OK),
    )
    if flags >> 16 & 0xFF:  # a version of EDNS that nobody knows (RFC 6891, section 6.1.3)
        return Refusal(reply(query, rcode=_BADVERS))
    if class_ != IN or kind in META_TYPES:
        return Refusal(reply(query, rcode=REFUSED))
    return query


def _end_of_name(message: bytes, start: int) -> int:
    """Behind the name's last byte; 0 when it is none, or has a pointer."""
    at, size = start, len(message)
    while at < size:
        length = message[at]
        at += 1 + length
        if length == 0:
            return at if at - start <= _NAME_BYTES_MAX else 0
        if length > _LABEL_BYTES_MAX:
            return 0
    return 0


def _edns(message: bytes, at: int, records: int) -> tuple[int, int, bool] | None:
    """Size, flags, whether there was an OPT record; None when the rest is not ``records`` records with at most one OPT."""
    found: tuple[int, int, bool] = (0, 0, False)
    for _ in range(records):  # at most as many as there are bytes for
        while at < len(message) and 0 < message[at] < _POINTER:
            at += 1 + message[at]
        if at >= len(message):
            return None
        owner_is_root = message[at] == 0
        at += 1 if owner_is_root else 2
        if at + _FIXED.size > len(message):
            return None
        kind, class_, ttl, length = _FIXED.unpack_from(message, at)
        at += _FIXED.size + length
        if kind == OPT:
            if found[2] or not owner_is_root:
                return None
            found = class_, ttl, True
    return found if at == len(message) else None


def record(kind: int, data: bytes, owner: bytes = _QUESTION_NAME) -> bytes:
    """A resource record; its owner is the question's name, or another in wire form."""
    return owner + _FIXED.pack(kind, IN, TTL_S, len(data)) + data


def srv_data(port: int, target: bytes) -> bytes:
    """Of an SRV record (RFC 2782): one priority, no weights."""
    return struct.pack(">HHH", 0, 0, port) + target


def reply(
    query: Query, answers: Sequence[bytes] = (), extra: Sequence[bytes] = (), *, rcode: int = NOERROR, tcp: bool = False
) -> bytes:
    """The answer with as many records as the client takes; some left out are said so (TC), extra ones are not."""
    message = query.message
    opt = b""
    if query.edns:
        flags = (rcode >> 4) << 24 | (_DNSSEC_OK if query.dnssec else 0)
        opt = b"\0" + _FIXED.pack(OPT, EDNS_BYTES, flags, 0)
    room = (TCP_BYTES_MAX if tcp else query.size_bytes) - HEADER_BYTES - len(query.question) - len(opt)
    kept, room = _fitting(answers, room)
    more = _fitting(extra, room)[0] if len(kept) == len(answers) else []
    flags2 = _RESPONSE | message[2] & (_OPCODE | _RECURSION_DESIRED)
    if len(kept) < len(answers):
        flags2 |= _TRUNCATED
    flags3 = _RECURSION_AVAILABLE | message[3] & _CHECKING_DISABLED | rcode & 0xF
    counts = _COUNTS.pack(1, len(kept), 0, len(more) + bool(opt))
    return b"".join((message[:2], bytes((flags2, flags3)), counts, query.question, *kept, *more, opt))


def _fitting(records: Sequence[bytes], room: int) -> tuple[Sequence[bytes], int]:
    """As many from the start as fit, and what room they leave."""
    for number, each in enumerate(records):
        if len(each) > room:
            return records[:number], room
        room -= len(each)
    return records, room


def _refusal(message: bytes, rcode: int, question: bytes = b"") -> Refusal:
    flags = bytes((_RESPONSE | message[2] & (_OPCODE | _RECURSION_DESIRED), _RECURSION_AVAILABLE | rcode))
    return Refusal(message[:2] + flags + _COUNTS.pack(1 if question else 0, 0, 0, 0) + question)


def failure(query: Query, rcode: int = SERVFAIL) -> bytes:
    """The answer that there is none."""
    return reply(query, rcode=rcode)


def rcode_of(message: bytes) -> int:
    """Of an answer that ``answers`` let through."""
    return message[3] & 0xF


def answers(message: bytes, identifier: bytes, question: bytes) -> bool:
    """Whether a message is one to the question (as it was sent) with this ID: who guesses must guess all of it.

    A server that could not read the question need not repeat it.
    """
    if len(message) < HEADER_BYTES or message[:2] != identifier or not message[2] & _RESPONSE:
        return False
    if _SHORT.unpack_from(message, 4)[0] == 0:
        return rcode_of(message) in (FORMERR, SERVFAIL, NOTIMP, REFUSED)
    asked = message[HEADER_BYTES : HEADER_BYTES + len(question)]
    return asked[:-4].lower() == question[:-4].lower() and asked[-4:] == question[-4:]
