"""What node and resolver say to each other: frames of a u32 length (big endian) and a msgpack array, on a unix socket.

The resolver begins with ``Greeting``. Every ``Telling`` gets one ``Noted`` with its number, once all of it is answered by.
"""

from __future__ import annotations

import msgspec

from runtime.resolver.port import DropAsker, DropHolder, DropZone, Everything, NameZone, PutAsker, PutHolder, PutZone

FRAME_BYTES_MAX = 256 * 1024 * 1024
LENGTH_BYTES = 4
PROCESS = "runtime.resolver.process"
"""The module that is its main program, with its folder as argument."""
SOCKET, KEEPER, LOCK = "socket", "keeper", "lock"
"""Files in the resolver's folder."""


class Greeting(msgspec.Struct, frozen=True, array_like=True):
    """``version`` is the daemon's the process was started by: another one is ended and replaced."""

    version: str
    pid: int


class Telling(msgspec.Struct, frozen=True, array_like=True):
    """Changes, in order."""

    number: int
    changes: list[PutZone | NameZone | DropZone | PutHolder | DropHolder | PutAsker | DropAsker | Everything]


class Noted(msgspec.Struct, frozen=True, array_like=True):
    """``failures``: why a container cannot ask, by its ID."""

    number: int
    failures: dict[str, str]


def frame(message: Greeting | Telling | Noted) -> bytes:
    """As it is sent."""
    data = msgspec.msgpack.encode(message)
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


class Frames:
    """Takes bytes as they come and gives whole messages, undecoded."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Raises ValueError: a length beyond all reason."""
        self._received += data
        found = []
        while len(self._received) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(self._received[:LENGTH_BYTES], "big")
            if end > LENGTH_BYTES + FRAME_BYTES_MAX:
                raise ValueError(f"a frame of {end} bytes")
            if len(self._received) < end:
                break
            found.append(bytes(self._received[LENGTH_BYTES:end]))
            del self._received[:end]
        return found
