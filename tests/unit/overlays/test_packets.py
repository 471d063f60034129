"""Overlays between hosts: real packets over real VXLAN devices."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.kernel.network import Batch, DeleteLink
from tests.unit.networks.places import Place
from tests.unit.overlays.hosts import Bed, bed, comes_true, ip, ping, serving, tcp, udp
from worker.network.types import DataPath, PeerEndpoint

pytestmark = pytest.mark.root
VXLAN_HEADER = struct.Struct(">BxxxI")
ETH_P_ALL = 3


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed(tmp_path, 3) as made:
        yield made


async def test_containers_of_three_hosts_talk_and_those_of_another_network_hear_nothing(hosts: Bed) -> None:
    red = await hosts.add_network("red", 4097, "10.0.1.0/24", "fd00:1::/64")
    blue = await hosts.add_network("blue", 4098, "10.0.1.0/24")  # the same addresses: another world
    reds = [
        await hosts.start(host, red, f"10.0.1.{host.number + 1}", f"fd00:1::{host.number + 1}") for host in hosts.hosts
    ]
    blues = [await hosts.start(host, blue, f"10.0.1.{host.number + 1}") for host in hosts.hosts[:2]]
    with _ear(blues[1].place) as ear, serving(reds[1], 80), serving(blues[1], 81, "blue"):
        assert all(ping(reds[0], f"10.0.1.{number}") for number in (3, 4))
        assert all(ping(reds[0], f"fd00:1::{number}") for number in (3, 4))
        assert tcp(reds[0].place, "10.0.1.3", 80) == ["10.0.1.3", "10.0.1.2"]
        assert udp(reds[2].place, "10.0.1.3", 80) == ["10.0.1.3", "10.0.1.4"]
        assert not ping(blues[0], "10.0.1.4")  # a red address that no blue container has
        with pytest.raises(OSError, match=r".+"):
            tcp(blues[0].place, "10.0.1.3", 80)
        assert tcp(blues[0].place, "10.0.1.3", 81) == ["blue", "10.0.1.2"]
        heard = _frames(ear)
    assert any(b"who" in frame for frame in heard)
    assert not any(b"10.0.1.3 10.0.1" in frame for frame in heard)


async def test_frames_are_as_large_as_the_underlay_lets_them_be_and_no_larger(hosts: Bed) -> None:
    red = await hosts.add_network("red", 4097, "10.0.1.0/24")
    first, second = [await hosts.start(host, red, f"10.0.1.{host.number + 1}") for host in hosts.hosts[:2]]
    assert ping(first, second.address, size=1450 - 28)
    assert not ping(first, second.address, size=1450 - 28 + 1)


async def test_packets_leave_from_the_data_path_address_by_the_data_path_port(hosts: Bed) -> None:
    red = await hosts.add_network("red", 4097, "10.0.1.0/24")
    first_host, second_host = hosts.hosts[:2]
    for host in (first_host, second_host):
        for number in (1, 2):  # two more addresses, of which the kernel would choose one
            host.place.run("ip", "addr", "add", f"172.20.{number}.{host.number}/24", "dev", "eth0")
        host.overlays.set_node(DataPath(ip(f"172.20.2.{host.number}"), 4790))
    first = await hosts.start(first_host, red, "10.0.1.2")
    second = await hosts.start(second_host, red, "10.0.1.3")
    moved = [
        PeerEndpoint(each.addresses, ip(str(each.node).replace("192.168.77", "172.20.2"))) for each in hosts.peers(red)
    ]
    for host in hosts.hosts[:2]:
        host.overlays.set_peers(red, moved)
    await hosts.settled(red)
    with _ear(second_host.place) as ear:
        assert ping(first, second.address)
        seen = {(packet.source, packet.port) for packet in map(_Outer, _frames(ear)) if packet.vni == 4097}
    assert seen == {("172.20.2.1", 4790), ("172.20.2.2", 4790)}


async def test_a_network_is_here_from_its_first_container_to_its_last(hosts: Bed) -> None:
    red = await hosts.add_network("red", 4097, "10.0.1.0/24")
    first = await hosts.start(hosts.hosts[0], red, "10.0.1.2")
    others = [host for host in hosts.hosts if (host.run / "overlays" / "red").exists()]
    assert others == hosts.hosts[:1]
    first.host.containers.remove(first)
    await first.host.overlays.leave(red, first.endpoint)
    await hosts.settled(red)
    assert list((first.host.run / "overlays").iterdir()) == []
    await hosts.start(hosts.hosts[0], red, "10.0.1.2")  # the VNI is free again


@pytest.mark.parametrize("device", ["vxlan0", "br0"])
async def test_a_deleted_device_heals(hosts: Bed, device: str) -> None:
    red = await hosts.add_network("red", 4097, "10.0.1.0/24")
    first, second = [await hosts.start(host, red, f"10.0.1.{host.number + 1}") for host in hosts.hosts[:2]]
    neighbour = await hosts.start(hosts.hosts[0], red, "10.0.1.9")
    assert ping(first, second.address)
    inside = str(hosts.hosts[0].run / "overlays" / "red")
    await hosts.hosts[0].kernel.apply(Batch((DeleteLink(device),), inside))
    await comes_true(lambda: ping(first, second.address), "the other host answers")
    assert ping(first, neighbour.address)


async def test_traffic_goes_on_while_the_daemon_is_killed_and_a_new_one_takes_over(hosts: Bed) -> None:
    red = await hosts.add_network("red", 4097, "10.0.1.0/24")
    first, second = [await hosts.start(host, red, f"10.0.1.{host.number + 1}") for host in hosts.hosts[:2]]
    gone = await hosts.start(hosts.hosts[2], red, "10.0.1.7")
    host = hosts.hosts[0]
    with serving(second, 80):
        await host.kill()
        assert tcp(first.place, second.address, 80)
        host.overlays.set_network(hosts.networks[red])
        host.overlays.adopt(red, first.endpoint)
        host.overlays.set_network(hosts.networks[red])
        await host.overlays.tidy()
        await hosts.settled(red)
        assert tcp(first.place, second.address, 80), "nobody said who is there: what was, stays"
        gone.host.containers.remove(gone)
        await gone.host.overlays.leave(red, gone.endpoint)
        await hosts.tell(red)
        assert tcp(first.place, second.address, 80)
    present = await host.kernel.vxlan("vxlan0", str(host.run / "overlays" / "red"))
    assert present is not None
    assert present.neighbours == {ip(second.address): second.endpoint.mac}
    assert present.forwarding == {second.endpoint.mac: hosts.hosts[1].address}


async def test_a_new_daemon_takes_away_what_nobody_uses_any_more(hosts: Bed) -> None:
    red = await hosts.add_network("red", 4097, "10.0.1.0/24")
    first = await hosts.start(hosts.hosts[0], red, "10.0.1.2")
    await first.host.kill()
    first.host.containers.remove(first)
    await first.host.overlays.tidy()
    assert list((first.host.run / "overlays").iterdir()) == []


async def test_a_container_that_claims_the_address_of_another_gets_none_of_its_packets(hosts: Bed) -> None:
    red = await hosts.add_network("red", 4097, "10.0.1.0/24")
    liar = await hosts.start(hosts.hosts[0], red, "10.0.1.2")
    victim = await hosts.start(hosts.hosts[0], red, "10.0.1.3")
    other = await hosts.start(hosts.hosts[1], red, "10.0.1.4")
    frame = _frame(victim.endpoint.mac, other.endpoint.mac)
    with liar.place.socket(socket.SOCK_RAW, socket.htons(ETH_P_ALL), socket.AF_PACKET) as made:
        made.bind(("eth0", 0))
        for _ in range(3):
            made.send(frame)
    with serving(victim, 80):
        assert udp(other.place, victim.address, 80) == [victim.address, other.address]


async def test_ten_thousand_endpoints_and_one_more(hosts: Bed) -> None:
    """How long it takes is the benchmark's to say; here, that one more is one more."""
    red = await hosts.add_network("red", 4097, "10.0.0.0/16")
    first = await hosts.start(hosts.hosts[0], red, "10.0.200.2")
    host = first.host
    many = [
        PeerEndpoint((ipaddress.ip_address(f"10.0.{n >> 8}.{n & 255}"),), hosts.hosts[1].address)
        for n in range(2, 10_002)
    ]
    host.overlays.set_peers(red, many[:-1])
    await host.overlays.settled(red)
    asked: list[Batch] = []
    apply = host.kernel.apply

    async def note(*batches: Batch) -> None:
        asked.extend(batches)
        await apply(*batches)

    host.kernel.apply = note  # type: ignore[method-assign] # counts what the real one is asked
    host.overlays.change_peers(red, many[-1:])
    await host.overlays.settled(red)
    assert [len(each.changes) for each in asked] == [2]
    present = await host.kernel.vxlan("vxlan0", str(host.run / "overlays" / "red"))
    assert present is not None
    assert (len(present.forwarding), len(present.neighbours)) == (10_000, 10_000)
    host.overlays.change_peers(red, [], [many[-1].addresses[0]])
    await host.overlays.settled(red)
    assert [len(each.changes) for each in asked] == [2, 2]


class _Outer:
    """A VXLAN packet as it is on the wire: IPv4, UDP."""

    def __init__(self, frame: bytes) -> None:
        self.vni = self.port = -1
        self.source = ""
        if frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_UDP and len(frame) >= 50:
            self.source = socket.inet_ntoa(frame[26:30])
            self.port = int.from_bytes(frame[36:38], "big")
            self.vni = VXLAN_HEADER.unpack_from(frame, 42)[1] >> 8


def _ear(place: Place) -> socket.socket:
    """Hears every frame of eth0."""
    made = place.socket(socket.SOCK_RAW, socket.htons(ETH_P_ALL), socket.AF_PACKET)
    made.bind(("eth0", ETH_P_ALL))
    made.setblocking(False)
    return made


def _frames(ear: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(ear.recv(65536))
        except BlockingIOError:
            return found


def _frame(source: str, target: str) -> bytes:
    return bytes.fromhex(target.replace(":", "")) + bytes.fromhex(source.replace(":", "")) + b"\x88\xb5" + b"x" * 50
