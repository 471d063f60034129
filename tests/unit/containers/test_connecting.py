"""Connect and disconnect of containers, what a failure undoes, and what a daemon that comes back makes of any moment."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from runtime.containers.connecting import Connecting
from runtime.containers.container import Container
from runtime.containers.naming import Naming, resolv_conf_of
from runtime.containers.record import Record
from runtime.containers.states import Event
from runtime.containers.store import ContainerStore
from runtime.errors import (
    ConflictError,
    ForbiddenError,
    HostError,
    InvalidParameterError,
    NetworkNotFoundError,
    NotConnectedError,
)
from runtime.events import EventBus
from runtime.network_types import IPAM, IPAMConfig
from runtime.networks import Networks
from runtime.networks.driver import Network, Pool
from runtime.networks.plain import PlainDriver
from runtime.networks.ports import requests as port_requests
from runtime.types import ContainerConfig, EndpointIPAMConfig, EndpointSettings, HostConfig, PortBinding
from tests.unit.networks.fakes import FakeDriver, RecordingKernel
from tests.unit.resolver.fakes import FakeResolver

PID = 7
PRIORITY = EndpointSettings(GwPriority=1)


class Watched(FakeDriver):
    """Has ``moment`` called before and after each step."""

    moment: Callable[[], None] = staticmethod(lambda: None)

    def _note(self, step: str, network: Network) -> None:
        self.moment()
        super()._note(step, network)


class Place:
    """The engine's records and networks in one folder: a and b of the tests' driver."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.driver = folder, Watched()
        self.store = ContainerStore(folder / "containers")
        pool = Pool(Subnet="10.7.0.0/16", Gateway="10.7.0.1")
        ipam = IPAM(Config=[IPAMConfig(Subnet=pool.Subnet)])
        self.networks = Networks(
            folder,
            drivers=[self.driver, PlainDriver("host")],
            predefined=[
                *(Network(ID="", Name=name, Driver="fake", Created="", Pools=[pool], IPAM=ipam, Settled=True) for name in "ab"),
                Network(ID="", Name="host", Driver="host", Created="", Settled=True),
            ],
            kernel=RecordingKernel(),
            events=EventBus(),
            name_of=str,
        )  # fmt: skip
        self.resolver = FakeResolver()
        naming = Naming(self.networks, self.resolver)
        self.connecting = Connecting(store=self.store, networks=self.networks, naming=naming)

    async def open(self) -> None:
        self.folder.mkdir(exist_ok=True)
        await self.networks.open()
        await self.store.open()

    async def create(self, *names: str, mode: str = "a") -> Container:
        host = HostConfig(NetworkMode=mode, PortBindings={"80/tcp": [PortBinding(HostIp="127.0.0.1")]})
        record = Record(
            ID="c" * 64,
            Name="web",
            CreatedNs=0,
            Created="",
            ImageID="",
            Config=ContainerConfig(Hostname="web"),
            HostConfig=host,
            Endpoints={name: EndpointSettings() for name in names},
            Mounts=[],
        )
        container = await self.store.add(record)
        (container.folder / "hosts").write_text("127.0.0.1\tlocalhost\n")
        (container.folder / "resolv.conf").write_text("# the container's own\n")
        return container

    async def run(self, container: Container) -> None:
        record = container.record
        ports = port_requests(record.Config, record.HostConfig)
        sandbox = await self.networks.reserve(container.id, record.networks(), ports)
        await self.networks.attach(container.id, PID)
        container.state.Pid, container.state.Endpoints = PID, dict(sandbox.endpoints)
        container.move(Event.STARTED)
        self.store.save_state(container)

    def look(self, container: Container) -> tuple[list[str], list[str], list[str], list[str]]:
        """Networks by the record, by the state, by the table; and which publish."""
        on = [network.Name for network in self.networks.list() if container.id in network.Containers]
        endpoints = container.state.Endpoints
        published = [name for name, endpoint in endpoints.items() if endpoint.Ports]
        return sorted(container.record.Endpoints), sorted(endpoints), sorted(on), published


@pytest.fixture
async def place(tmp_path: Path) -> Place:
    made = Place(tmp_path / "state")
    await made.open()
    return made


async def test_one_that_runs_joins_and_leaves_at_once(place: Place) -> None:
    container = await place.create("a")
    await place.run(container)
    await place.connecting.connect(container, place.networks.id_of("b")[:12], PRIORITY)
    assert place.look(container) == (["a", "b"], ["a", "b"], ["a", "b"], ["b"])
    await place.connecting.disconnect(container, "a", force=False)
    assert place.look(container) == (["b"], ["b"], ["b"], ["b"])
    assert place.driver.done[-2:] == [("detach", "a"), ("release", "a")]
    with pytest.raises(ForbiddenError, match="endpoint with name web already exists in network b"):
        await place.connecting.connect(container, "b", EndpointSettings())


async def test_of_one_that_does_not_run_the_record_follows(place: Place) -> None:
    container = await place.create("a")
    for _ in range(2):
        await place.connecting.connect(container, "b", PRIORITY)
    await place.connecting.disconnect(container, "a", force=False)
    assert place.look(container) == (["b"], [], [], [])
    assert place.driver.done == []
    again = Place(place.folder)
    await again.open()
    assert next(iter(again.store)).record.Endpoints == {"b": PRIORITY}


async def test_refusals(place: Place) -> None:
    container = await place.create("a")
    await place.run(container)
    with pytest.raises(NetworkNotFoundError):
        await place.connecting.connect(container, "nowhere", EndpointSettings())
    with pytest.raises(NetworkNotFoundError):
        await place.connecting.disconnect(container, "nowhere", force=True)
    with pytest.raises(NotConnectedError, match=f"container {container.id} is not connected to network b"):
        await place.connecting.disconnect(container, "b", force=True)
    with pytest.raises(InvalidParameterError, match="cannot connect container to host network"):
        await place.connecting.connect(container, "host", EndpointSettings())
    container.removing = True
    for refused in (
        place.connecting.connect(container, "b", EndpointSettings()),
        place.connecting.disconnect(container, "a", force=True),
    ):
        with pytest.raises(ConflictError, match="is marked for removal and cannot be connected or disconnected"):
            await refused
    assert place.look(container) == (["a"], ["a"], ["a"], ["a"])


async def test_one_in_the_hosts_network_stays_there(place: Place) -> None:
    container = await place.create("host", mode="host")
    await place.run(container)
    with pytest.raises(InvalidParameterError, match="cannot disconnect container from host network"):
        await place.connecting.disconnect(container, "host", force=False)


async def test_a_network_that_is_gone_can_be_left(place: Place) -> None:
    container = await place.create("a", "gone")
    await place.connecting.connect(container, "b", EndpointSettings())
    await place.connecting.disconnect(container, "gone", force=False)
    assert place.look(container)[0] == ["a", "b"]


@pytest.mark.parametrize("step", ["create b", "reserve b", "publish b", "attach b"])
async def test_a_connect_that_fails_has_changed_nothing(place: Place, step: str) -> None:
    container = await place.create("a")
    await place.run(container)
    action, name = step.split()
    place.driver.refuse.add((action, name))
    asked = msgspec.structs.replace(PRIORITY, IPAMConfig=EndpointIPAMConfig(IPv4Address="10.7.0.9"))
    with pytest.raises(HostError, match=step):
        await place.connecting.connect(container, "b", asked)
    assert place.look(container) == (["a"], ["a"], ["a"], ["a"])
    assert not place.networks.reservations.of("b")
    place.driver.refuse.clear()
    await place.connecting.connect(container, "b", asked)
    assert place.look(container) == (["a", "b"], ["a", "b"], ["a", "b"], ["b"])


@pytest.mark.parametrize("file", ["container.json", "state.json", "hosts"])
async def test_a_connect_that_the_disk_does_not_take_has_changed_nothing(place: Place, file: str) -> None:
    container = await place.create("a")
    await place.run(container)
    (container.folder / file).unlink()
    (container.folder / file).mkdir()
    with pytest.raises(HostError):
        await place.connecting.connect(container, "b", PRIORITY)
    assert place.look(container) == (["a"], ["a"], ["a"], ["a"])


@pytest.mark.parametrize("step", ["publish b", "detach a"])
async def test_a_disconnect_that_fails_has_changed_nothing(place: Place, step: str) -> None:
    container = await place.create("a", "b")
    await place.run(container)
    action, name = step.split()
    place.driver.refuse.add((action, name))
    with pytest.raises(HostError, match=step):
        await place.connecting.disconnect(container, "a", force=False)
    assert place.look(container) == (["a", "b"], ["a", "b"], ["a", "b"], ["a"])
    place.driver.refuse.clear()
    await place.connecting.disconnect(container, "a", force=False)
    assert place.look(container) == (["b"], ["b"], ["b"], ["b"])


async def test_a_daemon_that_dies_at_any_moment_leaves_all_or_nothing(place: Place, tmp_path: Path) -> None:
    """What is on the disk at each step of the driver is what a successor would find."""
    container = await place.create("a")
    await place.run(container)
    moments: list[Path] = []

    def moment() -> None:
        moments.append(shutil.copytree(place.folder, tmp_path / f"moment{len(moments)}"))

    place.driver.moment = moment
    await place.connecting.connect(container, "b", PRIORITY)
    connected = len(moments)
    await place.connecting.disconnect(container, "a", force=False)
    seen = []
    for folder in moments:
        again = Place(folder)
        await again.open()
        (found,) = again.store
        again.networks.adopt(found.id, found.state.Endpoints, found.record.networks())
        await again.connecting.settle(found)
        recorded, in_state, on, published = again.look(found)
        assert recorded == in_state == on
        assert len(published) == 1
        seen.append(recorded)
    assert set(map(tuple, seen[:connected])) == {("a",)}
    assert set(map(tuple, seen[connected:])) == {("b",)}


async def test_names_come_and_go_with_the_networks(place: Place) -> None:
    container = await place.create("a")
    await place.run(container)
    a, b = place.networks.id_of("a"), place.networks.id_of("b")
    await place.connecting.connect(container, "b", EndpointSettings(Aliases=["store"], Links=["db:base", "cache"]))
    told = place.resolver.told
    assert told.holders[b][container.id].names == ("web", "store", "c" * 12)
    assert told.names == {a: "a", b: "b"}
    asker = told.askers[container.id]
    assert [(each.network_id, each.aliases) for each in asker.networks] == [
        (a, {}),
        (b, {"base": "db", "cache": "cache"}),
    ]
    assert (asker.namespace, asker.forwards) == (f"/proc/{PID}/ns/net", True)
    await place.connecting.disconnect(container, "b", force=False)
    assert not told.holders[b]
    assert [each.network_id for each in told.askers[container.id].networks] == [a]
    await place.connecting.disconnect(container, "a", force=False)
    assert not told.askers


async def test_a_connect_whose_names_cannot_be_told_is_none(place: Place) -> None:
    container = await place.create("a")
    await place.run(container)
    place.resolver.failure = HostError("no resolver")
    with pytest.raises(HostError, match="no resolver"):
        await place.connecting.connect(container, "b", EndpointSettings())
    assert place.look(container)[:3] == (["a"], ["a"], ["a"])
    assert not place.resolver.told.holders[place.networks.id_of("b")]


async def test_resolv_conf_follows_while_it_is_as_it_was_written(place: Place) -> None:
    container = await place.create(mode="a")
    await place.run(container)
    path = container.folder / "resolv.conf"
    path.write_text(resolv_conf_of(container.record.HostConfig, {}).text)
    before = path.read_text()
    await place.connecting.connect(container, "a", EndpointSettings())
    assert "nameserver 127.0.0.11\n" in path.read_text()
    await place.connecting.disconnect(container, "a", force=False)
    assert path.read_text() == before
    path.write_text("# the container's own\n")
    await place.connecting.connect(container, "a", EndpointSettings())
    assert path.read_text() == "# the container's own\n"
