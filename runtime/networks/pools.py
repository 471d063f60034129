"""Which subnets a network gets: those asked for, or the next free ones of the default address pools. No I/O.

Source: moby ``libnetwork/ipams/defaultipam``, ``libnetwork/network.go`` (``ipamAllocateVersion``).
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

import msgspec

from base.numbers import natural
from runtime.errors import ForbiddenError, InvalidParameterError
from runtime.kernel.network import IPAddress
from runtime.network_types import IPAMConfig
from runtime.networks.addresses import AddressPool, IPNetwork
from runtime.networks.driver import Network, Pool

N = TypeVar("N", ipaddress.IPv4Network, ipaddress.IPv6Network)
OVERLAPS = "invalid pool request: Pool overlaps with other one on this address space"


class DefaultPool(msgspec.Struct, frozen=True):
    """A block that subnets of one size (a prefix length) are cut from."""

    base: IPNetwork
    size: int

    def __post_init__(self) -> None:
        if not self.base.prefixlen <= self.size <= self.base.max_prefixlen:
            raise InvalidParameterError(f"default address pool {self.base}: it has no subnets of size /{self.size}")


DEFAULT_POOLS = (
    *(DefaultPool(ipaddress.IPv4Network((f"172.{second}.0.0", 16)), 16) for second in range(17, 32)),
    DefaultPool(ipaddress.IPv4Network("192.168.0.0/16"), 20),
)


def parse_default_pools(texts: Sequence[str], *, seed: str) -> list[DefaultPool]:
    """Of ``--default-address-pool base=CIDR,size=LENGTH``; dockerd's ones where there is none of an address family.

    Args:
        seed: of the host, for its own IPv6 block.

    Raises: InvalidParameterError.
    """
    found = [_parse_default_pool(text) for text in texts]
    versions = {pool.base.version for pool in found}
    return [*found, *(DEFAULT_POOLS if 4 not in versions else ()), *([ula(seed)] if 6 not in versions else ())]


def _parse_default_pool(text: str) -> DefaultPool:
    parts = dict(part.partition("=")[::2] for part in text.split(","))
    size = natural(parts.get("size", ""), largest=128)
    try:
        if set(parts) != {"base", "size"} or size is None:
            raise ValueError("want base=CIDR,size=LENGTH")
        return DefaultPool(ipaddress.ip_network(parts["base"]), size)
    except ValueError as error:
        raise InvalidParameterError(f"invalid default address pool {text[:100]!r}: {error}") from None


def ula(seed: str) -> DefaultPool:
    """The IPv6 block of a host: 40 bits that follow from ``seed``, so that hosts hardly share one (RFC 4193)."""
    prefix = b"\xfd" + hashlib.sha256(seed.encode()).digest()[:5]
    return DefaultPool(ipaddress.IPv6Network((prefix + bytes(10), 48)), 64)


def choose(
    network: Network,
    *,
    taken: Iterable[IPNetwork],
    avoid: Iterable[IPNetwork],
    defaults: Sequence[DefaultPool],
    versions_without_gateway: Collection[int] = (),
) -> list[Pool]:
    """The pools of a network by what its ``IPAM`` asks for, IPv4 first; one of each enabled address family at least.

    Args:
        taken: the subnets of other networks: no other may overlap with them.
        avoid: what the host reaches otherwise: overlapped by subnets that were asked for alone.

    Raises:
        ForbiddenError: it overlaps, or an address in it is wanted twice.
        InvalidParameterError: no default pool has a subnet left.
    """
    used, found = list(taken), []
    for version in network_versions(network):
        asked = [each for each in network.IPAM.Config or () if ipaddress.ip_network(each.Subnet).version == version]
        for config in asked or [IPAMConfig()]:
            if config.Subnet:
                subnet = ipaddress.ip_network(config.Subnet)
                if overlapping(subnet, used):
                    raise ForbiddenError(OVERLAPS)
            else:
                subnet = next_free([pool for pool in defaults if pool.base.version == version], [*used, *avoid])
            used.append(subnet)
            found.append(_pool(subnet, config, with_gateway=version not in versions_without_gateway))
    return found


def network_versions(network: Network) -> list[int]:
    """The address families that a network has: 4, 6."""
    return [version for version, enabled in ((4, network.EnableIPv4), (6, network.EnableIPv6)) if enabled]


def nameservers(resolv_conf: str) -> list[IPNetwork]:
    """The servers that resolv.conf(5) names, as subnets of one address: one on a container's network would be out of reach."""
    found: list[IPNetwork] = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            with contextlib.suppress(ValueError):
                found.append(ipaddress.ip_network(words[1].partition("%")[0]))
    return found


def overlapping(subnet: IPNetwork, others: Iterable[IPNetwork]) -> bool:
    """Whether one of the others has an address of the subnet."""
    return any(
        subnet.version == other.version and _end(subnet) >= _start(other) and _end(other) >= _start(subnet)
        for other in others
    )


def next_free(pools: Iterable[DefaultPool], used: Iterable[IPNetwork]) -> IPNetwork:
    """The first subnet of the pools, in their order, that overlaps with nothing used. Raises InvalidParameterError."""
    blocks = list(used)
    for pool in pools:
        in_the_way = sorted((_start(each), _end(each)) for each in blocks if overlapping(pool.base, [each]))
        step, start = 1 << (pool.base.max_prefixlen - pool.size), _start(pool.base)
        for first, last in in_the_way:
            if first >= start + step:
                break
            if last >= start:
                start += (last - start) // step * step + step
        if start + step - 1 <= _end(pool.base):
            return type(pool.base)((start, pool.size))
    raise InvalidParameterError("all predefined address pools have been fully subnetted")


def _pool(subnet: IPNetwork, config: IPAMConfig, *, with_gateway: bool) -> Pool:
    part = ipaddress.ip_network(config.IPRange) if config.IPRange else None
    free = AddressPool(subnet, part)
    gateway: IPAddress | None = None
    if config.Gateway:
        gateway = ipaddress.ip_address(config.Gateway)
        if not free.is_free(gateway):
            raise ForbiddenError(f"failed to allocate gateway ({gateway}): Address already in use")
    elif with_gateway:
        gateway = free.allocate()
    if gateway:
        free.adopt(gateway)
    for name, text in config.AuxiliaryAddresses.items():
        address = ipaddress.ip_address(text)
        if not free.is_free(address):
            raise ForbiddenError(f"failed to allocate secondary ip address ({name}:{text}): Address already in use")
        free.adopt(address)
    return Pool(
        Subnet=str(subnet),
        Gateway=str(gateway or ""),
        IPRange=config.IPRange,
        AuxiliaryAddresses=config.AuxiliaryAddresses,
    )


def _start(subnet: IPNetwork) -> int:
    return int(subnet.network_address)


def _end(subnet: IPNetwork) -> int:
    return int(subnet.broadcast_address)
