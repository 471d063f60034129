"""The routing mesh between hosts, with real packets: every node serves a port, and the task sees the client."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.kernel.network import AddAddress, AddBridge, AddDefaultRoute, AddVeth, Batch, SetUp
from runtime.networks.rules import BridgeRules, table_name, whole
from tests.unit.networks.places import Place, place
from tests.unit.overlays.hosts import Bed, Host, ask, bed, comes_true, connect, serve, tcp, udp
from worker.network.mesh import Mesh
from worker.network.types import DataPath, IngressBackend, IngressPort, NetworkID, OverlayNetwork, PeerEndpoint, Subnet

pytestmark = pytest.mark.root
NET = ipaddress.IPv4Network("10.0.0.0/24")
INGRESS = OverlayNetwork(id=NetworkID("ingress"), vni=4096, subnets=(Subnet(NET, NET[1]),))
TASKS = ipaddress.IPv4Network("172.18.0.0/16")
CLIENT = "192.168.77.200"
MANY = 40
Address = ipaddress.IPv4Address


@dataclass
class Task:
    place: Place
    host: Host
    address: Address

    @property
    def backend(self) -> IngressBackend:
        return IngressBackend(NET[1 + self.host.number], self.address)


class World:
    """Hosts with a mesh each, and a client beside them on the underlay."""

    def __init__(self, bed: Bed, client: Place) -> None:
        self.bed, self.client = bed, client
        self.meshes: dict[int, Mesh] = {}
        self.tasks: list[Task] = []

    def mesh(self, host: Host) -> Mesh:
        made = Mesh(host.kernel, host.run, DataPath(host.address))
        made.set_network(INGRESS, NET[1 + host.number])
        self.meshes[host.number] = made
        return made

    async def task(self, host: Host) -> Task:
        """On docker_gwbridge of the host, with the default route there."""
        inside = self.bed.stack.enter_context(place())
        address = TASKS[2 + len(self.tasks)]
        changes = (
            SetUp("eth0"),
            AddAddress("eth0", ipaddress.ip_interface(f"{address}/16")),
            AddDefaultRoute(TASKS[1], "eth0"),
        )
        pair = AddVeth(
            f"veth{len(self.tasks)}",
            "docker_gwbridge",
            1500,
            "eth0",
            f"02:42:ac:12:00:{int(address) & 255:02x}",
            inside.path,
        )
        await host.kernel.apply(Batch((pair,)), Batch(changes, inside.path))
        self.tasks.append(Task(inside, host, address))
        return self.tasks[-1]

    async def tell(self, *ports: IngressPort) -> None:
        hosts = self.bed.hosts
        for host in hosts:
            mesh = self.meshes[host.number]
            mesh.set_nodes([PeerEndpoint((NET[1 + each.number],), each.address) for each in hosts if each is not host])
            mesh.set_ports([_as_seen_by(host, port) for port in ports])
        await self.settled()

    async def settled(self) -> None:
        for mesh in self.meshes.values():
            await asyncio.wait_for(mesh.settled(), 30)

    async def close(self) -> None:
        for mesh in self.meshes.values():
            mesh.remove()
            await asyncio.wait_for(mesh.settled(), 30)
            await mesh.close()

    def published(self, *tasks: Task, protocol: str = "tcp", target: int = 80, **more: object) -> IngressPort:
        backends = tuple(task.backend for task in tasks)
        return IngressPort(protocol=protocol, published=8080, target=target, backends=backends, **more)  # type: ignore[arg-type] # by name


def _as_seen_by(host: Host, port: IngressPort) -> IngressPort:
    """A node is told the addresses of its own tasks alone."""
    seen = tuple(
        each if each.node == NET[1 + host.number] else IngressBackend(each.node, None, each.weight)
        for each in port.backends
    )
    return IngressPort(**{**{name: getattr(port, name) for name in port.__struct_fields__}, "backends": seen})


async def prepare(hosts: Bed, client: Place) -> World:
    """With a docker_gwbridge on each host."""
    found = World(hosts, client)
    bridge = (
        AddBridge("docker_gwbridge", "02:42:ac:12:00:01"),
        AddAddress("docker_gwbridge", ipaddress.ip_interface("172.18.0.1/16")),
        SetUp("docker_gwbridge"),
    )
    for host in hosts.hosts:
        await host.kernel.run_rules(ruleset_of_the_bridge())
        await host.kernel.apply(Batch(bridge))
        found.mesh(host)
    return found


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with bed(tmp_path, 3) as made:
        with place() as client:
            made.wire(client, CLIENT)
            found = await prepare(made, client)
            yield found
            await found.close()
            for host in made.hosts:
                assert not {"swarm-mesh", "swarm-mesh-vx"} & set(await host.kernel.links())
                assert await host.kernel.tables() <= {table_name("docker_gwbridge"), "ip forward-engines"}


def ruleset_of_the_bridge() -> str:
    return whole(table_name("docker_gwbridge"), [BridgeRules(device="docker_gwbridge", subnets=(TASKS,), icc=False)])


@contextlib.contextmanager
def serving(*tasks: Task) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for task in tasks:
            stack.enter_context(serve(task.place, 80, str(task.address)))
        yield


def entries(world: World) -> list[str]:
    return [str(host.address) for host in world.bed.hosts]


async def test_every_node_serves_the_port_and_the_task_sees_the_client(world: World) -> None:
    tasks = [await world.task(host) for host in world.bed.hosts[1:]]
    await world.tell(world.published(*tasks), world.published(*tasks, protocol="udp"))
    with serving(*tasks):
        for entry in entries(world):
            for question in (tcp, udp):
                answers = [question(world.client, entry, 8080) for _ in range(MANY)]
                assert {name for name, _ in answers} == {str(task.address) for task in tasks}
                assert {seen for _, seen in answers} == {CLIENT}
        # from the nodes themselves, by their own addresses and by loopback
        for address in ("127.0.0.1", *entries(world)[:1]):
            assert tcp(world.bed.hosts[0].place, address, 8080)


async def test_one_port_of_the_client_may_come_by_two_entries_at_once(world: World) -> None:
    task = await world.task(world.bed.hosts[2])
    await world.tell(world.published(task))
    with serving(task), contextlib.ExitStack() as stack:
        made = []
        for entry in entries(world):
            sock = stack.enter_context(world.client.socket(socket.SOCK_STREAM, 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", 45678))
            sock.settimeout(5)
            sock.connect((entry, 8080))
            made.append(sock)
        for sock in [*made, *reversed(made)]:
            assert ask(sock) == [str(task.address), CLIENT]


async def test_large_answers_fit(world: World) -> None:
    task = await world.task(world.bed.hosts[1])
    await world.tell(world.published(task))
    data = b"x" * 300_000
    with serving(task), connect(world.client, entries(world)[0], 8080) as made:
        made.sendall(data)
        heard = 0
        while heard < len(data) // 9000:  # an answer for each piece
            heard += len(made.recv(65536))


async def test_local_first_and_chosen_addresses(world: World) -> None:
    tasks = [await world.task(host) for host in world.bed.hosts[:2]]
    chosen = world.published(
        *tasks, local_first=True, addresses=(Address(entries(world)[0]), Address(entries(world)[1]))
    )
    await world.tell(chosen)
    with serving(*tasks):
        for entry, task in zip(entries(world), tasks, strict=False):
            assert {tcp(world.client, entry, 8080)[0] for _ in range(MANY)} == {str(task.address)}
        with pytest.raises(OSError, match=r".+"):
            tcp(world.client, entries(world)[2], 8080)


async def test_a_drained_task_keeps_its_connections_and_a_departed_one_loses_them(world: World) -> None:
    first, second = [await world.task(host) for host in world.bed.hosts[1:]]
    both = [world.published(first), world.published(first, protocol="udp")]
    await world.tell(*both)
    entry = entries(world)[0]
    with serving(first, second), world.client.udp() as datagrams, connect(world.client, entry, 8080) as connection:
        datagrams.connect((entry, 8080))
        assert ask(connection)[0] == ask(datagrams)[0] == str(first.address)
        draining = (IngressBackend(first.backend.node, first.address, 0), second.backend)
        for protocol in ("tcp", "udp"):
            both[protocol == "udp"] = IngressPort(protocol=protocol, published=8080, target=80, backends=draining)
        await world.tell(*both)
        assert ask(connection)[0] == str(first.address)
        assert ask(datagrams)[0] == str(second.address)
        assert {tcp(world.client, entry, 8080)[0] for _ in range(MANY)} == {str(second.address)}
        await world.tell(world.published(second), world.published(second, protocol="udp"))
        with pytest.raises(ConnectionResetError):
            ask(connection)


async def test_nodes_come_and_go(world: World) -> None:
    task = await world.task(world.bed.hosts[2])
    await world.tell(world.published(task))
    hosts = world.bed.hosts
    for mesh in (world.meshes[1], world.meshes[3]):
        mesh.set_nodes([PeerEndpoint((NET[3],), hosts[1].address)])
    await world.settled()
    with serving(task):
        with world.client.socket(socket.SOCK_STREAM, 0) as made:
            made.settimeout(0.5)
            with pytest.raises(TimeoutError):
                made.connect((entries(world)[0], 8080))
        assert tcp(world.client, entries(world)[1], 8080) == [str(task.address), CLIENT]
        await world.tell(world.published(task))
        assert tcp(world.client, entries(world)[0], 8080) == [str(task.address), CLIENT]


async def test_the_mesh_heals_and_outlives_the_daemon(world: World) -> None:
    task = await world.task(world.bed.hosts[2])
    await world.tell(world.published(task))
    host = world.bed.hosts[0]
    entry = str(host.address)

    def serves() -> bool:
        with contextlib.suppress(OSError):
            return tcp(world.client, entry, 8080) == [str(task.address), CLIENT]
        return False

    with serving(task), connect(world.client, entry, 8080) as connection:
        for fault in (
            ["ip", "link", "del", "swarm-mesh-vx"],
            ["ip", "link", "del", "swarm-mesh"],
            ["nft", "flush", "ruleset"],
        ):
            host.place.run(*fault)
            await comes_true(serves, f"served again after {fault}")
        assert ask(connection)[0] == str(task.address)
        await world.meshes[1].close()
        assert serves()
        world.mesh(host)
        await world.settled()
        assert serves(), "nobody said who is there: what was, stays"
        await world.tell(world.published(task))
        assert serves()
        assert ask(connection)[0] == str(task.address)


async def test_a_new_daemon_takes_away_what_the_one_before_it_made(world: World) -> None:
    task = await world.task(world.bed.hosts[2])
    await world.tell(world.published(task))
    first = world.bed.hosts[0]
    await world.meshes[1].close()
    other = Mesh(first.kernel, first.run, DataPath(first.address))
    other.set_network(INGRESS, NET[77])  # while the node was away, its address became another's
    other.set_nodes([])
    other.set_ports([])
    await asyncio.wait_for(other.settled(), 30)
    shown = await first.kernel.run("ip", "-4", "-o", "addr", "show", "dev", "swarm-mesh")
    assert f"{NET[77]}/24" in shown
    assert f"{NET[2]}/24" not in shown
    await other.close()
    last = world.meshes[1] = Mesh(first.kernel, first.run, DataPath(first.address))
    last.remove()  # or the node has left meanwhile
    await asyncio.wait_for(last.settled(), 30)
    assert "swarm-mesh" not in await first.kernel.links()


async def test_the_mesh_leads_to_published_ports_alone(world: World) -> None:
    """A neighbour on the mesh (a hostile node) reaches no task by its own address, and no server of the host."""
    task = await world.task(world.bed.hosts[1])
    await world.tell(world.published(task))
    first, second = world.bed.hosts[:2]
    with serving(task), serve(second.place, 7000, "host"):
        first.place.run(
            "ip", "route", "add", "172.18.0.0/16", "via", str(NET[3]), "dev", "swarm-mesh", "onlink", "table", "7"
        )
        first.place.run("ip", "rule", "add", "to", str(task.address), "lookup", "7", "priority", "7")
        for address, port in ((str(task.address), 80), (str(NET[3]), 7000)):
            with pytest.raises(OSError, match=r".+"):
                tcp(first.place, address, port)
