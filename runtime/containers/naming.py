"""What the resolver is told of containers: their names on their networks, and whom they ask about others.

Names are served on networks of users; the default bridge has none, as dockerd's (moby daemon/container_operations.go).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping

import msgspec
import structlog

from runtime.containers import links
from runtime.containers.container import Container
from runtime.errors import HostError, InvalidParameterError, NetworkNotFoundError
from runtime.networks import Networks
from runtime.networks.driver import Endpoint
from runtime.networks.predefined import NAMELESS
from runtime.resolver.port import (
    Asker,
    Attachment,
    Change,
    DropAsker,
    DropHolder,
    Everything,
    Holder,
    NameZone,
    PutAsker,
    PutHolder,
    Resolver,
    Zone,
)
from runtime.resolver.resolv_conf import Mode, ResolvConf, host_file, resolv_conf
from runtime.types import EndpointSettings, HostConfig

log = structlog.get_logger(__name__)

_SHORT_ID = 12


class _Place(msgspec.Struct, frozen=True):
    """A container on a network with names."""

    network_id: str
    network: str
    holder: Holder
    aliases: dict[str, str]


class Naming:
    """Tells the resolver. A container that starts fails when it cannot be told; one that ends does not."""

    def __init__(self, networks: Networks, resolver: Resolver) -> None:
        self._networks, self._resolver = networks, resolver
        self._told: dict[str, set[str]] = {}

    async def tell(
        self,
        container: Container,
        endpoints: Mapping[str, Endpoint],
        pid: int,
        wanted: Mapping[str, EndpointSettings] | None = None,
    ) -> None:
        """All that a container has now, ``endpoints`` by the names of its networks. Raises HostError.

        ``wanted`` is what it asked of them, where its record does not say so yet.
        """
        places = self._places(container, endpoints, wanted)
        before, now = self._told.get(container.id, set()), {place.network_id for place in places}
        changes: list[Change] = [DropHolder(network_id, container.id) for network_id in sorted(before - now)]
        for place in places:
            changes += [NameZone(place.network_id, place.network), PutHolder(place.network_id, place.holder)]
        if places:
            changes.append(PutAsker(await self._asker(container, endpoints, places, pid)))
        elif before:
            changes.append(DropAsker(container.id))
        if changes:
            self._told[container.id] = now
            await self._resolver.tell(*changes)

    async def tell_again(self, container: Container) -> None:
        """A container that runs was renamed, or left a network. What cannot be told now is told with everything."""
        try:
            await self.tell(container, container.state.Endpoints, container.state.Pid)
        except HostError as error:
            log.warning("names.not_told", container_id=container.id, reason=str(error))

    async def forget(self, container: Container) -> None:
        """A container has none of it any more. What cannot be told now is told with everything."""
        told = self._told.pop(container.id, None)
        if told:
            try:
                changes = [DropHolder(network_id, container.id) for network_id in sorted(told)]
                await self._resolver.tell(DropAsker(container.id), *changes)
            except HostError as error:
                log.warning("names.not_forgotten", container_id=container.id, reason=str(error))

    async def replace(self, containers: Iterable[Container]) -> None:
        """These run, and no others. What cannot be told is logged: they run on."""
        zones: dict[str, Zone] = {}
        askers: list[Asker] = []
        for container in containers:
            endpoints = container.state.Endpoints
            places = self._places(container, endpoints)
            self._told[container.id] = {place.network_id for place in places}
            for place in places:
                zone = zones.get(place.network_id, Zone(network_id=place.network_id, name=place.network))
                zones[place.network_id] = msgspec.structs.replace(zone, holders=(*zone.holders, place.holder))
            if places:
                askers.append(await self._asker(container, endpoints, places, container.state.Pid))
        try:
            await self._resolver.replace(Everything(tuple(zones.values()), tuple(askers)))
        except HostError as error:
            log.error("names.not_told", reason=str(error))

    async def _asker(
        self, container: Container, endpoints: Mapping[str, Endpoint], places: Iterable[_Place], pid: int
    ) -> Asker:
        found = await asyncio.to_thread(resolv_conf_of, container.record.HostConfig, endpoints)
        return Asker(
            container_id=container.id,
            namespace=f"/proc/{pid}/ns/net",
            networks=tuple(Attachment(network_id=place.network_id, aliases=place.aliases) for place in places),
            upstreams=found.upstreams,
            forwards=any(self._leads_out(name, endpoint) for name, endpoint in endpoints.items()),
            options=found.options,
        )

    def _leads_out(self, name: str, endpoint: Endpoint) -> bool:
        try:
            return bool(endpoint.Interface) and not self._networks.find(name).Internal
        except NetworkNotFoundError:
            return False

    def _places(
        self,
        container: Container,
        endpoints: Mapping[str, Endpoint],
        wanted: Mapping[str, EndpointSettings] | None = None,
    ) -> list[_Place]:
        wanted = container.record.networks() if wanted is None else wanted
        places = []
        for name, endpoint in endpoints.items():
            if serves_names(name, endpoint):
                settings = wanted.get(name)
                wished = (settings.Links if settings else None) or ()
                holder = Holder(
                    id=container.id,
                    names=tuple(names_of(container, endpoint.Aliases or ())),
                    addresses=tuple(str(each.ip) for each in endpoint.interfaces()),
                )
                places.append(_Place(endpoint.NetworkID, name, holder, _aliases(wished)))
        return places


def names_of(container: Container, aliases: Iterable[str]) -> list[str]:
    """In the order of what a reverse question gets (moby daemon/container_operations.go, buildEndpointDNSNames)."""
    hostname = container.record.Config.Hostname
    names = (container.record.Name, *aliases, container.id[:_SHORT_ID], *([hostname] if hostname else []))
    return [*dict.fromkeys(names)]


def serves_names(network: str, endpoint: Endpoint) -> bool:
    """Whether an endpoint has names on its network."""
    return bool(endpoint.Interface) and network not in NAMELESS


def resolv_conf_of(host: HostConfig, endpoints: Mapping[str, Endpoint]) -> ResolvConf:
    """The file of a container with these endpoints, from the host's file. Blocks for a moment."""
    mode: Mode = "host" if host.NetworkMode == "host" else "legacy"
    if any(serves_names(name, endpoint) for name, endpoint in endpoints.items()):
        mode = "internal"
    return resolv_conf(
        mode,
        host_file(),
        servers=host.Dns or (),
        search=host.DnsSearch or (),
        options=host.DnsOptions or (),
        ipv6=any(":" in address for endpoint in endpoints.values() for address in endpoint.Addresses),
    )


def follow_resolv_conf(container: Container, before: Mapping[str, Endpoint], after: Mapping[str, Endpoint]) -> None:
    """A container that joins its first network with names, or leaves the last, asks others than before.

    In place, as the file is mounted in it, and only while it is as we wrote it. Blocks. Raises HostError.
    """
    host, path = container.record.HostConfig, container.folder / "resolv.conf"
    old, new = resolv_conf_of(host, before).text, resolv_conf_of(host, after).text
    try:
        if old != new and path.stat().st_size == len(old.encode()) and path.read_text() == old:
            path.write_text(new)
    except (OSError, ValueError) as error:
        raise HostError(f"cannot write {path}: {error}") from error


def _aliases(wished: Iterable[str]) -> dict[str, str]:
    """Containers by the names that links give them. What is no link has been refused, or is an older daemon's."""
    found = {}
    for text in wished:
        with contextlib.suppress(InvalidParameterError):
            name, alias = links.parse(text)
            found[alias] = name
    return found
