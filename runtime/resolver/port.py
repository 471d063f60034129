"""The port between the engine and the resolver: what the node tells it of names, networks and containers.

A *zone* is a network: who has which names on it. An *asker* is a container with its network namespace: on which networks it
is, which servers its other questions go to. A name is answered on its own network only, so what an asker gets to know
follows from the zones it is on. Whoever makes names (the table of networks, later the cluster's services) tells changes; nobody
asks back. What was told is kept by the node as well (``Directory``), and told again to a resolver that lost it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeAlias, assert_never

import msgspec

ADDRESS = "127.0.0.11"
"""Where a container finds its resolver."""


CONTAINERS = "containers"
"""The source of what the engine tells of its containers."""


class NamedPort(msgspec.Struct, frozen=True):
    """Answers SRV questions: ``_name._protocol`` before each of the holder's names, such as ``_http._tcp.web``."""

    name: str
    protocol: str
    number: int


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who has names on a network: a container, a service by its VIP, a task.

    Several holders of one name answer together. ``id`` is unique among the holders of the network, whoever they are.
    Names are answered as they stand and before ``.NETWORK``, in any case; the first is what reverse questions for the
    addresses get. Addresses are plain, of both families. A name with an address of one family alone has none of the other,
    for nobody else is asked about it. ``source`` is who tells of it: see ``Everything``.
    """

    id: str
    names: tuple[str, ...]
    addresses: tuple[str, ...]
    ports: tuple[NamedPort, ...] = ()
    source: str = CONTAINERS


class Zone(msgspec.Struct, frozen=True, kw_only=True):
    """A network by ID, with its name and who is on it."""

    network_id: str
    name: str
    holders: tuple[Holder, ...] = ()


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A container on a network. ``aliases`` are names for it alone there (links): name to ask for, name on the network.

    They hide names of the network.
    """

    network_id: str
    aliases: dict[str, str] = msgspec.field(default_factory=dict)


class Upstream(msgspec.Struct, frozen=True):
    """A server for other questions, asked from the host's network namespace or from the container's."""

    address: str
    from_host: bool = False
    port: int = 53


class Asker(msgspec.Struct, frozen=True, kw_only=True):
    """A container that asks.

    ``namespace`` is a path, /proc/PID/ns/net: with the process the resolver's sockets there end. ``networks`` are in the
    order in which they are looked through. Without ``forwards`` (internal networks alone) no server is asked from the host.
    ``options`` are those of resolv.conf as wished for: of ``ndots`` counts whether it is there, of ``timeout`` the time for
    all servers together, of ``rotate`` that they take turns; search lists are the affair of who asks.
    """

    container_id: str
    namespace: str
    networks: tuple[Attachment, ...]
    upstreams: tuple[Upstream, ...] = ()
    forwards: bool = True
    options: tuple[str, ...] = ()


class PutZone(msgspec.Struct, frozen=True, tag=True):
    """A network is there, with these holders and no other, whatever was told of it before."""

    zone: Zone


class NameZone(msgspec.Struct, frozen=True, tag=True):
    """A network is there, under this name; who is on it stays as it is."""

    network_id: str
    name: str


class DropZone(msgspec.Struct, frozen=True, tag=True):
    """A network has gone. Gone already is fine."""

    network_id: str


class PutHolder(msgspec.Struct, frozen=True, tag=True):
    """A holder on a network, in place of one with its ID. It is found before ``.NETWORK`` once the network has a name."""

    network_id: str
    holder: Holder


class DropHolder(msgspec.Struct, frozen=True, tag=True):
    """A holder has gone. Gone already is fine, with its network too."""

    network_id: str
    holder_id: str


class PutAsker(msgspec.Struct, frozen=True, tag=True):
    """A container can ask from now on, in place of what was told of it. Networks not put yet know no name."""

    asker: Asker


class DropAsker(msgspec.Struct, frozen=True, tag=True):
    """A container has ended: its sockets are closed. Gone already is fine."""

    container_id: str


Change: TypeAlias = PutZone | NameZone | DropZone | PutHolder | DropHolder | PutAsker | DropAsker


class Everything(msgspec.Struct, frozen=True, tag=True):
    """All that some sources tell, and nothing else of theirs, whatever they told before.

    What other sources told stays: after a restart of the node the engine knows its containers before the cluster's
    part knows its services, and none of both may lose the other's names. Askers are the containers'.
    """

    zones: tuple[Zone, ...] = ()
    askers: tuple[Asker, ...] = ()
    sources: tuple[str, ...] = (CONTAINERS,)


class Resolver(Protocol):
    """Told by the engine, on its event loop. ``manager.ResolverProcess`` is the real one."""

    async def tell(self, *changes: Change) -> None:
        """Note the changes, in order, and return once they are answered by: an asker that was put has its sockets.

        A resolver that is being started again gets them with everything else, and is waited for a few seconds.

        Raises:
            HostError: an asker's sockets could not be opened, or no resolver comes up. The changes are noted all the
                same: take back what you would not keep.
        """
        ...

    async def replace(self, everything: Everything) -> None:
        """Note all that a source tells, once a daemon that came back knows it, and return as ``tell`` does.

        Until then a resolver that outlived the last daemon answers as it was told by that one. Raises HostError.
        """
        ...


class Directory:
    """What was told, put together: the state that the changes lead to."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.holders: dict[str, dict[str, Holder]] = {}
        self.askers: dict[str, Asker] = {}
        self.sources: set[str] = set()

    def apply(self, change: Change) -> None:
        if isinstance(change, PutZone):
            zone = change.zone
            self.names[zone.network_id] = zone.name
            self.holders[zone.network_id] = {holder.id: holder for holder in zone.holders}
        elif isinstance(change, NameZone):
            self.names[change.network_id] = change.name
        elif isinstance(change, DropZone):
            self.names.pop(change.network_id, None)
            self.holders.pop(change.network_id, None)
        elif isinstance(change, PutHolder):
            self.holders.setdefault(change.network_id, {})[change.holder.id] = change.holder
        elif isinstance(change, DropHolder):
            self.holders.get(change.network_id, {}).pop(change.holder_id, None)
        elif isinstance(change, PutAsker):
            self.askers[change.asker.container_id] = change.asker
        elif isinstance(change, DropAsker):
            self.askers.pop(change.container_id, None)
        else:
            assert_never(change)

    def replace(self, everything: Everything) -> None:
        """See ``Everything``."""
        self.sources |= {*everything.sources}
        for holders in self.holders.values():
            for holder in tuple(holders.values()):
                if holder.source in everything.sources:
                    del holders[holder.id]
        for zone in everything.zones:
            self.names[zone.network_id] = zone.name
            self.holders.setdefault(zone.network_id, {}).update({holder.id: holder for holder in zone.holders})
        if CONTAINERS in everything.sources:
            self.askers = {asker.container_id: asker for asker in everything.askers}
        told = {zone.network_id for zone in everything.zones}
        for network_id in (self.names.keys() | self.holders.keys()) - told:
            if not self.holders.get(network_id):
                self.apply(DropZone(network_id))

    def everything(self) -> Everything:
        """As one message, of the sources that told everything."""
        zones = (
            Zone(
                network_id=network_id,
                name=self.names.get(network_id, ""),
                holders=tuple(self.holders.get(network_id, {}).values()),
            )
            for network_id in sorted(self.names.keys() | self.holders.keys())
        )
        return Everything(tuple(zones), tuple(self.askers.values()), tuple(sorted(self.sources)))

    def addresses(self, container_id: str, name: str) -> Iterable[str]:
        """What a container gets for a name of its networks, as they are told: for tests and for people who look."""
        asker = self.askers.get(container_id)
        for attachment in asker.networks if asker else ():
            wanted = attachment.aliases.get(name, name).lower()
            for holder in self.holders.get(attachment.network_id, {}).values():
                if wanted in (each.lower() for each in holder.names):
                    yield from holder.addresses
