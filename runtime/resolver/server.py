"""The resolver itself: tables, sockets in the namespaces of containers, and what the node tells of both."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator

from runtime.resolver import namespaces, wire
from runtime.resolver.forwarding import Forwarder, Room
from runtime.resolver.loop import Loop, Share
from runtime.resolver.namespaces import Opened, Outside, Sockets
from runtime.resolver.port import (
    CONTAINERS,
    Asker,
    Change,
    DropAsker,
    DropHolder,
    DropZone,
    Everything,
    NameZone,
    PutAsker,
    PutHolder,
    PutZone,
)
from runtime.resolver.said import say, say_failed
from runtime.resolver.streams import Streams
from runtime.resolver.tables import AskerTable, ZoneTable

DATAGRAMS_A_TURN = 32
"""Of one container, before others have their turn."""
OPENINGS_MAX = 8
_DATAGRAM_BYTES_MAX = 4096
"""No question is longer; what is cut off is not well-formed."""

Done = Callable[[str], None]
"""Told when a change is answered by: "", or why it is not."""


class Server:
    """Owns all of it, on one loop."""

    def __init__(self, loop: Loop, room: Room, kept: dict[str, Sockets] | None = None) -> None:
        """``kept``: sockets of a process before this one, by container; they are the server's now."""
        self.loop, self.room = loop, room
        self.kept = kept or {}
        self.on_open: Callable[[str, Opened], None] = lambda container_id, opened: None
        self.outside = Outside()
        self.zones: dict[str, ZoneTable] = {}
        self._clients: dict[str, _Client] = {}
        self._openings: deque[_Client] = deque()
        self._opening = 0

    def __len__(self) -> int:
        """How many containers can ask."""
        return len(self._clients)

    def apply(self, change: Change | Everything, done: Done) -> None:
        """Change what is answered by. ``done`` is called once, at once or when sockets are open."""
        if isinstance(change, PutAsker):
            self._put_asker(change.asker, done)
            return
        if isinstance(change, Everything):
            self._replace(change)
        elif isinstance(change, PutZone):
            self._zone(change.zone.network_id).put(change.zone)
        elif isinstance(change, NameZone):
            self._zone(change.network_id).call(change.name)
        elif isinstance(change, DropZone):
            self._drop_zone(change.network_id)
        elif isinstance(change, PutHolder):
            self._zone(change.network_id).put_holder(change.holder)
        elif isinstance(change, DropHolder):
            if (zone := self.zones.get(change.network_id)) is not None:
                zone.drop_holder(change.holder_id)
        elif isinstance(change, DropAsker):
            self.drop(change.container_id)
        done("")

    def drop(self, container_id: str) -> None:
        """A container asks no more. Idempotent."""
        client = self._clients.pop(container_id, None)
        if client is not None:
            client.close()
            self._tidy_zones()

    def close(self) -> None:
        """All of it."""
        for container_id in tuple(self._clients):
            self.drop(container_id)
        self.outside.close()

    def held(self) -> Iterator[tuple[str, Opened]]:
        """What is open, by container."""
        for container_id, client in self._clients.items():
            if client.opened is not None:
                yield container_id, client.opened

    def opened(self) -> None:
        """One of those that are being opened is, or is not; the next one may be."""
        self._opening -= 1
        self._open_next()

    def _replace(self, everything: Everything) -> None:
        """Askers alone are dropped here: those that stay or come are put one by one, as each may fail by itself."""
        for network_id in self.zones.keys() - {zone.network_id for zone in everything.zones}:
            self.zones[network_id].keep((), everything.sources)
            if not len(self.zones[network_id]):
                self._drop_zone(network_id)
        for zone in everything.zones:
            self._zone(zone.network_id).put(zone, everything.sources)
        askers = {asker.container_id for asker in everything.askers}
        for container_id in self.kept.keys() - askers:
            self.kept.pop(container_id).close()
        if CONTAINERS in everything.sources:
            for container_id in self._clients.keys() - askers:
                self.drop(container_id)

    def _put_asker(self, asker: Asker, done: Done) -> None:
        client = self._clients.get(asker.container_id)
        if client is not None and client.namespace != asker.namespace:
            self.drop(asker.container_id)
            client = None
        if client is None:
            client = self._clients[asker.container_id] = _Client(self, asker)
            self._openings.append(client)
            self._open_next()
        else:
            client.configure(asker)
            self._tidy_zones()
        client.tell_when_open(done)

    def _open_next(self) -> None:
        while self._openings and self._opening < OPENINGS_MAX:
            client = self._openings.popleft()
            self._opening += 1
            threading.Thread(target=client.open, name="open", daemon=True).start()

    def _zone(self, network_id: str) -> ZoneTable:
        return self.zones.setdefault(network_id, ZoneTable())

    def _drop_zone(self, network_id: str) -> None:
        if (zone := self.zones.get(network_id)) is not None:
            zone.drop()
            if not zone.askers:
                del self.zones[network_id]

    def _tidy_zones(self) -> None:
        """Zones that nobody told of, and that nobody asks in any more."""
        for network_id in [key for key, zone in self.zones.items() if not zone.is_put and not zone.askers]:
            del self.zones[network_id]


class _Client:
    """One container: opened in a thread, served on the loop, closed when it is dropped or its process ends."""

    def __init__(self, server: Server, asker: Asker) -> None:
        self._server, self._loop = server, server.loop
        self.container_id, self.namespace = asker.container_id, asker.namespace
        self._table = AskerTable(asker, server.zones)
        self._share = Share(server.loop)
        self._forwarder = Forwarder(asker.container_id, self._share, server.outside, server.room)
        self.opened: Opened | None = None
        self._streams: Streams | None = None
        self._waiting: list[Done] = []
        self._is_closed = False
        self._kept = server.kept.pop(asker.container_id, None)
        self._forwarder.configure(asker.upstreams, asker.options, forwards=asker.forwards)

    def configure(self, asker: Asker) -> None:
        """From the next question on."""
        before, self._table = self._table, AskerTable(asker, self._server.zones)
        before.close()
        self._forwarder.configure(asker.upstreams, asker.options, forwards=asker.forwards)

    def tell_when_open(self, done: Done) -> None:
        """At once when it is."""
        if self.opened is not None:
            done("")
        else:
            self._waiting.append(done)

    def open(self) -> None:
        """In a thread of its own."""
        try:
            opened: Opened | str = namespaces.open_in(self.namespace, self._kept)
        except namespaces.OPEN_ERRORS as error:
            opened = str(error) or repr(error)
        except Exception as error:  # a defect: the caller must hear of it all the same
            say_failed("open.failed", error)
            opened = repr(error)
        self._loop.call(lambda: self._open_ended(opened))

    def close(self) -> None:
        """Once."""
        self._is_closed = True
        self._table.close()
        self._forwarder.close()
        if self.opened is not None:
            if self.opened.process >= 0:
                self._loop.forget(self.opened.process)
            self._loop.forget(self.opened.udp.fileno())
            if self._streams is not None:
                self._streams.close()
            self.opened.close()
        self._share.close()
        self._tell("the container has ended")

    def _open_ended(self, opened: Opened | str) -> None:
        self._server.opened()
        if isinstance(opened, str):
            self._tell(opened)
            if not self._is_closed:
                self._server.drop(self.container_id)
            return
        if self._is_closed:
            opened.close()
            return
        self.opened, self._forwarder.namespace = opened, opened.namespace
        self._streams = Streams(self._share, opened.tcp, self._respond_stream)
        self._loop.watch(opened.udp.fileno(), self._datagrams_ready)
        if opened.process >= 0:
            self._loop.watch(opened.process, self._process_ended)
        self._server.on_open(self.container_id, opened)
        self._tell("")

    def _tell(self, failure: str) -> None:
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done(failure)

    def _process_ended(self, events: int) -> None:
        say("container.ended", "debug", container_id=self.container_id)
        self._server.drop(self.container_id)

    def _datagrams_ready(self, events: int) -> None:
        if self.opened is None:
            return
        receive, send, respond = self.opened.udp.recvfrom, self.opened.udp.sendto, self._table.respond
        for _ in range(DATAGRAMS_A_TURN):
            try:
                message, source = receive(_DATAGRAM_BYTES_MAX)
            except OSError:  # nothing left, mostly
                return
            try:
                answer = respond(message)
                if type(answer) is bytes:
                    send(answer, source)
                elif isinstance(answer, wire.Query):
                    self._forwarder.ask(answer, functools.partial(self._send, source), tcp=False)
            except OSError:  # who asked does not want it, or its rules do not
                continue
            except Exception as error:
                say_failed("question.failed", error)

    def _send(self, to: tuple[str, int], answer: bytes) -> None:
        if self.opened is not None:
            with contextlib.suppress(OSError):  # closed meanwhile, or as above
                self.opened.udp.sendto(answer, to)

    def _respond_stream(self, message: bytes, reply: Callable[[bytes], None]) -> bool:
        answer = self._table.respond(message, tcp=True)
        if isinstance(answer, bytes):
            reply(answer)
        elif answer is not None:
            self._forwarder.ask(answer, reply, tcp=True)
        return answer is not None
