"""What is decided of an overlay's devices and entries, carried out on a kernel in memory."""

from __future__ import annotations

import asyncio
import ipaddress

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from runtime.kernel.network import AddVxlan, Batch, Change, DeleteLink, IPAddress, Link, SetPort, VxlanLink
from tests.unit.networks.fakes import RecordingKernel
from worker.network import plan
from worker.network.types import DataPath, LocalEndpoint, NetworkID, OverlayNetwork, PeerEndpoint, Subnet

HERE, THERE, ELSEWHERE = (ipaddress.ip_address(f"192.0.2.{number}") for number in (1, 2, 3))
NODE = DataPath(HERE)
NET = ipaddress.ip_network("10.0.1.0/24")
NETWORK = OverlayNetwork(id=NetworkID("n1"), vni=4097, subnets=(Subnet(NET, NET[1]),))
DEVICES = plan.Devices("/run/overlays/n1")

numbers = st.integers(2, 9)
nodes = st.sampled_from([HERE, THERE, ELSEWHERE])
tables = st.dictionaries(numbers, nodes)


def peers(of: dict[int, ipaddress.IPv4Address | ipaddress.IPv6Address]) -> dict[int, PeerEndpoint]:
    v6 = ipaddress.ip_network("fd00:1::/64")
    return {number: PeerEndpoint((NET[number], v6[number])[: 1 + number % 2], node) for number, node in of.items()}


def bare() -> VxlanLink:
    return VxlanLink(4097, HERE, 4789, 1450, "br0", {}, {})


def carry_out(present: VxlanLink, changes: list[Change]) -> VxlanLink:
    kernel = RecordingKernel()
    kernel.devices[DEVICES.namespace] = {"lo": kernel.devices[""]["lo"]}
    asyncio.run(kernel.apply(Batch((AddVxlan("vxlan0", 4097, HERE, 4789, 1450, DEVICES.namespace),))))
    device = kernel.devices[DEVICES.namespace]["vxlan0"]
    device.vxlan = msgspec.structs.replace(
        present, forwarding=dict(present.forwarding), neighbours=dict(present.neighbours)
    )
    asyncio.run(kernel.apply(Batch(tuple(changes), DEVICES.namespace)))
    assert device.vxlan is not None
    return device.vxlan


def full(wanted: dict[int, PeerEndpoint], present: VxlanLink) -> list[Change]:
    return [*plan.all_peer_changes(NODE, "vxlan0", wanted.values(), present, keep_strangers=False)]


@given(before=tables, after=tables)
def test_entries_become_those_of_the_peers_elsewhere_in_one_pass(
    before: dict[int, IPAddress], after: dict[int, IPAddress]
) -> None:
    present = carry_out(bare(), full(peers(before), bare()))
    wanted = peers(after)
    found = carry_out(present, full(wanted, present))
    others = [peer for peer in wanted.values() if peer.node != HERE]
    assert found.forwarding == {peer.mac: peer.node for peer in others}
    assert found.neighbours == {address: peer.mac for peer in others for address in peer.addresses}
    assert full(wanted, found) == []


@given(before=tables, after=tables)
def test_one_by_one_comes_to_the_same_as_all_at_once(before: dict[int, IPAddress], after: dict[int, IPAddress]) -> None:
    old, new = peers(before), peers(after)
    present = carry_out(bare(), full(old, bare()))
    steps = [
        change
        for number in old.keys() | new.keys()
        for change in plan.peer_changes(NODE, "vxlan0", old.get(number), new.get(number))
    ]
    assert carry_out(present, steps) == carry_out(present, full(new, present))


@given(before=tables, after=tables)
def test_what_nobody_has_been_told_of_yet_stays(before: dict[int, IPAddress], after: dict[int, IPAddress]) -> None:
    present = carry_out(bare(), full(peers(before), bare()))
    changes = [*plan.all_peer_changes(NODE, "vxlan0", peers(after).values(), present, keep_strangers=True)]
    found = carry_out(present, changes)
    assert found.forwarding.keys() >= present.forwarding.keys()
    assert found.neighbours.keys() >= present.neighbours.keys()


def test_where_somebody_is_comes_before_who_it_is() -> None:
    """Whoever asks for the address may send at once."""
    changes = full(peers({3: THERE}), bare())
    assert [type(change).__name__ for change in changes] == ["SetForwarding", "SetNeighbour", "SetNeighbour"]


def device_batches(present: VxlanLink | None, links: dict[str, Link], *local: LocalEndpoint) -> list[Batch]:
    return plan.device_batches(NETWORK, NODE, DEVICES, plan.Present(links, present), local)


def endpoint(number: int) -> LocalEndpoint:
    return LocalEndpoint(f"e{number}", (NET[number],), f"veth{number}", "eth0", f"/proc/{number}/ns/net")


def test_a_device_that_fits_is_left_alone() -> None:
    links = {name: Link(name, bridge) for name, bridge in (("br0", ""), ("vxlan0", "br0"), ("veth2", "br0"))}
    (batch,) = device_batches(bare(), links, endpoint(2))
    assert not any(isinstance(change, DeleteLink | AddVxlan) for change in batch.changes)


def test_one_of_another_vni_address_port_or_mtu_is_made_anew() -> None:
    for other in ({"vni": 5000}, {"local": THERE}, {"port": 4790}, {"mtu": 1400}, {"local": None}):
        present = msgspec.structs.replace(bare(), **other)
        batches = device_batches(present, {"vxlan0": Link("vxlan0", "br0")})
        assert batches[0] == Batch((DeleteLink("vxlan0"),), DEVICES.namespace)
        assert batches[1] == Batch((AddVxlan("vxlan0", 4097, HERE, 4789, 1450, DEVICES.namespace),))


def test_ports_of_nobody_go_and_those_that_lost_their_bridge_come_back() -> None:
    links = {name: Link(name, bridge) for name, bridge in (("vxlan0", "br0"), ("veth2", ""), ("veth3", "br0"))}
    (batch,) = device_batches(bare(), links, endpoint(2), endpoint(4))
    assert DeleteLink("veth3") in batch.changes
    assert SetPort("veth2", "br0", flood=False) in batch.changes
    assert not any(isinstance(change, SetPort) and change.link == "veth4" for change in batch.changes)


def test_the_mtu_is_what_the_underlay_leaves_or_what_was_asked() -> None:
    assert NODE.mtu_of(NETWORK) == 1450
    assert DataPath(HERE, mtu=9000).mtu_of(NETWORK) == 8950
    assert DataPath(ipaddress.ip_address("2001:db8::1")).mtu_of(NETWORK) == 1430
    assert NODE.mtu_of(msgspec.structs.replace(NETWORK, mtu=1300)) == 1300
