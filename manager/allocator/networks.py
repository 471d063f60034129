"""What is chosen for a network when it is made: its number and its subnets. Pure.

What was chosen stands in the network itself; there is no other record. Numbers rise and come round after 16 million
networks, so that a node that has not heard of a removal yet does not take a new network for the old one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from typing import TypeAlias

from proto.objects_pb2 import Network
from proto.specs_pb2 import IPAMConfig, IPAMOptions, NetworkSpec

VNI_MIN = 4096
"""Below are the numbers of VLANs, which some hardware takes them for (swarmkit ``manager/allocator``)."""
VNI_MAX = 2**24 - 1
UNIQUE_SUBNET_SIZE = 64
"""Prefix length of IPv6 subnets that were left open."""

IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class NoRoomError(Exception):
    """There is no such number, subnet or address left, or somebody has it; ``str`` says which, for users."""


def choose_vni(last: int, used: Collection[int]) -> int:
    """The next free VXLAN network identifier after ``last``. Raises: NoRoomError."""
    for number in chain(range(max(last + 1, VNI_MIN), VNI_MAX + 1), range(VNI_MIN, min(last, VNI_MAX) + 1)):
        if number not in used:
            return number
    raise NoRoomError("no VXLAN network identifier is left")


def choose_subnets(
    spec: NetworkSpec, used: Collection[IPNetwork], pools: Iterable[str], subnet_size: int, unique_prefix: str
) -> IPAMOptions:
    """The subnets that a network has, with their gateways: those asked for, and one an address family of what was left open.

    Args:
        spec: valid.
        used: subnets of the other networks.
        pools: IPv4 prefixes that subnets are taken from, such as "10.0.0.0/8"; of one that is asked for it does not matter.
        subnet_size: prefix length of what is taken from them.
        unique_prefix: a /48 of unique local IPv6 addresses, this cluster's own (RFC 4193).

    Raises:
        NoRoomError.
    """
    chosen = IPAMOptions()
    chosen.driver.name = spec.ipam_options.driver.name or "default"
    chosen.driver.options.update(spec.ipam_options.driver.options)
    taken = list(used)
    for config in spec.ipam_options.configs:
        subnet = ipaddress.ip_network(config.subnet)
        if any(_overlaps(subnet, other) for other in taken):
            raise NoRoomError("invalid pool request: Pool overlaps with other one on this address space")
        taken.append(subnet)
        chosen.configs.append(_complete(config, subnet))
    families = {ipaddress.ip_network(config.subnet).version for config in chosen.configs}
    left_open = [
        v for v, wanted in ((4, not spec.ipv4_disabled), (6, spec.ipv6_enabled)) if wanted and v not in families
    ]
    for version in left_open:
        prefixes, size = (pools, subnet_size) if version == 4 else ((unique_prefix,), UNIQUE_SUBNET_SIZE)
        parts = (_free_part(ipaddress.ip_network(each), size, taken) for each in prefixes)
        free = next((part for part in parts if part is not None), None)
        if free is None:
            raise NoRoomError(
                f"could not find an available, non-overlapping IPv{version} address pool among the defaults to assign to "
                "the network"
            )
        chosen.configs.append(_complete(IPAMConfig(), free))
    return chosen


def subnets(network: Network) -> Iterator[IPNetwork]:
    """Those that a network has."""
    return (ipaddress.ip_network(config.subnet) for config in network.ipam.configs)


def _free_part(whole: IPNetwork, size: int, taken: Iterable[IPNetwork]) -> IPNetwork | None:
    """The first part of ``whole``, of that prefix length, that overlaps none of those taken."""
    step = 1 << int(whole.max_prefixlen - size)
    number = int(whole.network_address)
    for other in sorted((each for each in taken if each.version == whole.version), key=lambda each: int(each[0])):
        if int(other[0]) >= number + step:
            break
        number = max(number, (int(other[-1]) // step + 1) * step)
    return type(whole)((number, size)) if number + step - 1 <= int(whole[-1]) else None


def _overlaps(subnet: IPNetwork, other: IPNetwork) -> bool:
    if isinstance(subnet, ipaddress.IPv4Network):
        return isinstance(other, ipaddress.IPv4Network) and subnet.overlaps(other)
    return isinstance(other, ipaddress.IPv6Network) and subnet.overlaps(other)


def _complete(config: IPAMConfig, subnet: IPNetwork) -> IPAMConfig:
    complete = IPAMConfig()
    complete.CopyFrom(config)
    complete.subnet = str(subnet)
    complete.gateway = config.gateway or str(subnet.network_address + 1)
    return complete
