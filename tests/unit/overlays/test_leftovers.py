"""After many lives of containers, and of the daemon between them, nothing is left."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.networks.driver import Endpoint, EndpointRequest, Network, Pool
from runtime.types import EndpointIPAMConfig, EndpointSettings
from tests.unit.networks.places import place
from tests.unit.overlays.hosts import Bed, Host, bed, ip
from worker.network.driver import VNI_OPTION, OverlayDriver
from worker.network.types import Backend, BalancedService, NetworkID, PeerEndpoint

pytestmark = pytest.mark.root
STEPS = 60
NETWORKS = [
    Network(
        ID=f"{name}0123456789abcdef",
        Name=name,
        Driver="overlay",
        Created="",
        Scope="swarm",
        Options={VNI_OPTION: str(4097 + number)},
        Pools=[Pool(Subnet=f"10.0.{number}.0/24")],
        Settled=True,
    )
    for number, name in enumerate(["red", "blue"])
]


@dataclass
class Life:
    """A container: its process may have ended already."""

    network: Network
    endpoint: Endpoint
    process: contextlib.ExitStack


class Daemon:
    """The driver of one host, over its restarts."""

    def __init__(self, bed: Bed) -> None:
        self.bed, self.host = bed, bed.hosts[0]
        self.lives: list[Life] = []
        self.count = 0
        self.driver = self._driver()

    def _driver(self) -> OverlayDriver:
        return OverlayDriver(self.host.kernel, self.host.overlays, self.host.run)

    async def begin(self, network: Network) -> None:
        await self.driver.create(network)
        process = self.bed.stack.enter_context(contextlib.ExitStack())
        inside = process.enter_context(place())
        self.count += 1
        address = f"10.0.{NETWORKS.index(network)}.{2 + self.count}"
        settings = EndpointSettings(IPAMConfig=EndpointIPAMConfig(IPv4Address=address))
        endpoint = await self.driver.reserve(network, EndpointRequest("c", settings, "eth0"))
        await self.driver.attach(network, endpoint, inside.path, default_route=False)
        self.lives.append(Life(network, endpoint, process))

    async def end(self, life: Life) -> None:
        life.process.close()
        await self.driver.release(life.network, life.endpoint)
        self.lives.remove(life)

    async def restart(self, dead: list[Life]) -> None:
        """Killed; what ended meanwhile is given back by the next, which adopts the others."""
        await self.host.kill()
        for life in dead:
            life.process.close()
        self.driver = self._driver()
        for life in self.lives:
            if life not in dead:
                self.driver.adopt(life.network, life.endpoint)
        for network in NETWORKS:
            await self.driver.reconcile(network, [])
        for life in dead:
            await self.driver.release(life.network, life.endpoint)
            self.lives.remove(life)
        await self.driver.tidy()

    def tell(self, random_: random.Random) -> None:
        for number, network in enumerate(NETWORKS):
            others = [PeerEndpoint((ip(f"10.0.{number}.{random_.randint(200, 240)}"),), ip("192.168.77.9"))]
            self.host.overlays.set_peers(NetworkID(network.ID), others)
            backends = tuple(Backend(each.addresses[0]) for each in others)
            self.host.overlays.set_services(
                NetworkID(network.ID), [BalancedService(ip(f"10.0.{number}.250"), backends)]
            )


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_left_of_containers_and_networks(tmp_path: Path, seed: int) -> None:
    choices = random.Random(seed)
    async with bed(tmp_path, 1) as made:
        daemon = Daemon(made)
        for _ in range(STEPS):
            step = choices.choice(["begin", "begin", "end", "end", "restart", "tell"])
            if step == "begin":
                await daemon.begin(choices.choice(NETWORKS))
            elif step == "end" and daemon.lives:
                await daemon.end(choices.choice(daemon.lives))
            elif step == "restart":
                await daemon.restart([life for life in daemon.lives if choices.random() < 0.3])
            elif step == "tell":
                daemon.tell(choices)
        for life in list(daemon.lives):
            await daemon.end(life)
        for network in NETWORKS:
            await made.hosts[0].overlays.settled(NetworkID(network.ID))
        assert await _leftovers(made.hosts[0], tmp_path) == set()


async def _leftovers(host: Host, folder: Path) -> set[str]:
    files = {str(path) for kind in ("overlays", "sandboxes") for path in (host.run / kind).glob("*")}
    mounts = {line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line}
    return files | mounts | (set(await host.kernel.links()) - {"lo", "eth0"}) | await host.kernel.tables()
