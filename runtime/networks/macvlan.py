"""Networks on a device of the host: macvlan and ipvlan. Containers are neighbours of whoever is on its cable.

A container's link is born in its namespace, on top of the parent, and goes with it; nothing of it is left on the host. The
parent is the host's, or a VLAN of one (``parent=eth0.10``), which is made when it is not there, or without ``parent`` a
dummy: then nobody but the network's own containers is reached. Who can be reached, through which gateway, is the affair of
the network outside: there are no rules and no published ports.

Source: moby libnetwork/drivers/macvlan and ipvlan, whose options, refusals and names of devices these are.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import msgspec
import structlog

from base.numbers import natural
from runtime.errors import ForbiddenError, HostError, InvalidParameterError, NotFoundError
from runtime.kernel.network import (
    AddAddress,
    AddDefaultRoute,
    AddDummy,
    AddSublink,
    AddVlan,
    Batch,
    Change,
    DeleteLink,
    IPAddress,
    KernelNetwork,
    SetUp,
)
from runtime.networks import pools
from runtime.networks.addresses import AddressPool, mac_for, parse_mac
from runtime.networks.driver import ON_LINK, Endpoint, EndpointRequest, Network, Pool
from runtime.networks.pools import DefaultPool
from runtime.networks.ports import PortRequest
from runtime.types import EndpointSettings

log = structlog.get_logger(__name__)

PARENT = "parent"
VLAN_ID_MAX = 4094
_DEVICE_NAME_MAX = 15
Kind = Literal["macvlan", "ipvlan"]


class _Sort(msgspec.Struct, frozen=True):
    """What the two differ in: modes, the first being what nobody asked for, and names of devices."""

    modes: tuple[str, ...]
    flags: tuple[str, ...]
    dummy_prefix: str


_SORTS: dict[Kind, _Sort] = {
    "macvlan": _Sort(("bridge", "private", "vepa", "passthru"), ("",), "dm-"),
    "ipvlan": _Sort(("l2", "l3", "l3s"), ("bridge", "private", "vepa"), "di-"),
}


class Options(msgspec.Struct, frozen=True):
    """What is asked of a network, checked. ``parent`` is the device below, ``is_dummy`` when nobody named one."""

    parent: str
    mode: str
    flag: str = ""
    is_dummy: bool = False

    @property
    def has_gateway(self) -> bool:
        """Whether what is elsewhere is behind a router on the cable, and not, as in layer 3, on it."""
        return self.mode not in ("l3", "l3s")


def parse(kind: Kind, network: Network) -> Options:
    """Raises InvalidParameterError with dockerd's text."""
    sort, given = _SORTS[kind], network.Options
    mode = given.get(f"{kind}_mode") or sort.modes[0]
    if mode not in sort.modes:
        raise InvalidParameterError(
            f"requested {kind} mode '{mode[:100]}' is not valid, '{sort.modes[0]}' mode is the {kind} driver default"
        )
    flag = given.get(f"{kind}_flag") or sort.flags[0]
    if flag not in sort.flags and kind == "ipvlan":
        raise InvalidParameterError(
            f"requested ipvlan flag '{flag[:100]}' is not valid, '{sort.flags[0]}' is the ipvlan driver default"
        )
    parent = given.get(PARENT, "")
    if parent == "lo":
        raise InvalidParameterError(f"loopback interface is not a valid {kind} parent link")
    if not parent:
        return Options(f"{sort.dummy_prefix}{network.ID[:12]}", mode, flag, is_dummy=True)
    if len(parent.encode()) > _DEVICE_NAME_MAX or any(char in "/\0 \t\n" for char in parent):
        raise InvalidParameterError(f"invalid parent interface name {parent[:100]!r}")
    return Options(parent, mode, flag if kind == "ipvlan" else "")


def vlan_of(parent: str, links: Collection[str]) -> tuple[str, int]:
    """Device and VLAN ID of ``eth0.10``. Raises InvalidParameterError, NotFoundError with dockerd's text."""
    device, dot, text = parent.partition(".")
    if not dot:
        raise InvalidParameterError(f"invalid subinterface vlan name {parent}, example formatting is eth0.10")
    if "." in text:
        raise InvalidParameterError(
            f"required interface name format is: name.vlan_id, ex. eth0.10 for vlan 10, instead received {parent}"
        )
    number = natural(text, largest=1 << 31)
    if number is None:
        raise InvalidParameterError(f"unable to parse a valid vlan id from: {text} (ex. eth0.10 for vlan 10)")
    if device not in links:
        raise NotFoundError(f"-o parent interface was not found on the host: {device}")
    if not 1 <= number <= VLAN_ID_MAX:
        raise InvalidParameterError(f"vlan id must be between 1-{VLAN_ID_MAX}, received: {number}")
    return device, number


class _Made:
    """What is handed out on one network, and whether its parent is there."""

    def __init__(self, kind: Kind, network: Network) -> None:
        self.network = network
        self.options = parse(kind, network)
        self.pools = [_address_pool(pool) for pool in network.Pools]
        self.made = False

    def allocate(self, settings: EndpointSettings, avoid: Collection[IPAddress]) -> list[IPAddress]:
        """One address a family, all or none; of the pool that has the one asked for. Raises UnavailableError."""
        asked = settings.IPAMConfig
        found: list[IPAddress] = []
        for version in dict.fromkeys(pool.subnet.version for pool in self.pools):
            text = (asked.IPv4Address if version == 4 else asked.IPv6Address) if asked else ""
            own = [pool for pool in self.pools if pool.subnet.version == version]
            if text:
                own = [pool for pool in own if ipaddress.ip_address(text) in pool.subnet] or own
            try:
                found.append(own[0].allocate(text, avoid))
            except BaseException:
                self.give_back(found)
                raise
        return found

    def give_back(self, addresses: Iterable[IPAddress]) -> None:
        """Idempotent."""
        for address in addresses:
            for pool in self.pools:
                pool.release(address)

    def pool_of(self, address: IPAddress) -> Pool:
        return next(pool for pool in self.network.Pools if address in ipaddress.ip_network(pool.Subnet))


class MacvlanDriver:
    """See ``Driver``; ``kind`` is its name. ``DeviceFound`` of a network: its parent is the host's own and stays."""

    scope: Literal["local"] = "local"
    routes = True

    def __init__(
        self, kind: Kind, kernel: KernelNetwork, defaults: Sequence[DefaultPool] = pools.DEFAULT_POOLS
    ) -> None:
        self.name: Kind = kind
        self._kernel, self._defaults = kernel, defaults
        self._networks: dict[str, _Made] = {}

    async def settle(self, network: Network, others: Sequence[Network] = ()) -> Network:
        """Pools as asked for or of the default ones, and whose the parent is."""
        if network.Settled:
            return network
        asked = parse(self.name, network)
        beside = [other for other in others if other.Driver == self.name and other.Settled]
        beside = [other for other in beside if parse(self.name, other).parent == asked.parent]
        self._refuse_beside(network, asked, beside)
        try:
            links, routes = await self._kernel.links(), await self._kernel.routes()
        except OSError as error:
            raise HostError(f"cannot make {self.name} network {network.Name}: {error}") from error
        if asked.parent not in links and not asked.is_dummy:
            vlan_of(asked.parent, links)
        chosen = pools.choose(
            network,
            taken=[ipaddress.ip_network(pool.Subnet) for other in others for pool in other.Pools],
            avoid=[route.destination for route in routes if route.on_link],
            defaults=self._defaults,
            versions_without_gateway=(4, 6) if network.Internal or asked.is_dummy or not asked.has_gateway else (),
        )
        if not asked.has_gateway and not network.Internal and not asked.is_dummy:
            chosen = [msgspec.structs.replace(pool, Gateway=ON_LINK[":" in pool.Subnet]) for pool in chosen]
        found = all(other.DeviceFound for other in beside) and asked.parent in links
        return msgspec.structs.replace(network, Pools=chosen, Settled=True, DeviceFound=found)

    def _refuse_beside(self, network: Network, asked: Options, beside: Sequence[Network]) -> None:
        """Who cannot share a parent. Raises ForbiddenError."""
        for other in beside:
            if self.name == "ipvlan":
                raise ForbiddenError(
                    f"network {_SORTS['ipvlan'].dummy_prefix}{other.ID[:12]} is already using parent interface {asked.parent}"
                )
            if asked.mode == "passthru":
                raise ForbiddenError(
                    f"cannot use mode passthru, macvlan network {other.ID} is already using parent interface {asked.parent}"
                )
            if parse(self.name, other).mode == "passthru":
                raise ForbiddenError(
                    f"macvlan network {other.ID} is already using parent interface {asked.parent} in mode passthru"
                )

    async def create(self, network: Network) -> None:
        """The parent, when it is ours to make."""
        made = self._made(network)
        if made.made:
            return
        options = made.options
        try:
            links = await self._kernel.links()
            if options.parent not in links:
                await self._kernel.apply(Batch(_parent_changes(options, links)))
        except OSError as error:
            raise HostError(f"cannot make {self.name} network {network.Name}: {error}") from error
        made.made = True
        log.info("parent.ready", driver=self.name, network=network.Name, device=options.parent)

    async def remove(self, network: Network) -> None:
        """With the parent, when it was made here and no other network is on it."""
        made = self._networks.pop(network.ID, None) or _Made(self.name, network)
        parent = made.options.parent
        if network.DeviceFound or any(other.options.parent == parent for other in self._networks.values()):
            return
        try:
            await self._kernel.apply(Batch((DeleteLink(parent),)))
        except OSError as error:
            self._networks[network.ID] = made
            raise HostError(f"cannot remove device {parent}: {error}") from error

    async def reserve(self, network: Network, request: EndpointRequest) -> Endpoint:
        """Ports are not published: there is nothing between the container and who asks for one."""
        made, settings = self._made(network), request.settings
        mac = parse_mac(settings.MacAddress) if settings.MacAddress else ""
        addresses = made.allocate(settings, request.avoid)
        pools_of = [made.pool_of(address) for address in addresses]
        return Endpoint(
            NetworkID=network.ID,
            ID=secrets.token_hex(32),
            Interface=request.interface,
            Addresses=[
                f"{each}/{pool.Subnet.partition('/')[2]}" for each, pool in zip(addresses, pools_of, strict=True)
            ],
            Gateways=[] if network.Internal else [pool.Gateway for pool in pools_of if pool.Gateway],
            MacAddress=(mac or _mac(addresses)) if self.name == "macvlan" else "",
            Aliases=settings.Aliases,
        )

    async def attach(self, network: Network, endpoint: Endpoint, namespace: str, *, default_route: bool) -> None:
        options, name = self._made(network).options, endpoint.Interface
        link = AddSublink(name, self.name, options.parent, options.mode, options.flag, endpoint.MacAddress, namespace)
        inside: list[Change] = [SetUp(name), *(AddAddress(name, address) for address in endpoint.interfaces())]
        if default_route:
            inside += [AddDefaultRoute(ipaddress.ip_address(gateway), name) for gateway in endpoint.Gateways]
        try:
            await self._kernel.apply(Batch((link,)), Batch(tuple(inside), namespace))
        except OSError as error:
            with contextlib.suppress(HostError):  # else the kernel does, with the namespace
                await self.detach(network, endpoint, namespace)
            raise HostError(f"failed to set up container networking: {error}") from error

    async def publish(self, network: Network, endpoint: Endpoint, ports: Sequence[PortRequest]) -> Endpoint:
        return endpoint

    async def detach(self, network: Network, endpoint: Endpoint, namespace: str) -> None:
        try:
            await self._kernel.apply(Batch((DeleteLink(endpoint.Interface),), namespace))
        except FileNotFoundError:
            return  # with its namespace
        except OSError as error:
            raise HostError(f"cannot remove link {endpoint.Interface}: {error}") from error

    async def release(self, network: Network, endpoint: Endpoint) -> None:
        self._made(network).give_back(each.ip for each in endpoint.interfaces())

    def adopt(self, network: Network, endpoint: Endpoint) -> None:
        for pool in self._made(network).pools:
            for interface in endpoint.interfaces():
                pool.adopt(interface.ip)

    async def reconcile(self, network: Network, endpoints: Sequence[Endpoint]) -> None:
        """Nothing of a container that ended is on the host."""
        await self.create(network)

    def close(self) -> None:
        pass

    def _made(self, network: Network) -> _Made:
        made = self._networks.get(network.ID)
        if made is None:
            made = self._networks[network.ID] = _Made(self.name, network)
        return made


def _parent_changes(options: Options, links: Collection[str]) -> tuple[Change, ...]:
    if options.is_dummy:
        return (AddDummy(options.parent),)
    try:
        device, vlan_id = vlan_of(options.parent, links)
    except (InvalidParameterError, NotFoundError) as error:  # it was there when the network was made
        raise HostError(str(error)) from error
    return (AddVlan(options.parent, device, vlan_id), SetUp(options.parent))


def _mac(addresses: Sequence[IPAddress]) -> str:
    """From the IPv4 address where there is one; else of chance: hosts on one cable give out the same IPv6 endings."""
    for address in addresses:
        if isinstance(address, ipaddress.IPv4Address):
            return mac_for(address)
    return ":".join(f"{byte:02x}" for byte in b"\x02\x42" + secrets.token_bytes(4))


def _address_pool(pool: Pool) -> AddressPool:
    reserved = [each for each in (pool.Gateway, *pool.AuxiliaryAddresses.values()) if each and each not in ON_LINK]
    return AddressPool(
        ipaddress.ip_network(pool.Subnet),
        ipaddress.ip_network(pool.IPRange) if pool.IPRange else None,
        [ipaddress.ip_address(each) for each in reserved],
    )
