"""Virtual IPs with real packets: who is reached, who is seen, and what becomes of flows when a task leaves."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.unit.overlays.hosts import Bed, Container, ask, bed, comes_true, connect, ip, ping, serving, tcp, udp
from tests.waiting import until
from worker.network.types import Backend, BalancedService, NetworkID

pytestmark = pytest.mark.root
VIP, VIP6 = "10.0.1.250", "fd00:1::250"
SCTP = 132
MANY = 40
"""Of so many tries one of two backends is left out once in 10**12."""


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed(tmp_path, 3) as made:
        yield made


@pytest.fixture
async def red(hosts: Bed) -> NetworkID:
    return await hosts.add_network("red", 4097, "10.0.1.0/24", "fd00:1::/64")


async def start(hosts: Bed, red: NetworkID) -> list[Container]:
    """A client on the first host, and a task on each of the others."""
    return [
        await hosts.start(host, red, f"10.0.1.{host.number + 1}", f"fd00:1::{host.number + 1}") for host in hosts.hosts
    ]


async def tell(hosts: Bed, red: NetworkID, *backends: Backend, local_first: bool = False, vip: str = VIP) -> None:
    for host in hosts.hosts:
        host.overlays.set_services(red, [BalancedService(ip(vip), backends, local_first)])
    await hosts.settled(red)


@contextlib.contextmanager
def all_serving(containers: list[Container], port: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for container in containers:
            stack.enter_context(serving(container, port))
        yield


async def test_connections_and_datagrams_are_spread_and_the_client_is_seen(hosts: Bed, red: NetworkID) -> None:
    client, *tasks = await start(hosts, red)
    await tell(hosts, red, *(Backend(each.endpoint.addresses[0]) for each in tasks))
    with all_serving(tasks, 80):
        for question in (tcp, udp):
            answers = [question(client.place, VIP, 80) for _ in range(MANY)]
            assert {name for name, _ in answers} == {each.address for each in tasks}
            assert {seen for _, seen in answers} == {client.address}
    assert ping(client, VIP)


async def test_ipv6(hosts: Bed, red: NetworkID) -> None:
    client, *tasks = await start(hosts, red)
    await tell(hosts, red, *(Backend(each.endpoint.addresses[1]) for each in tasks), vip=VIP6)
    made = [each.place.socket(socket.SOCK_DGRAM, 0, socket.AF_INET6) for each in tasks]
    with client.place.socket(socket.SOCK_DGRAM, 0, socket.AF_INET6) as question:
        for each in made:
            each.bind(("::", 80))
            each.setblocking(False)
        question.sendto(b"who", (VIP6, 80))
        await until(lambda: any(_heard(each) for each in made), what="a task is asked")
    for each in made:
        each.close()


async def test_sctp(hosts: Bed, red: NetworkID) -> None:
    """The kernel under test may have no SCTP sockets; what it does with the packets is the same."""
    client, *tasks = await start(hosts, red)
    await tell(hosts, red, Backend(tasks[0].endpoint.addresses[0]))
    with (
        client.place.socket(socket.SOCK_RAW, SCTP) as sender,
        tasks[0].place.socket(socket.SOCK_RAW, SCTP) as receiver,
    ):
        receiver.settimeout(10)
        sender.sendto(_sctp_init(), (VIP, 80))
        data, peer = receiver.recvfrom(9000)
    assert peer[0] == client.address
    assert _crc32c(data[20:28] + b"\0\0\0\0" + data[32:]) == int.from_bytes(data[28:32], "little")


async def test_a_task_that_calls_its_own_service_may_reach_itself(hosts: Bed, red: NetworkID) -> None:
    task, *_ = await start(hosts, red)
    await tell(hosts, red, Backend(task.endpoint.addresses[0]))
    with serving(task, 80):
        assert tcp(task.place, VIP, 80) == [task.address, task.address]
        assert udp(task.place, VIP, 80) == [task.address, task.address]


async def test_without_a_task_the_client_is_told_at_once(hosts: Bed, red: NetworkID) -> None:
    client, *_ = await start(hosts, red)
    await tell(hosts, red)
    with pytest.raises(ConnectionRefusedError):
        tcp(client.place, VIP, 80)
    with pytest.raises(OSError, match=r"not permitted|No route to host"):  # the kernel's words for a refused send
        udp(client.place, VIP, 80)
    assert not ping(client, VIP)


async def test_weights_and_local_first(hosts: Bed, red: NetworkID) -> None:
    client, *tasks = await start(hosts, red)
    neighbour = await hosts.start(hosts.hosts[0], red, "10.0.1.9", "fd00:1::9")
    backends = [Backend(each.endpoint.addresses[0]) for each in (*tasks, neighbour)]
    await tell(hosts, red, *backends, local_first=True)
    with all_serving([*tasks, neighbour], 80):
        assert {tcp(client.place, VIP, 80)[0] for _ in range(MANY)} == {neighbour.address}
        assert {tcp(tasks[0].place, VIP, 80)[0] for _ in range(MANY)} == {tasks[0].address}
        await tell(
            hosts, red, backends[0], Backend(backends[1].address, 0), Backend(backends[2].address, 0), local_first=True
        )
        assert {tcp(client.place, VIP, 80)[0] for _ in range(MANY)} == {tasks[0].address}


async def test_a_task_that_drains_keeps_its_connections_and_gets_nothing_new(hosts: Bed, red: NetworkID) -> None:
    client, first, second = await start(hosts, red)
    await tell(hosts, red, Backend(first.endpoint.addresses[0]))
    with all_serving([first, second], 80), client.place.udp() as datagrams:
        datagrams.connect((VIP, 80))
        with connect(client.place, VIP, 80) as connection:
            assert ask(connection)[0] == ask(datagrams)[0] == first.address
            await tell(hosts, red, Backend(first.endpoint.addresses[0], 0), Backend(second.endpoint.addresses[0]))
            assert ask(connection)[0] == first.address
            assert ask(datagrams)[0] == second.address, "from the same port: nothing says when such a flow is over"
            assert {tcp(client.place, VIP, 80)[0] for _ in range(MANY)} == {second.address}


async def test_flows_of_a_departed_task_end(hosts: Bed, red: NetworkID) -> None:
    client, first, second = await start(hosts, red)
    await tell(hosts, red, Backend(first.endpoint.addresses[0]))
    with all_serving([first, second], 80), client.place.udp() as datagrams:
        datagrams.connect((VIP, 80))
        with connect(client.place, VIP, 80) as connection:
            assert ask(connection)[0] == ask(datagrams)[0] == first.address
            await tell(hosts, red, Backend(second.endpoint.addresses[0]))
            with pytest.raises(ConnectionResetError):
                ask(connection)
            assert ask(datagrams)[0] == second.address


async def test_connections_outlive_the_daemon_and_what_it_is_told_next(hosts: Bed, red: NetworkID) -> None:
    client, first, second = await start(hosts, red)
    await tell(hosts, red, Backend(first.endpoint.addresses[0]))
    with all_serving([first, second], 80), connect(client.place, VIP, 80) as connection:
        assert ask(connection)[0] == first.address
        await client.host.kill()
        assert ask(connection)[0] == tcp(client.place, VIP, 80)[0] == first.address
        client.host.overlays.adopt(red, client.endpoint)
        await hosts.tell(red)
        assert ask(connection)[0] == tcp(client.place, VIP, 80)[0] == first.address
        await tell(hosts, red, *(Backend(each.endpoint.addresses[0]) for each in (first, second)))
        assert ask(connection)[0] == first.address
        assert {tcp(client.place, VIP, 80)[0] for _ in range(MANY)} == {first.address, second.address}


async def test_a_container_that_flushes_its_rules_gets_them_again(hosts: Bed, red: NetworkID) -> None:
    client, task, _ = await start(hosts, red)
    await tell(hosts, red, Backend(task.endpoint.addresses[0]))
    client.place.run("nft", "flush", "ruleset")

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return tcp(client.place, VIP, 80)[0] == task.address
        return False

    with serving(task, 80):
        await comes_true(answers, "the service is called")


def _heard(made: socket.socket) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return made.recv(9000)
    return b""


def _sctp_init() -> bytes:
    chunk = struct.pack(">BBHIIHHI", 1, 0, 20, 7, 65536, 1, 1, 7)
    head = struct.pack(">HHI", 1234, 80, 0)
    return head + struct.pack("<I", _crc32c(head + b"\0\0\0\0" + chunk)) + chunk


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return ~crc & 0xFFFFFFFF
