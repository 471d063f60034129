"""What to change in the kernel so that an overlay is as it should be: pure functions of what is wanted and what is there.

An overlay on a node is a bridge and a VXLAN device in a network namespace of their own. Ports of the bridge learn nothing
and get no frames for MACs without a known place; the VXLAN device gets all of those, and has a forwarding entry for each
endpoint of other nodes, or drops. So a container's claim to be another never moves a frame, and nothing is flooded to
other nodes: the device answers ARP and neighbour solicitation by itself (its permanent neighbours), for remote endpoints
alone, and those here answer for themselves.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec

from runtime.kernel.network import (
    AddAddress,
    AddBridge,
    AddVeth,
    AddVxlan,
    Batch,
    Change,
    DeleteForwarding,
    DeleteLink,
    DeleteNeighbour,
    IPAddress,
    Link,
    SetForwarding,
    SetNeighbour,
    SetPort,
    SetUp,
    VxlanLink,
)
from runtime.networks.addresses import mac_for
from worker.network.types import DataPath, LocalEndpoint, OverlayNetwork, PeerEndpoint

SYSCTLS = {
    "ipv4/ip_forward": "0",
    "ipv6/conf/all/forwarding": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/accept_dad": "0",
}
"""Of an overlay's namespace: it routes nothing, and believes no router. Addresses come from one hand, so none is twice."""


class Devices(msgspec.Struct, frozen=True):
    """What an overlay's devices are called, and the path of the namespace they are in."""

    namespace: str
    bridge: str = "br0"
    vxlan: str = "vxlan0"


class Present(msgspec.Struct, frozen=True):
    """What there is of an overlay."""

    links: Mapping[str, Link]
    vxlan: VxlanLink | None


def device_batches(
    network: OverlayNetwork, node: DataPath, devices: Devices, present: Present, local: Collection[LocalEndpoint]
) -> list[Batch]:
    """The bridge, the VXLAN device and the ports, without entries; an endless repetition changes nothing.

    A VXLAN device that was made for another VNI, address, port or MTU is made anew, as the kernel lets none be changed.
    """
    batches = []
    if not is_fit(network, node, present.vxlan):
        if devices.vxlan in present.links:
            batches.append(Batch((DeleteLink(devices.vxlan),), devices.namespace))
        made = AddVxlan(devices.vxlan, network.vni, node.address, node.port, node.mtu_of(network), devices.namespace)
        batches.append(Batch((made,)))
    wanted = {endpoint.link for endpoint in local}
    strangers = [name for name, link in present.links.items() if link.bridge == devices.bridge and name not in wanted]
    changes: list[Change] = [
        AddBridge(devices.bridge, mac_for(network.subnets[0].gateway), snooping=False),
        *(AddAddress(devices.bridge, _interface(each.gateway, each.network.prefixlen)) for each in network.subnets),
        SetUp(devices.bridge),
        SetPort(devices.vxlan, devices.bridge, flood=True),
        *(DeleteLink(name) for name in strangers if name != devices.vxlan),
    ]
    for endpoint in local:
        if endpoint.link in present.links:  # one that has gone is its container's end
            changes += port_changes(endpoint, devices)
    batches.append(Batch(tuple(changes), devices.namespace))
    return batches


def is_fit(network: OverlayNetwork, node: DataPath, present: VxlanLink | None) -> bool:
    """Whether a VXLAN device is the one that is wanted."""
    wanted = network.vni, node.address, node.port, node.mtu_of(network)
    return present is not None and (present.vni, present.local, present.port, present.mtu) == wanted


def bare(network: OverlayNetwork, node: DataPath) -> VxlanLink:
    """A VXLAN device as it is made."""
    return VxlanLink(network.vni, node.address, node.port, node.mtu_of(network), "", {}, {})


def port_changes(endpoint: LocalEndpoint, devices: Devices) -> tuple[Change, ...]:
    """An endpoint's device on the bridge, where its MAC alone is looked for."""
    return SetPort(endpoint.link, devices.bridge, flood=False), SetForwarding(endpoint.link, endpoint.mac)


def veth(endpoint: LocalEndpoint, mtu: int, devices: Devices) -> AddVeth:
    """The pair between the bridge and the container."""
    return AddVeth(endpoint.link, devices.bridge, mtu, endpoint.interface, endpoint.mac, endpoint.sandbox)


def peer_changes(node: DataPath, device: str, old: PeerEndpoint | None, new: PeerEndpoint | None) -> Iterator[Change]:
    """From one endpoint of another node to the next of the same first address; None is none, and so is one of this node.

    Args:
        device: the VXLAN device.
    """
    yield from _difference(device, _entries(node, old), _entries(node, new))


def all_peer_changes(
    node: DataPath, device: str, peers: Iterable[PeerEndpoint], present: VxlanLink, *, keep_strangers: bool
) -> Iterator[Change]:
    """From what the device has to what it should have, and with ``keep_strangers`` to that and what it has beside."""
    wanted = _Entries({}, {})
    for peer in peers:
        entries = _entries(node, peer)
        wanted.forwarding.update(entries.forwarding)
        wanted.neighbours.update(entries.neighbours)
    if keep_strangers:
        wanted = _Entries(present.forwarding | wanted.forwarding, present.neighbours | wanted.neighbours)
    yield from _difference(device, _Entries(present.forwarding, present.neighbours), wanted)


class _Entries(msgspec.Struct):
    forwarding: dict[str, IPAddress]
    neighbours: dict[IPAddress, str]


def _entries(node: DataPath, peer: PeerEndpoint | None) -> _Entries:
    if peer is None or peer.node == node.address or peer.node.version != node.address.version:
        return _Entries({}, {})  # the kernel takes no entry of the other address family, and nothing beside it
    return _Entries({peer.mac: peer.node}, dict.fromkeys(peer.addresses, peer.mac))


def _difference(device: str, there: _Entries, wanted: _Entries) -> Iterator[Change]:
    """Where it is before who it is: whoever asks for the address may send at once."""
    for address in there.neighbours.keys() - wanted.neighbours.keys():
        yield DeleteNeighbour(device, address)
    for mac in there.forwarding.keys() - wanted.forwarding.keys():
        yield DeleteForwarding(device, mac)
    for mac, host in wanted.forwarding.items():
        if there.forwarding.get(mac) != host:
            yield SetForwarding(device, mac, host)
    for address, mac in wanted.neighbours.items():
        if there.neighbours.get(address) != mac:
            yield SetNeighbour(device, address, mac)


def _interface(address: IPAddress, length: int) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    return ipaddress.ip_interface(f"{address}/{length}")
