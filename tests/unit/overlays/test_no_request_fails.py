"""Requests without a pause by virtual IP and mesh, while tasks come and go and daemons are killed: each is answered."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.networks.places import Place, place
from tests.unit.overlays.hosts import Bed, Container, bed, ip, serve, tcp, udp
from tests.unit.overlays.test_mesh import CLIENT, Task, prepare
from worker.network.types import Backend, BalancedService, IngressBackend, IngressPort, NetworkID

pytestmark = pytest.mark.root
VIP = "10.0.1.250"
ROUNDS = 4


class Requests:
    """One after another from one place in a thread, each on a connection of its own."""

    def __init__(
        self, question: Callable[[Place, str, int], list[str]], source: Place, address: str, port: int
    ) -> None:
        self.answered: set[str] = set()
        self.failed: list[str] = []
        self.count = 0
        self._end = threading.Event()
        self._ask: Callable[[], list[str]] = lambda: question(source, address, port)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                self.answered.add(self._ask()[0])
            except OSError as error:
                self.failed.append(repr(error))
            self.count += 1

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._end.set()
            self._thread.join()

    async def some_more(self) -> None:
        """Until each way that there is has been tried, very probably."""
        wanted = self.count + 30
        async with asyncio.timeout(60):
            while self.count < wanted:
                await asyncio.sleep(0.01)


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed(tmp_path, 3) as made:
        yield made


@pytest.mark.parametrize("question", [tcp, udp])
async def test_by_virtual_ip(hosts: Bed, question: Callable[[Place, str, int], list[str]]) -> None:
    red = await hosts.add_network("red", 4097, "10.0.1.0/24")
    client = await hosts.start(hosts.hosts[0], red, "10.0.1.2")

    async def tell(*backends: Backend) -> None:
        for host in hosts.hosts:
            host.overlays.set_services(red, [BalancedService(ip(VIP), backends)])
        await hosts.settled(red)

    requests = Requests(question, client.place, VIP, 80)
    old = await _started(hosts, red, 0)
    with contextlib.ExitStack() as stack:
        servers = {old.address: stack.enter_context(contextlib.ExitStack())}
        servers[old.address].enter_context(serve(old.place, 80, old.address))
        await tell(Backend(ip(old.address)))
        with requests.going_on():
            for number in range(1, ROUNDS + 1):
                new = await _started(hosts, red, number)
                servers[new.address] = stack.enter_context(contextlib.ExitStack())
                servers[new.address].enter_context(serve(new.place, 80, new.address))
                await tell(Backend(ip(old.address)), Backend(ip(new.address)))
                await requests.some_more()
                await tell(Backend(ip(old.address), 0), Backend(ip(new.address)))
                await client.host.kill()
                client.host.overlays.adopt(red, client.endpoint)
                await requests.some_more()
                await hosts.tell(red)
                await tell(Backend(ip(new.address)))
                servers.pop(old.address).close()  # the task ends once nobody balances to it
                await _ended(hosts, red, old)
                await requests.some_more()
                old = new
    assert requests.failed == []
    assert len(requests.answered) == ROUNDS + 1


async def _started(hosts: Bed, red: NetworkID, number: int) -> Container:
    return await hosts.start(hosts.hosts[1 + number % 2], red, f"10.0.1.{number + 10}")


async def _ended(hosts: Bed, red: NetworkID, container: Container) -> None:
    container.host.containers.remove(container)
    await container.host.overlays.leave(red, container.endpoint)
    await hosts.tell(red)


async def test_by_the_mesh(hosts: Bed) -> None:
    with place() as client:
        hosts.wire(client, CLIENT)
        world = await prepare(hosts, client)
        old = await world.task(hosts.hosts[1])
        with contextlib.ExitStack() as stack:
            servers = {old.address: stack.enter_context(contextlib.ExitStack())}
            servers[old.address].enter_context(serve(old.place, 80, str(old.address)))
            await world.tell(world.published(old))
            requests = Requests(tcp, client, str(hosts.hosts[0].address), 8080)
            with requests.going_on():
                for number in range(ROUNDS):
                    new = await world.task(hosts.hosts[2 - number % 2])
                    servers[new.address] = stack.enter_context(contextlib.ExitStack())
                    servers[new.address].enter_context(serve(new.place, 80, str(new.address)))
                    # Its node knows it from its start; the others hear of it at some other moment than its node.
                    await world.tell(_with_weights((old, 1), (new, 0)))
                    await world.tell(world.published(old, new))
                    await requests.some_more()
                    await world.tell(_with_weights((old, 0), (new, 1)))
                    await world.meshes[1].close()
                    world.mesh(hosts.hosts[0])
                    await requests.some_more()
                    await world.tell(world.published(new))
                    servers.pop(old.address).close()
                    await requests.some_more()
                    old = new
        await world.close()
    assert requests.failed == []
    assert len(requests.answered) == ROUNDS + 1


def _with_weights(*tasks: tuple[Task, int]) -> IngressPort:
    backends = tuple(IngressBackend(task.backend.node, task.address, weight) for task, weight in tasks)
    return IngressPort(protocol="tcp", published=8080, target=80, backends=backends)
