"""The overlays' data plane beside what ``ip`` makes by hand: throughput, round trips, connections, and changes.

    scripts/bench overlay [--seconds 2] [--rounds 5]

All in namespaces of this machine, in one run, the ways in turn. ``plain`` is a bridge, a VXLAN device and veths made with
``ip``; ``direct`` is a container of an overlay called at its own address, ``vip`` at a virtual one, ``mesh`` a published port
by a node without a task (two hops more), ``published`` by the node of the task. A ratio is the median of those of each round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.unit.networks.places import Place, place, sh
from tests.unit.overlays.hosts import Bed, bed, ip
from tests.unit.overlays.test_mesh import CLIENT, prepare
from worker.network.types import Backend, BalancedService, PeerEndpoint

PORT = 9000
VIP = "10.0.1.250"
CHUNK = b"x" * 131_072
ENDPOINTS = 10_000


@contextlib.contextmanager
def served(at: Place) -> Iterator[None]:
    """In a process of its own: what begins with "s" is swallowed, anything else answered byte by byte."""
    made = at.socket(socket.SOCK_STREAM, 0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("", PORT))
    made.listen(1024)
    child = os.fork()
    if child == 0:
        buffer = bytearray(1 << 20)
        while True:
            client, _ = made.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with client, contextlib.suppress(OSError):
                first = client.recv(1)
                if first == b"s":
                    while client.recv_into(buffer):
                        pass
                while first:
                    client.sendall(first)
                    first = client.recv(1)
    made.close()
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def opened(source: Place, address: str, port: int) -> socket.socket:
    made = source.socket(socket.SOCK_STREAM, 0)
    made.settimeout(10)
    made.connect((address, port))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def throughput(source: Place, address: str, port: int, seconds: float) -> float:
    """Gbit a second."""
    with opened(source, address, port) as made:
        made.sendall(b"s")
        begin, sent = time.monotonic(), 0
        while (now := time.monotonic()) < begin + seconds:
            sent += made.send(CHUNK)
        return sent * 8 / (now - begin) / 1e9


def round_trips(source: Place, address: str, port: int, seconds: float) -> float:
    """A second, one after another."""
    with opened(source, address, port) as made:
        begin, count = time.monotonic(), 0
        while (now := time.monotonic()) < begin + seconds:
            made.send(b"r")
            made.recv(1)
            count += 1
        return count / (now - begin)


def connections(source: Place, address: str, port: int, seconds: float) -> float:
    """A second, each with one question."""
    begin, count = time.monotonic(), 0
    while (now := time.monotonic()) < begin + seconds:
        with opened(source, address, port) as made:
            made.send(b"r")
            made.recv(1)
        count += 1
    return count / (now - begin)


def plain_pair(hosts: Bed) -> tuple[Place, str, Place]:
    """Two containers on two hosts, by hand."""
    inside = []
    for number, host in enumerate(hosts.hosts[:2], 1):
        other = hosts.hosts[2 - number].address
        made = hosts.stack.enter_context(place())
        inside.append(made)
        host.place.run("ip", "link", "add", "plain-br", "type", "bridge")
        host.place.run(
            *f"ip link add plain-vx type vxlan id 99 dstport 4800 local {host.address} nolearning remote {other}".split()
        )
        host.place.run("ip", "link", "set", "plain-vx", "mtu", "1450", "master", "plain-br", "up")
        host.place.run("ip", "link", "set", "plain-br", "up")
        sh(
            f"nsenter --net={host.place.path} ip link add plain0 mtu 1450 type veth peer name eth0 mtu 1450 netns {made.pid}"
        )
        host.place.run("ip", "link", "set", "plain0", "master", "plain-br", "up")
        made.run("ip", "addr", "add", f"10.99.0.{number}/24", "dev", "eth0")
        made.run("ip", "link", "set", "eth0", "up")
    return inside[0], "10.99.0.2", inside[1]


async def run(folder: Path, seconds: float, rounds: int) -> None:
    async with bed(folder, 3) as hosts:
        client = hosts.stack.enter_context(place())
        hosts.wire(client, CLIENT)
        red = await hosts.add_network("red", 4097, "10.0.1.0/24")
        first, second = [await hosts.start(host, red, f"10.0.1.{host.number + 1}") for host in hosts.hosts[:2]]
        for host in hosts.hosts:
            host.overlays.set_services(red, [BalancedService(ip(VIP), (Backend(ip(second.address)),))])
        await hosts.settled(red)
        world = await prepare(hosts, client)
        task = await world.task(hosts.hosts[2])
        await world.tell(world.published(task, target=PORT))
        source, address, sink = plain_pair(hosts)
        ways = {
            "plain": (source, address, PORT),
            "direct": (first.place, second.address, PORT),
            "vip": (first.place, VIP, PORT),
            "published": (client, str(hosts.hosts[2].address), 8080),
            "mesh": (client, str(hosts.hosts[0].address), 8080),
        }
        with served(sink), served(second.place), served(task.place):
            for name, measure in (
                ("Gbit/s", throughput),
                ("round trips/s", round_trips),
                ("connections/s", connections),
            ):
                compare(name, measure, ways, seconds, rounds)
        await changes(hosts)
        await world.close()


def compare(
    name: str,
    measure: Callable[[Place, str, int, float], float],
    ways: dict[str, tuple[Place, str, int]],
    seconds: float,
    rounds: int,
) -> None:
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, (source, address, port) in ways.items():
            found[way].append(measure(source, address, port, seconds))
    for way, base in (("direct", "plain"), ("vip", "direct"), ("mesh", "published")):
        ratio = statistics.median(ours / theirs for ours, theirs in zip(found[way], found[base], strict=True))
        figures = statistics.median(found[way]), statistics.median(found[base])
        print(f"{name:16}{way:>10}{figures[0]:12.2f}{base:>10}{figures[1]:12.2f}{ratio:8.2f}")


async def changes(hosts: Bed) -> None:
    """How long the kernel takes to have many endpoints more, and one."""
    big = await hosts.add_network("big", 4098, "10.1.0.0/16")
    overlays, other = hosts.hosts[0].overlays, hosts.hosts[1].address
    await hosts.start(hosts.hosts[0], big, "10.1.200.2")
    addresses = [ipaddress.IPv4Address("10.1.0.2") + number for number in range(ENDPOINTS)]
    begin = time.monotonic()
    overlays.set_peers(big, [PeerEndpoint((address,), other) for address in addresses])
    await overlays.settled(big)
    print(f"{ENDPOINTS} endpoints: {time.monotonic() - begin:.2f} s")
    took = []
    for number in range(20):
        begin = time.monotonic()
        overlays.change_peers(big, [PeerEndpoint((ipaddress.IPv4Address("10.1.150.0") + number,), other)])
        await overlays.settled(big)
        took.append(time.monotonic() - begin)
    print(f"one endpoint more: {statistics.median(took) * 1000:.1f} ms")
    vip = ip("10.1.250.1")
    backends = tuple(Backend(address) for address in addresses[:1000])
    overlays.set_services(big, [BalancedService(vip, backends)])
    await overlays.settled(big)
    begin = time.monotonic()
    overlays.change_services(big, [BalancedService(vip, backends[1:])])
    await overlays.settled(big)
    print(f"one backend of 1000 less: {(time.monotonic() - begin) * 1000:.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if os.geteuid():
        parser.error("needs root")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder), options.seconds, options.rounds))


if __name__ == "__main__":
    main()
