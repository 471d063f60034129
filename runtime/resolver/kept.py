"""The sockets of containers, kept by the node as well: a question that comes while no resolver runs waits in them.

A resolver that was killed leaves its ports to nobody, and the kernel would refuse who asks. As the node has the sockets open
too, they stay, and the next resolver is born with them; the rules that lead to them stand as they are.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import structlog

from runtime.resolver.namespaces import Sockets

log = structlog.get_logger(__name__)

_ID_BYTES_MAX = 256


class Kept:
    """Of one daemon, on its event loop. What it has pins the namespaces of containers until they are dropped.

    Args:
        path: the resolver's socket for this.
        wanted: whether a container is one that asks: what comes of another is too late.
    """

    def __init__(self, path: Path, wanted: Callable[[str], bool]) -> None:
        self._path, self._wanted = path, wanted
        self._connection: socket.socket | None = None
        self._sockets: dict[str, Sockets] = {}

    def __len__(self) -> int:
        """Of how many containers."""
        return len(self._sockets)

    def copies(self) -> Mapping[str, Sockets]:
        """By container; the caller's to close. Raises OSError."""
        return {key: Sockets(os.dup(each.udp), os.dup(each.tcp)) for key, each in self._sockets.items()}

    def connect(self) -> None:
        """To a resolver that answers: it hands over what it has open, and what it opens from then on."""
        self._disconnect()
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            made.connect(str(self._path))
        except OSError as error:  # then a question is refused while there is none
            made.close()
            log.warning("resolver.sockets_not_kept", error=str(error))
            return
        self._connection = made
        asyncio.get_running_loop().add_reader(made.fileno(), self._ready)

    def drop(self, container_id: str) -> None:
        """A container has ended. Idempotent."""
        if (sockets := self._sockets.pop(container_id, None)) is not None:
            sockets.close()

    def drop_others(self, container_ids: Collection[str]) -> None:
        """Of containers that are not among these."""
        for container_id in self._sockets.keys() - set(container_ids):
            self.drop(container_id)

    def close(self) -> None:
        """Let go of all; the resolver has them."""
        self._disconnect()
        self.drop_others(())

    def _disconnect(self) -> None:
        if self._connection is not None:
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            self._connection.close()
            self._connection = None

    def _ready(self) -> None:
        assert self._connection is not None
        try:
            text, found, _, _ = socket.recv_fds(self._connection, _ID_BYTES_MAX, 2, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            text, found = b"", []
        container_id = text.decode(errors="replace")
        if len(found) == 2 and self._wanted(container_id):
            self.drop(container_id)
            self._sockets[container_id] = Sockets(*found)
            return
        for descriptor in found:  # no room for both, or too late
            os.close(descriptor)
        if not text:
            self._disconnect()
