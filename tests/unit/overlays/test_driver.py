"""The driver of overlays as the engine sees it, on a kernel in memory; and the way out that containers on them get."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from runtime.errors import EngineError, HostError, InvalidParameterError, UnavailableError
from runtime.events import EventBus
from runtime.kernel.network import AddRoute, AddVeth
from runtime.network_types import NetworkCreateRequest
from runtime.networks import Networks
from runtime.networks.driver import Endpoint, EndpointRequest, Network, Pool
from runtime.networks.ports import PortRequest
from runtime.types import EndpointIPAMConfig, EndpointSettings
from tests.unit.networks.fakes import FakeDriver, RecordingKernel
from worker.network.driver import MTU_OPTION, VNI_OPTION, WAY_OUT, OverlayDriver, overlay_of
from worker.network.overlays import Overlays
from worker.network.types import DataPath, NetworkID

INSIDE = "/proc/7/ns/net"
PORT = PortRequest("tcp", 80, "127.0.0.1", (0,))
RED = Network(
    ID="red0123456789",
    Name="red",
    Driver="overlay",
    Created="",
    Scope="swarm",
    Options={VNI_OPTION: "4097"},
    Pools=[Pool(Subnet="10.0.1.0/24", Gateway="10.0.1.1"), Pool(Subnet="10.0.2.0/24"), Pool(Subnet="fd00:1::/64")],
    Settled=True,
)


@dataclass
class Bed:
    kernel: RecordingKernel
    overlays: Overlays
    driver: OverlayDriver
    run: Path


def made(kernel: RecordingKernel, run: Path) -> Bed:
    overlays = Overlays(kernel, run, DataPath(ipaddress.ip_address("192.0.2.1")))
    return Bed(kernel, overlays, OverlayDriver(kernel, overlays, run), run)


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    kernel = RecordingKernel()
    kernel.add_namespace(INSIDE)
    bed = made(kernel, tmp_path)
    await bed.driver.create(RED)
    yield bed
    await bed.overlays.close()


def asking(ipv4: str = "", ipv6: str = "", *ports: PortRequest) -> EndpointRequest:
    settings = EndpointSettings(IPAMConfig=EndpointIPAMConfig(IPv4Address=ipv4, IPv6Address=ipv6), Aliases=["db"])
    return EndpointRequest("c1", settings, "eth0", ports)


async def attached(bed: Bed) -> Endpoint:
    endpoint = await bed.driver.reserve(RED, asking("10.0.1.7", "fd00:1::7"))
    await bed.driver.attach(RED, endpoint, INSIDE, default_route=False)
    return endpoint


async def test_an_endpoint_has_what_the_cluster_gave_it_and_leaves_nothing(bed: Bed) -> None:
    endpoint = await attached(bed)
    assert endpoint.Addresses == ["10.0.1.7/24", "fd00:1::7/64"]
    assert (endpoint.MacAddress, endpoint.Gateways, endpoint.Aliases) == ("02:42:0a:00:01:07", [], ["db"])
    assert msgspec.json.decode(msgspec.json.encode(endpoint), type=Endpoint) == endpoint
    assert AddRoute(ipaddress.ip_network("10.0.2.0/24"), "eth0") in bed.kernel.done
    assert set(bed.kernel.devices[INSIDE]) == {"lo", "eth0"}
    for _ in range(2):
        await bed.driver.release(RED, endpoint)
    await bed.overlays.settled(NetworkID(RED.ID))
    assert set(bed.kernel.devices[INSIDE]) == {"lo"}
    assert set(bed.kernel.devices) == {"", INSIDE}
    await bed.driver.reserve(RED, asking("10.0.1.7"))


@pytest.mark.parametrize(
    ("request_", "error", "text"),
    [
        (asking(), UnavailableError, "the cluster has given this container no address"),
        (asking("10.9.9.9"), InvalidParameterError, "no configured subnet of network red contains IP address 10.9.9.9"),
        (asking("10.0.1.x"), InvalidParameterError, "invalid IP address: '10.0.1.x'"),
        (asking("10.0.1.7", "", PORT), InvalidParameterError, "network red cannot publish ports"),
    ],
)
async def test_what_cannot_be_reserved_is_told(
    bed: Bed, request_: EndpointRequest, error: type[EngineError], text: str
) -> None:
    with pytest.raises(error, match=text):
        await bed.driver.reserve(RED, request_)


async def test_an_address_is_one_endpoints(bed: Bed) -> None:
    await attached(bed)
    with pytest.raises(UnavailableError, match=r"Address already in use: fd00:1::7"):
        await bed.driver.reserve(RED, asking("10.0.1.8", "fd00:1::7"))
    await bed.driver.reserve(RED, asking("10.0.1.8"))


async def test_an_attach_that_fails_keeps_no_namespace(bed: Bed) -> None:
    endpoint = await bed.driver.reserve(RED, asking("10.0.1.7"))
    bed.kernel.refuse(AddVeth)
    with pytest.raises(HostError):
        await bed.driver.attach(RED, endpoint, INSIDE, default_route=False)
    await bed.overlays.settled(NetworkID(RED.ID))
    assert set(bed.kernel.devices) == {"", INSIDE}


async def test_an_encrypted_network_is_refused_where_nothing_encrypts(bed: Bed) -> None:
    secret = msgspec.structs.replace(RED, Options={**RED.Options, "encrypted": ""})
    await bed.driver.create(secret)
    endpoint = await bed.driver.reserve(secret, asking("10.0.1.7"))
    with pytest.raises(HostError, match="is encrypted, and this node cannot encrypt"):
        await bed.driver.attach(secret, endpoint, INSIDE, default_route=False)


async def test_a_new_daemon_takes_over_what_runs_and_removes_the_rest(bed: Bed) -> None:
    endpoint = await attached(bed)
    (bed.run / "sandboxes").mkdir()
    for name in (endpoint.ID[:12], "0123456789ab"):
        (bed.run / "sandboxes" / name).touch()
    await bed.kernel.keep_namespace(str(bed.run / "sandboxes" / "0123456789ab"))
    after = made(bed.kernel, bed.run)
    after.driver.adopt(RED, endpoint)
    await after.driver.reconcile(RED, [endpoint])
    await after.driver.tidy()
    assert await bed.kernel.has_namespace(str(bed.run / "sandboxes" / endpoint.ID[:12]))
    assert not await bed.kernel.has_namespace(str(bed.run / "sandboxes" / "0123456789ab"))
    with pytest.raises(UnavailableError):
        await after.driver.reserve(RED, asking("10.0.1.7"))
    await after.driver.release(RED, endpoint)
    await after.overlays.settled(NetworkID(RED.ID))
    assert set(bed.kernel.devices[INSIDE]) == {"lo"}
    await after.overlays.close()


@pytest.mark.parametrize(
    "broken",
    [{"Options": {}}, {"Options": {VNI_OPTION: "0"}}, {"Options": {VNI_OPTION: "16777216"}}, {"Pools": []}]
    + [{"Options": {VNI_OPTION: "4097", MTU_OPTION: text}} for text in ("x", "-1", "67", "65536")],
)
async def test_a_network_that_the_cluster_has_not_settled_is_refused(bed: Bed, broken: dict[str, object]) -> None:
    with pytest.raises(InvalidParameterError):
        await bed.driver.settle(msgspec.structs.replace(RED, **broken))


def test_of_several_numbers_the_first_is_the_networks() -> None:
    network = overlay_of(
        msgspec.structs.replace(RED, Options={VNI_OPTION: "4097,4098", MTU_OPTION: "1400"}, Internal=True)
    )
    assert (network.vni, network.mtu, network.internal, len(network.subnets)) == (4097, 1400, True, 3)
    assert network.subnets[2].gateway == ipaddress.ip_address("fd00:1::1")


# ---- the way out -------------------------------------------------------------------------------------------------------


class Routing(FakeDriver):
    """A driver whose networks lead out."""

    async def settle(self, network: Network, others: Sequence[Network] = ()) -> Network:
        pools = [Pool(Subnet="172.18.0.0/16", Gateway="172.18.0.1")]
        return msgspec.structs.replace(network, Pools=network.Pools or pools, Settled=True)


async def opened(state: Path, overlay: FakeDriver, bridge: FakeDriver) -> Networks:
    pools = [Pool(Subnet="10.7.0.0/16", Gateway="10.7.0.1")]
    networks = [
        Network(ID="", Name=name, Driver=driver.name, Created="", Pools=pools, Settled=True, Internal=name == "inner")
        for name, driver in (("a", overlay), ("b", overlay), ("inner", overlay), ("own", bridge))
    ]
    found = Networks(
        state,
        drivers=[overlay, bridge],
        predefined=networks,
        kernel=RecordingKernel(),
        events=EventBus(),
        name_of=str,
        ways_out={"overlay": NetworkCreateRequest(Name=WAY_OUT.Name, Driver="fake")},
    )
    await found.open()
    return found


@pytest.mark.parametrize(
    ("names", "ways_out"),
    [
        (["a", "b"], [WAY_OUT.Name]),
        (["a", "inner"], [WAY_OUT.Name]),
        (["inner"], []),
        (["a", "own"], []),
        (["own"], []),
    ],
)
async def test_containers_on_overlays_get_a_way_out_when_they_have_no_other(
    tmp_path: Path, names: list[str], ways_out: list[str]
) -> None:
    overlay, bridge = FakeDriver("overlay", routes=False), Routing()
    networks = await opened(tmp_path, overlay, bridge)
    for _ in range(2):
        sandbox = await networks.reserve("c1", {name: EndpointSettings() for name in names}, [PORT])
        assert list(sandbox.endpoints) == [*names, *ways_out]
        assert [endpoint.Interface for endpoint in sandbox.endpoints.values()] == [
            f"eth{number}" for number in range(len(sandbox.endpoints))
        ]
        if ways_out:
            assert networks.is_way_out(ways_out[0])
            assert bridge.requests[WAY_OUT.Name].ports == [PORT]
        await networks.release("c1")
    await networks.close()
