"""The JSON texts of listed objects, kept from list to list, and answers joined from them.

Managers send each object of a list encoded by itself. What a text was made from is kept beside it and compared, byte for
byte, so a text is used for the very object it says and for no other version of it, whichever manager sent that. A text
depends on the object alone: neither on the API version nor on the request; what depends on these is joined to it.

Kept is what lists of the last one to two ``KEPT_S`` had in them, one text an object: the new version of an object takes
the place of the old one, objects that are gone are forgotten, and so is everything once nobody lists. Beyond
``BYTES_MAX`` nothing is added. A task takes 1.3 KB, 10 000 tasks 13 MB.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import NamedTuple

from aiohttp import web
from google.protobuf.message import Message

from api.json_codec import encode_json
from base.slices import slices

KEPT_S = 60.0
BYTES_MAX = 32 * 1024 * 1024
ENTRY_BYTES_MAX = 16 * 1024
"""What is larger (a config with its data) costs more to keep than to encode."""

OBJECTS_AT_A_TIME = 250
"""Encoded in some 3 ms where their texts are new; joined and sent together."""

_ID_BYTES = 27
"""What is in front of an encoded object: its ID of 25 characters, behind tag and length. Told apart by these bytes, an
object's versions replace each other; were they of something else, texts would be forgotten later, and nothing else."""

_OVERHEAD_BYTES = 300
"""Of an entry beside its bytes: three objects, a tuple and a place in a dict."""


class Part(NamedTuple):
    """One object.

    Attributes:
        data: the encoded message.
        text: its JSON, or the beginning of it where something is joined to it.
        ref: what the object is joined by, such as its ID.
    """

    data: bytes
    text: bytes
    ref: str


Encode = Callable[[bytes], Part]


class PartCache:
    """Texts of one kind of objects."""

    def __init__(self, encode: Encode, *, bytes_max: int = BYTES_MAX) -> None:
        """
        Args:
            encode: makes the part of an encoded message; pure.
            bytes_max: what may be kept.
        """
        self._encode, self._bytes_max = encode, bytes_max
        self._listed: dict[bytes, Part] = {}
        self._listed_before: dict[bytes, Part] = {}
        self._turn: asyncio.TimerHandle | None = None
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._listed) + len(self._listed_before)

    def parts(self, messages: Iterable[bytes]) -> list[Part]:
        """The part of each message, in order."""
        found = []
        listed = self._listed
        for data in messages:
            part = listed.get(data[:_ID_BYTES])
            found.append(part if part is not None and part[0] == data else self._find(data))
        return found

    def texts(self, messages: Iterable[bytes]) -> list[bytes]:
        """The text of each message, in order."""
        return [part.text for part in self.parts(messages)]

    def turn(self) -> None:
        """Forget what was in no list since the last turn."""
        self.size_bytes -= sum(map(_size, self._listed_before.values()))
        self._listed, self._listed_before = {}, self._listed
        self._turn = None
        if self._listed_before:
            self._call_turn()

    def _find(self, data: bytes) -> Part:
        key = data[:_ID_BYTES]
        old, kept = self._listed.pop(key, None), self._listed_before.pop(key, None)
        for part in (old, kept):
            if part is not None:
                self.size_bytes -= _size(part)
        part = kept if kept is not None and kept.data == data else self._encode(data)
        size_bytes = _size(part)
        if size_bytes <= ENTRY_BYTES_MAX and self.size_bytes + size_bytes <= self._bytes_max:
            self._listed[key] = part
            self.size_bytes += size_bytes
            if self._turn is None:
                self._call_turn()
        return part

    def _call_turn(self) -> None:
        self._turn = asyncio.get_running_loop().call_later(KEPT_S, self.turn)


def _size(part: Part) -> int:
    return len(part.data) + len(part.text) + _OVERHEAD_BYTES


def whole(message: type[Message]) -> Encode:
    """Objects whose JSON is theirs alone."""
    return lambda data: Part(data, encode_json(message.FromString(data)), "")


async def send_list(
    request: web.Request, messages: Sequence[bytes], texts: Callable[[Sequence[bytes]], Iterable[bytes]]
) -> web.StreamResponse:
    """Answer a JSON array, a slice at a time.

    Args:
        messages: the objects, encoded.
        texts: the JSON of each of some of them.
    """
    pieces = _pieces(messages, texts)
    if len(messages) <= OBJECTS_AT_A_TIME:
        body = b"".join([piece async for piece in pieces])
        return web.Response(body=body, content_type="application/json")
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    async for piece in pieces:
        await response.write(piece)
    await response.write_eof()
    return response


async def _pieces(
    messages: Sequence[bytes], texts: Callable[[Sequence[bytes]], Iterable[bytes]]
) -> AsyncIterator[bytes]:
    before = b"["
    async for some in slices(messages, OBJECTS_AT_A_TIME):
        yield before + b",".join(texts(some))
        before = b","
    yield b"]\n" if messages else b"[]\n"
