"""The port between the engine and what makes networks: networks, endpoints, and what a driver does with them.

The bridge, host and null drivers of this package implement it; others (the cluster's overlays) are handed to the engine
from outside. The table of networks and of who is on them is ``Networks``'; a driver keeps what it has handed out
(addresses, ports) in memory and what it has made in the kernel, and is told the rest.

A container's endpoint goes one way: ``reserve`` before its process exists or while it runs, ``attach`` once it has a
network namespace, ``detach`` if it leaves the network before its end, ``release`` after either; ``adopt`` instead of the
first two when it ran on while the daemon was away. ``publish`` moves its ports to another of its endpoints meanwhile.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from runtime.kernel.network import IPAddress, IPInterface
from runtime.network_types import IPAM
from runtime.networks.ports import PortRequest
from runtime.networks.rules import PublishedPort
from runtime.types import EndpointSettings

ON_LINK = ("0.0.0.0", "::")
"""As a gateway: there is none, what is anywhere is reached by the link itself."""


class Pool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A subnet in CIDR form, of either address family, and what of it is whose.

    ``Gateway`` is the host's address (or a router's), "" where there is none and so no way out, ``ON_LINK`` as it says. Endpoints get addresses out of ``IPRange`` (CIDR form, "" for
    all of the subnet) that are not among ``AuxiliaryAddresses``, which belong to devices beside us, by name.
    """

    Subnet: str
    Gateway: str = ""
    IPRange: str = ""
    AuxiliaryAddresses: dict[str, str] = msgspec.field(default_factory=dict)


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A network as it is kept.

    ``IPAM`` is what was asked for, as inspect shows it. ``Pools`` is what endpoints' addresses come from: wishes at most
    while the network is not ``Settled``, and it has no devices then. A ``ConfigOnly`` network is never settled: it is a
    configuration, for the networks whose ``ConfigFrom`` names it. A device that was ``DeviceFound`` stays when it goes. One that is ``Incomplete`` was being made or removed
    when it was written: nobody gets on it, and the next start removes what there is of it.
    """

    ID: str
    Name: str
    Driver: str
    Created: str
    Scope: str = ""
    Options: dict[str, str] = msgspec.field(default_factory=dict)
    Labels: dict[str, str] = msgspec.field(default_factory=dict)
    EnableIPv4: bool = True
    EnableIPv6: bool = False
    Internal: bool = False
    Attachable: bool = False
    Ingress: bool = False
    ConfigOnly: bool = False
    ConfigFrom: str = ""
    IPAM: IPAM = IPAM()
    Pools: list[Pool] = msgspec.field(default_factory=list)
    Settled: bool = False
    DeviceFound: bool = False
    Incomplete: bool = False


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A container's place on one network.

    ``Interface`` is the device inside the container, "" where it has none of its own (host, none), ``Link`` the host's side of it, if any. ``Addresses`` are in CIDR form and ``Gateways`` plain, at most one an address
    family, IPv4 first.
    """

    NetworkID: str
    ID: str = ""
    Interface: str = ""
    Link: str = ""
    Addresses: list[str] = msgspec.field(default_factory=list)
    Gateways: list[str] = msgspec.field(default_factory=list)
    MacAddress: str = ""
    Aliases: list[str] | None = None
    Ports: list[PublishedPort] = msgspec.field(default_factory=list)

    def interfaces(self) -> list[IPInterface]:
        """The addresses, parsed."""
        return [ipaddress.ip_interface(address) for address in self.Addresses]


class EndpointRequest(msgspec.Struct, frozen=True):
    """What a container wants of one network: ``settings`` as the user wrote them, ``interface`` the name to give.

    ``ports`` are to be published, empty on all but one of a container's networks. ``avoid`` are addresses that other
    containers, running or not, have asked for by name: none of them may be chosen for one that asked for none.
    """

    container_id: str
    settings: EndpointSettings
    interface: str
    ports: Sequence[PortRequest] = ()
    avoid: Collection[IPAddress] = ()


class Sandbox(msgspec.Struct, frozen=True):
    """A container's endpoints by network name, in order, and those of them that have its default routes.

    ``gateways`` has one name; two when the routes of the two address families go by different networks, IPv4's first;
    none when there is no way out. The first has the published ports.
    """

    endpoints: Mapping[str, Endpoint] = msgspec.field(default_factory=dict)
    gateways: tuple[str, ...] = ()

    def addresses(self, asked: Collection[str]) -> Iterator[str]:
        """Those on the networks that were asked for, without the prefix length."""
        endpoints = (endpoint for name, endpoint in self.endpoints.items() if name in asked)
        return (str(each.ip) for endpoint in endpoints for each in endpoint.interfaces())

    def default_gateway(self) -> str:
        """The first there is, IPv4 before IPv6, or ""."""
        gateways = (address for name in self.gateways for address in self.endpoints[name].Gateways)
        return next((address for address in gateways if address not in ON_LINK), "")


class Driver(Protocol):
    """Makes networks of one kind. Methods raise HostError when the kernel refuses, and have undone their part then."""

    @property
    def name(self) -> str:
        """``Driver`` of its networks, such as "bridge"."""
        ...

    @property
    def scope(self) -> Literal["local", "swarm"]:
        """How far its networks reach."""
        ...

    @property
    def routes(self) -> bool:
        """Whether an endpoint here can have the default route and published ports."""
        ...

    async def settle(self, network: Network, others: Sequence[Network] = ()) -> Network:
        """Choose what was left open: the pools as they will be. Makes no device.

        ``others`` are the settled networks of this host, whose devices and addresses are taken. Raises what a user who
        asked for such a network is to be told: InvalidParameterError, ForbiddenError, UnavailableError.
        """
        ...

    async def create(self, network: Network) -> None:
        """Make what a settled network needs on this host. Called before each reservation: at once when it is made."""
        ...

    async def remove(self, network: Network) -> None:
        """Take away what ``create`` made and forget the network. Idempotent."""
        ...

    async def reserve(self, network: Network, request: EndpointRequest) -> Endpoint:
        """Addresses, MAC and host ports, before the container's namespace exists; all or none.

        Raises UnavailableError: no address is left, an address or port is taken. InvalidParameterError.
        """
        ...

    async def attach(self, network: Network, endpoint: Endpoint, namespace: str, *, default_route: bool) -> None:
        """Give the network namespace at this path (/proc/PID/ns/net) its interface."""
        ...

    async def publish(self, network: Network, endpoint: Endpoint, ports: Sequence[PortRequest]) -> Endpoint:
        """Have an endpoint publish these ports and no other, at once; returns it with what it publishes then.

        Raises UnavailableError: a port is taken; HostError. It publishes nothing then.
        """
        ...

    async def detach(self, network: Network, endpoint: Endpoint, namespace: str) -> None:
        """Take the interface away from the namespace at this path, which goes on. Gone already is fine.

        One that ends takes it along by itself.
        """
        ...

    async def release(self, network: Network, endpoint: Endpoint) -> None:
        """Give back what ``reserve`` took. Idempotent."""
        ...

    def adopt(self, network: Network, endpoint: Endpoint) -> None:
        """Note as taken what a container that ran on still has."""
        ...

    async def reconcile(self, network: Network, endpoints: Sequence[Endpoint]) -> None:
        """After a restart, all adopted: make the kernel's side as it should be, with these endpoints and no other."""
        ...

    def close(self) -> None:
        """Let go of what the daemon holds (sockets). Devices and rules stay for the containers that run on."""
        ...
