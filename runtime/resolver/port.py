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
    for nobody else is asked about it.
    """

    id: str
    names: tuple[str, ...]
    addresses: tuple[str, ...]
    ports: tuple[NamedPort, ...] = ()


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


class DropZone(msgspec.Struct, frozen=True, tag=True):
    """A network has gone. Gone already is fine."""

    network_id: str


class PutHolder(msgspec.Struct, frozen=True, tag=True):
    """A holder on a network that was put, in place of one with its ID."""

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


Change: TypeAlias = PutZone | DropZone | PutHolder | DropHolder | PutAsker | DropAsker


class Everything(msgspec.Struct, frozen=True, tag=True):
    """All there is, and nothing else, whatever was told before."""

    zones: tuple[Zone, ...] = ()
    askers: tuple[Asker, ...] = ()


class Resolver(Protocol):
    """Told by the engine, on its event loop. ``manager.ResolverProcess`` is the real one."""

    async def tell(self, *changes: Change) -> None:
        """Note the changes, in order, and return once they are answered by: an asker that was put has its sockets.

        A resolver that is being started again gets them with everything else, and is waited for a few seconds.

        Raises:
            HostError: an asker's sockets could not be opened, or no resolver comes up. The changes are noted all the
                same: take back what you would not keep.
            LookupError: a holder's network was not put: a mistake of the caller, nothing is noted of that change or the
                ones after it.
        """
        ...

    async def replace(self, everything: Everything) -> None:
        """Note everything anew, once a daemon that came back knows it, and return as ``tell`` does.

        Until then a resolver that outlived the last daemon answers as it was told by that one. Raises HostError.
        """
        ...


class Directory:
    """What was told, put together: the state that the changes lead to."""

    def __init__(self, everything: Everything | None = None) -> None:
        self.names: dict[str, str] = {}
        self.holders: dict[str, dict[str, Holder]] = {}
        self.askers: dict[str, Asker] = {}
        if everything:
            for zone in everything.zones:
                self.apply(PutZone(zone))
            self.askers = {asker.container_id: asker for asker in everything.askers}

    def apply(self, change: Change) -> None:
        """Raises LookupError: a holder for a network that was not put."""
        if isinstance(change, PutZone):
            zone = change.zone
            self.names[zone.network_id] = zone.name
            self.holders[zone.network_id] = {holder.id: holder for holder in zone.holders}
        elif isinstance(change, DropZone):
            self.names.pop(change.network_id, None)
            self.holders.pop(change.network_id, None)
        elif isinstance(change, PutHolder):
            self.holders[change.network_id][change.holder.id] = change.holder
        elif isinstance(change, DropHolder):
            self.holders.get(change.network_id, {}).pop(change.holder_id, None)
        elif isinstance(change, PutAsker):
            self.askers[change.asker.container_id] = change.asker
        elif isinstance(change, DropAsker):
            self.askers.pop(change.container_id, None)
        else:
            assert_never(change)

    def everything(self) -> Everything:
        """As one message."""
        zones = (
            Zone(network_id=network_id, name=self.names[network_id], holders=tuple(holders.values()))
            for network_id, holders in self.holders.items()
        )
        return Everything(tuple(zones), tuple(self.askers.values()))

    def addresses(self, container_id: str, name: str) -> Iterable[str]:
        """What a container gets for a name of its networks, as they are told: for tests and for people who look."""
        asker = self.askers.get(container_id)
        for attachment in asker.networks if asker else ():
            wanted = attachment.aliases.get(name, name).lower()
            for holder in self.holders.get(attachment.network_id, {}).values():
                if wanted in (each.lower() for each in holder.names):
                    yield from holder.addresses
