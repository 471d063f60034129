"""What the table of networks relies on, of every driver: bridge, macvlan, ipvlan, host and null, and the one of the tests.

Those that make devices stand on the recording kernel; what they do to a real one is the engine's tests' affair.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from runtime.network_types import IPAM, IPAMConfig
from runtime.networks import predefined
from runtime.networks.driver import Driver, Endpoint, EndpointRequest, Network
from runtime.networks.ports import PortRequest, requests_of
from runtime.types import EndpointSettings
from tests.unit.networks.fakes import Device, FakeDriver, RecordingKernel

INSIDE = "/proc/7/ns/net"
DUAL = IPAM(Config=[IPAMConfig(Subnet="fd00:7::/64"), IPAMConfig(Subnet="10.7.0.0/24")])
NETWORKS = [
    *predefined.networks(bridge="br7", subnet="172.17.0.0/16"),
    Network(ID="", Name="macvlan", Driver="macvlan", Created="", Options={"parent": "lo0"}, EnableIPv6=True, IPAM=DUAL),
    Network(ID="", Name="vlan", Driver="macvlan", Created="", Options={"parent": "lo0.10"}),
    Network(ID="", Name="ipvlan", Driver="ipvlan", Created="", Options={"ipvlan_mode": "l3"}),
    Network(ID="", Name="fake", Driver="fake", Created=""),
]


@dataclass
class Place:
    """A network that is not settled yet, on one host; ``driver`` makes the driver of the next daemon there."""

    kernel: RecordingKernel
    network: Network
    run: Path

    def driver(self) -> Driver:
        drivers = [*predefined.drivers(self.kernel, self.run), FakeDriver()]
        return next(driver for driver in drivers if driver.name == self.network.Driver)


@pytest.fixture(params=NETWORKS, ids=lambda network: network.Name)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    kernel = RecordingKernel()
    kernel.add_namespace(INSIDE)
    kernel.devices[""]["lo0"] = Device(up=True)
    return Place(kernel, msgspec.structs.replace(request.param, ID="n1"), tmp_path)


async def made(place: Place) -> tuple[Driver, Network]:
    driver = place.driver()
    network = await driver.settle(place.network)
    for _ in range(2):
        await driver.create(network)
    return driver, network


def request(interface: str = "eth3") -> EndpointRequest:
    return EndpointRequest("c1", EndpointSettings(Aliases=["db"]), interface)


async def test_to_settle_is_to_keep_what_a_network_is(place: Place) -> None:
    driver = place.driver()
    network = await driver.settle(place.network)
    assert network.Settled
    assert place.kernel.done == []
    before = msgspec.structs.replace(
        network, Pools=place.network.Pools, Settled=place.network.Settled, DeviceFound=False
    )
    assert before == place.network
    assert await driver.settle(network) == network


async def test_an_endpoint_lives_and_goes(place: Place) -> None:
    driver, network = await made(place)
    before = list(place.kernel.done)
    endpoint = await driver.reserve(network, request())
    assert place.kernel.done == before
    assert (endpoint.NetworkID, endpoint.Aliases) == ("n1", ["db"])
    assert endpoint.Interface == ("eth3" if driver.routes else "")
    assert msgspec.json.decode(msgspec.json.encode(endpoint), type=Endpoint) == endpoint
    await driver.attach(network, endpoint, INSIDE, default_route=driver.routes)
    await driver.detach(network, endpoint, INSIDE)
    for _ in range(2):
        await driver.release(network, endpoint)
    assert set(place.kernel.devices[INSIDE]) == {"lo"}


async def test_one_endpoint_is_not_another(place: Place) -> None:
    driver, network = await made(place)
    first, second = [await driver.reserve(network, request()) for _ in range(2)]
    for kind in ("ID", "Link", "MacAddress"):
        assert getattr(first, kind) != getattr(second, kind) or not getattr(first, kind)
    assert not set(first.Addresses) & set(second.Addresses)


async def test_an_adopted_endpoint_is_as_good_as_a_reserved_one(place: Place) -> None:
    driver, network = await made(place)
    endpoint = await driver.reserve(network, request())
    await driver.attach(network, endpoint, INSIDE, default_route=driver.routes)
    inside = set(place.kernel.devices[INSIDE])
    driver.close()
    driver = place.driver()
    driver.adopt(network, endpoint)
    for _ in range(2):
        await driver.reconcile(network, [endpoint])
    assert set(place.kernel.devices[INSIDE]) == inside
    other = await driver.reserve(network, request())
    assert not set(endpoint.Addresses) & set(other.Addresses)
    await driver.detach(network, endpoint, INSIDE)
    await driver.release(network, endpoint)


async def test_ports_come_and_go_while_the_endpoint_stays(place: Place) -> None:
    driver, network = await made(place)
    if driver.name not in ("bridge", "fake"):
        return  # publishes nothing
    endpoint = await driver.reserve(network, request())
    await driver.attach(network, endpoint, INSIDE, default_route=True)
    for _ in range(2):
        endpoint = await driver.publish(network, endpoint, [PortRequest("tcp", 80, "127.0.0.1", (0,))])
        assert [port.container_port for port in endpoint.Ports] == [80]
    before = endpoint
    endpoint = await driver.publish(network, endpoint, [])
    assert endpoint.Ports == []
    endpoint = await driver.publish(network, endpoint, requests_of(before.Ports))
    assert endpoint == before
    await driver.release(network, endpoint)


async def test_an_address_to_avoid_is_not_chosen(place: Place) -> None:
    driver, network = await made(place)
    first = await driver.reserve(network, request())
    await driver.release(network, first)
    avoid = {each.ip + number for each in first.interfaces() for number in range(9)}
    wanted = msgspec.structs.replace(request(), avoid=avoid)
    second = await driver.reserve(network, wanted)
    assert not {each.ip for each in second.interfaces()} & avoid


async def test_removal_takes_away_what_was_made(place: Place) -> None:
    before = {namespace: set(devices) for namespace, devices in place.kernel.devices.items()}
    driver, network = await made(place)
    for _ in range(2):
        await driver.remove(network)
    assert {namespace: set(devices) for namespace, devices in place.kernel.devices.items()} == before
    assert place.kernel.rules == {}
    driver.close()
