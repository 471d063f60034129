"""What one bridge network is: its options, pools, claims and rules, and what its device and interfaces need. No kernel."""

from __future__ import annotations

import asyncio
import ipaddress
import string
from collections.abc import Collection, Sequence

from runtime.errors import ForbiddenError, InvalidParameterError
from runtime.kernel.network import AddAddress, AddDefaultRoute, Change, IPAddress, IPInterface, SetUp
from runtime.networks import options, pools
from runtime.networks.addresses import AddressPool, IPNetwork
from runtime.networks.driver import Endpoint, Network, Pool
from runtime.networks.options import BridgeOptions
from runtime.networks.pools import DefaultPool
from runtime.networks.ports import PortClaims, PortRequest, PortTarget
from runtime.networks.rules import BridgeRules, PublishedPort
from runtime.types import EndpointIPAMConfig, EndpointSettings

_OTHER_GATEWAY = "DefaultGatewayIPv4"
"""The auxiliary address by which endpoints get to the world, in place of ours."""
_LINK_LOCAL = ipaddress.IPv6Network("fe80::/64")


class BridgeNetwork:
    """What is handed out on one network, and whether its device is made."""

    def __init__(self, network: Network) -> None:
        self.network, self.options = network, options.parse(network)
        self.device = self.options.device
        self.mtu = self.options.mtu or options.DEFAULT_MTU
        self.internal = network.Internal
        self.pools = [address_pool(pool) for pool in network.Pools]
        self.gateways = [pool.AuxiliaryAddresses.get(_OTHER_GATEWAY, pool.Gateway) for pool in network.Pools]
        self.rules = _rules(network, self.options)
        self.claims = PortClaims()
        self.made = False
        self.links: set[str] = set()
        """The host's ends of those on it."""
        self.lock = asyncio.Lock()

    def allocate(self, settings: EndpointSettings, avoid: Collection[IPAddress]) -> list[IPAddress]:
        """One address a pool, all or none. Raises UnavailableError, InvalidParameterError."""
        asked = settings.IPAMConfig or EndpointIPAMConfig()
        found: list[IPAddress] = []
        for pool in self.pools:
            try:
                found.append(pool.allocate(asked.IPv4Address if pool.subnet.version == 4 else asked.IPv6Address, avoid))
            except BaseException:
                self.give_back(found)
                raise
        return found

    def claim(self, owner: str, ports: Sequence[PortRequest], addresses: Sequence[IPAddress]) -> list[PublishedPort]:
        """Nobody gets into an internal network, and so there is nothing to publish."""
        target = PortTarget(
            addresses={each.version: str(each) for each in addresses},
            binding=str(self.options.binding),
            routed=frozenset(each.version for each in addresses if self.options.mode(each.version) == "routed"),
        )
        return self.claims.claim(owner, () if self.internal else ports, target)

    def give_back(self, addresses: Sequence[IPAddress]) -> None:
        """Idempotent."""
        for pool in self.pools:
            for address in addresses:
                pool.release(address)


def gateway_interfaces(network: Network, asked: BridgeOptions) -> list[IPInterface]:
    """What the bridge has itself."""
    return [
        ipaddress.ip_interface(f"{pool.Gateway}/{pool.Subnet.partition('/')[2]}")
        for pool in network.Pools
        if pool.Gateway and not (asked.inhibit_ipv4 and ":" not in pool.Gateway)
    ]


def sysctls(bridge: BridgeNetwork) -> dict[str, str]:
    """Loopback publishing needs the first. Router advertisements of containers are nobody's way out; see ``closed_sysctls``."""
    device = bridge.device
    found = {f"ipv4/conf/{device}/route_localnet": "1"}
    if any(pool.subnet.version == 6 for pool in bridge.pools):
        found[f"ipv6/conf/{device}/disable_ipv6"] = "1" if bridge.options.mode_ipv6 == "isolated" else "0"
        found[f"ipv6/conf/{device}/accept_ra"] = "0"
    return found


def closed_sysctls(bridge: BridgeNetwork) -> dict[str, str]:
    """The host has no IPv6 on a bridge without it: a container would be its router, and reach its servers (CVE-2020-13401)."""
    if any(pool.subnet.version == 6 for pool in bridge.pools):
        return {}
    return {f"ipv6/conf/{bridge.device}/accept_ra": "0", f"ipv6/conf/{bridge.device}/disable_ipv6": "1"}


def _rules(network: Network, asked: BridgeOptions) -> BridgeRules:
    """The network as the rules know it."""
    return BridgeRules(
        device=asked.device,
        subnets=tuple(ipaddress.ip_network(pool.Subnet) for pool in network.Pools),
        internal=network.Internal,
        icc=asked.icc,
        masquerade=asked.masquerade,
        mode_ipv4=asked.mode_ipv4,
        mode_ipv6=asked.mode_ipv6,
        sources=tuple(each for each in (asked.host_ipv4, asked.host_ipv6) if each),
        trusted_interfaces=asked.trusted_interfaces,
    )


def mac_of(network: Network) -> str:
    """Of a bridge without an address."""
    digits = network.ID[:8]
    return ":".join(("02", "42", *(digits[at : at + 2] for at in range(0, 8, 2))))


def interface_changes(endpoint: Endpoint, *, default_route: bool) -> tuple[Change, ...]:
    """Of the container's own device, in its namespace."""
    addresses = [AddAddress(endpoint.Interface, address) for address in endpoint.interfaces()]
    gateways = [AddDefaultRoute(ipaddress.ip_address(gateway)) for gateway in endpoint.Gateways]
    return (SetUp(endpoint.Interface), *addresses, *(gateways if default_route else ()))


def interface_name(given: str, prefix: str) -> str:
    """``given`` with another word before its number."""
    return prefix + given.lstrip(string.ascii_lowercase) if prefix else given


def address_pool(pool: Pool) -> AddressPool:
    """What of a pool is for endpoints."""
    reserved = [pool.Gateway, *pool.AuxiliaryAddresses.values()]
    return AddressPool(
        ipaddress.ip_network(pool.Subnet),
        ipaddress.ip_network(pool.IPRange) if pool.IPRange else None,
        [ipaddress.ip_address(each) for each in reserved if each],
    )


def wish_or_next(wish: Pool, used: Sequence[IPNetwork], defaults: Sequence[DefaultPool]) -> Pool:
    """The wish unless the host uses part of it already, else the next free subnet."""
    subnet = ipaddress.ip_network(wish.Subnet)
    if not pools.overlapping(subnet, used):
        return wish
    other = pools.next_free([each for each in defaults if each.base.version == subnet.version], used)
    return Pool(Subnet=str(other), Gateway=str(other.network_address + 1))


def check_pools(network: Network, chosen: Sequence[Pool]) -> None:
    """Raises InvalidParameterError, ForbiddenError: what a bridge cannot have."""
    versions = [ipaddress.ip_network(pool.Subnet).version for pool in chosen]
    if not versions:
        raise InvalidParameterError("IPv4 or IPv6 must be enabled")
    if len(versions) > len(set(versions)):
        raise ForbiddenError("bridge driver doesn't support multiple subnets")
    for pool in chosen:
        subnet = ipaddress.ip_network(pool.Subnet)
        if not subnet.prefixlen:
            raise InvalidParameterError(f"ipv{subnet.version} pool is empty")
        if isinstance(subnet, ipaddress.IPv6Network):
            _check_ipv6(subnet, pool.Gateway)


def _check_ipv6(subnet: ipaddress.IPv6Network, gateway: str) -> None:
    text = f"{gateway or subnet.network_address}/{subnet.prefixlen}"
    if subnet.is_multicast:
        raise InvalidParameterError(f"multicast subnet '{text}' is not allowed")
    if subnet != _LINK_LOCAL and subnet.overlaps(_LINK_LOCAL):
        raise InvalidParameterError(f"'{text}' clashes with the Link-Local prefix 'fe80::/64'")
