"""The table of networks, and the endpoints of containers on several of them: drivers that make nothing, no root."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from runtime.errors import HostError, InvalidParameterError, NetworkNotFoundError
from runtime.events import EventBus, EventMessage
from runtime.networks import Driver, Networks, predefined, views
from runtime.networks.driver import Endpoint, Network
from runtime.networks.ports import PortRequest
from runtime.types import EndpointIPAMConfig, EndpointSettings
from tests.unit.networks.fakes import FakeDriver, RecordingKernel

PORT = PortRequest("tcp", 80, "127.0.0.1", (0,))


def make(state: Path, *drivers: Driver, names: Mapping[str, str] | None = None) -> Networks:
    """On networks a, b and c of the first driver and z of the second, and what a host has anyway."""
    networks = predefined.networks(bridge="br7", subnet="172.17.0.0/16")
    for name, driver in zip("abcz", [*drivers[:1] * 3, *drivers[1:]], strict=False):
        networks.append(Network(ID="", Name=name, Driver=driver.name, Created="", Settled=True))
    events = EventBus()
    return Networks(
        state,
        drivers=[*predefined.drivers(RecordingKernel(), state), *drivers],
        predefined=networks,
        events=events,
        name_of=(names or {}).__getitem__,
    )


async def opened(state: Path, *drivers: Driver) -> Networks:
    networks = make(state, *drivers, names={"c1": "one"})
    await networks.open()
    return networks


def wanted(*names: str, **priorities: int) -> dict[str, EndpointSettings]:
    return {name: EndpointSettings(GwPriority=priorities.get(name, 0)) for name in names}


async def test_all_endpoints_are_reserved_attached_and_released_in_order(tmp_path: Path) -> None:
    driver = FakeDriver()
    networks = await opened(tmp_path, driver)
    sandbox = await networks.reserve("c1", wanted("b", "a", "c", a=1), [PORT])
    await networks.attach("c1", 7)
    await networks.release("c1")
    await networks.release("c1")
    assert driver.done == [
        *((step, name) for name in "bac" for step in ("create", "reserve")),
        *(("attach", name) for name in "bac"),
        *(("release", name) for name in "bac"),
    ]
    assert [endpoint.Interface for endpoint in sandbox.endpoints.values()] == ["eth0", "eth1", "eth2"]
    assert (sandbox.gateway, driver.default_routes) == ("a", ["a"])
    assert {name: list(made.ports) for name, made in driver.requests.items()} == {"b": [], "a": [PORT], "c": []}


async def test_the_gateway_is_the_first_by_priority_and_name_of_those_that_route(tmp_path: Path) -> None:
    unrouted = FakeDriver("unrouted", routes=False)
    networks = await opened(tmp_path, FakeDriver(), unrouted)
    for names, gateway in ((wanted("c", "b"), "b"), (wanted("z", "c", z=9), "c"), (wanted("z"), ""), ({}, "")):
        assert (await networks.reserve("c1", names, [PORT])).gateway == gateway
        await networks.release("c1")
    assert unrouted.requests["z"].ports == ()


@pytest.mark.parametrize("step", ["create", "reserve"])
async def test_a_failed_reservation_gives_back_those_before_it(tmp_path: Path, step: str) -> None:
    driver = FakeDriver()
    driver.refuse.add((step, "b"))
    networks = await opened(tmp_path, driver)
    with pytest.raises(HostError, match=f"{step} b"):
        await networks.reserve("c1", wanted("a", "b", "c"), [])
    assert [done for done in driver.done if done[0] != "create"] == [("reserve", "a"), ("release", "a")]
    assert networks.inspect("a").Containers == {}


async def test_after_a_failed_attach_the_release_gives_back_all(tmp_path: Path) -> None:
    driver = FakeDriver()
    driver.refuse.add(("attach", "b"))
    networks = await opened(tmp_path, driver)
    await networks.reserve("c1", wanted("a", "b"), [])
    with pytest.raises(HostError, match="attach b"):
        await networks.attach("c1", 7)
    await networks.release("c1", namespace_stays=True)
    assert driver.done[-3:] == [("detach", "a"), ("release", "a"), ("release", "b")]


@pytest.mark.parametrize("step", ["detach", "release"])
async def test_what_cannot_be_given_back_is_told_once_the_rest_is(tmp_path: Path, step: str) -> None:
    driver = FakeDriver()
    driver.refuse.add((step, "a"))
    networks = await opened(tmp_path, driver)
    await networks.reserve("c1", wanted("a", "b"), [])
    await networks.attach("c1", 7)
    with pytest.raises(HostError, match=f"{step} a"):
        await networks.release("c1", namespace_stays=True)
    assert driver.done[-1] == ("release", "b")
    assert [*networks.inspect("a").Containers] == ["c1"]
    driver.refuse.clear()
    await networks.release("c1", namespace_stays=True)  # tried again: what is left of it
    assert driver.done[-2:] == [("detach", "a"), ("release", "a")]
    assert networks.inspect("a").Containers == {}


async def test_what_a_run_could_not_give_back_goes_before_the_next(tmp_path: Path) -> None:
    driver = FakeDriver()
    driver.refuse.add(("release", "a"))
    networks = await opened(tmp_path, driver)
    await networks.reserve("c1", wanted("a"), [])
    with pytest.raises(HostError):
        await networks.release("c1")
    with pytest.raises(HostError, match="release a"):
        await networks.reserve("c1", wanted("b"), [])
    driver.refuse.clear()
    driver.done.clear()
    await networks.reserve("c1", wanted("b"), [])
    assert driver.done == [("release", "a"), ("create", "b"), ("reserve", "b")]


def full(path: Path, data: bytes, *, durable: bool) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_a_network_that_cannot_be_saved_is_settled_with_the_next_container(tmp_path: Path) -> None:
    networks = await opened(tmp_path, FakeDriver())
    with pytest.MonkeyPatch.context() as disk:
        disk.setattr("base.records.write_atomic", full)
        with pytest.raises(HostError, match=r"cannot save the networks: .* No space left on device"):
            await networks.reserve("c1", wanted("bridge"), [])
    assert b'"Settled":false' in saved_bridge(tmp_path)
    await networks.reserve("c1", wanted("bridge"), [])
    assert b'"Settled":true' in saved_bridge(tmp_path)


def saved_bridge(state: Path) -> bytes:
    (found,) = (
        each
        for each in msgspec.json.decode((state / "networks.json").read_bytes())["Networks"]
        if each["Name"] == "bridge"
    )
    return msgspec.json.encode(found)


async def test_the_table_of_a_disk_that_takes_nothing_is_saved_later(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as disk:
        disk.setattr("base.records.write_atomic", full)
        networks = await opened(tmp_path, FakeDriver())
    made = networks.id_of("a")
    assert networks.unsaved[0] == 1
    await networks.close()
    assert (await opened(tmp_path, FakeDriver())).id_of("a") == made


async def test_connects_and_disconnects_are_told(tmp_path: Path) -> None:
    told: list[EventMessage] = []
    bus = EventBus()
    bus.on_event(told.append)
    networks = Networks(
        tmp_path,
        drivers=predefined.drivers(kernel := RecordingKernel(), tmp_path),
        predefined=predefined.networks(bridge="br7", subnet="172.17.0.0/16"),
        events=bus,
        name_of=str,
    )
    await networks.open()
    kernel.add_namespace("/proc/7/ns/net")
    for name in ("bridge", "host", "none"):
        await networks.reserve("c1", wanted(name), [])
        assert told == []
        await networks.attach("c1", 7)
        await networks.release("c1")
        seen = [(event.Action, event.Actor.Attributes) for event in told]
        facts = {"container": "c1", "name": "bridge", "type": "bridge"}
        assert seen == ([("connect", facts), ("disconnect", facts)] if name == "bridge" else [])
        told.clear()


async def test_adopted_endpoints_are_known_and_released(tmp_path: Path) -> None:
    driver = FakeDriver()
    networks = await opened(tmp_path, driver)
    network_id = networks.id_of("a")
    endpoints = {name: Endpoint(NetworkID=network_id, ID=f"e-{name}") for name in ("a", "gone")}
    networks.adopt("c1", endpoints)
    await networks.reconcile()
    assert networks.inspect("a").Containers["c1"].EndpointID == "e-a"
    await networks.release("c1", namespace_stays=True)
    assert driver.done == [("adopt", "a"), *(("reconcile", name) for name in "abc"), ("detach", "a"), ("release", "a")]


async def test_the_table_outlives_the_daemon(tmp_path: Path) -> None:
    networks = await opened(tmp_path, FakeDriver())
    before = {network.Name: network.Id for network in networks.list()}
    assert list(before) == ["bridge", "host", "none", "a", "b", "c"]
    assert networks.inspect("bridge").IPAM.Config[0].Subnet == "172.17.0.0/16"
    written = (tmp_path / "networks.json").read_bytes()
    again = make(tmp_path, FakeDriver())
    await again.open()
    assert {network.Name: network.Id for network in again.list()} == before
    assert (tmp_path / "networks.json").read_bytes() == written
    assert again.resolve(before["host"][:10]) == "host"
    for unknown in ("", "nowhere"):
        with pytest.raises(NetworkNotFoundError):
            again.resolve(unknown)


async def test_a_settled_subnet_is_kept_though_another_is_wished_for(tmp_path: Path) -> None:
    networks = await opened(tmp_path)
    await networks.reserve("c1", wanted("bridge"), [])
    other = Networks(
        tmp_path,
        drivers=predefined.drivers(RecordingKernel(), tmp_path),
        predefined=predefined.networks(bridge="br8", subnet="10.1.0.0/16"),
        events=EventBus(),
        name_of=str,
    )
    await other.open()
    found = other.inspect("bridge")
    assert found.IPAM.Config[0].Subnet == "172.17.0.0/16"
    assert found.Options["com.docker.network.bridge.name"] == "br8"


async def test_an_unreadable_table_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "networks.json").write_text('{"Created":"","IDs":{"bridge":"1"},"Subnet":""}')
    networks = await opened(tmp_path)
    assert len(networks.id_of("bridge")) == 64


async def test_filters(tmp_path: Path) -> None:
    networks = await opened(tmp_path)
    for filters, names in (
        ({"driver": ["null"]}, ["none"]),
        ({"name": ["o"], "driver": ["host", "bridge"]}, ["host"]),
        ({"type": ["custom"]}, []),
        ({"type": ["builtin"], "scope": ["local"], "dangling": ["false"]}, ["bridge", "host", "none"]),
    ):
        assert [network.Name for network in networks.list(filters)] == names
    with pytest.raises(InvalidParameterError, match="invalid filter 'colour'"):
        networks.list({"colour": ["red"]})


async def test_the_api_shows_both_address_families(tmp_path: Path) -> None:
    asked = EndpointSettings(IPAMConfig=EndpointIPAMConfig(IPv4Address="10.0.0.2"), DriverOpts={"a": "b"})
    endpoint = Endpoint(
        NetworkID="n1",
        ID="e1",
        Addresses=["10.0.0.2/24", "fd00::2/64"],
        Gateways=["10.0.0.1", "fd00::1"],
        MacAddress="02:42:0a:00:00:02",
        Aliases=["db"],
    )
    assert views.endpoint_settings(asked, endpoint, "n1") == EndpointSettings(
        IPAMConfig=asked.IPAMConfig,
        Aliases=["db"],
        DriverOpts={"a": "b"},
        NetworkID="n1",
        EndpointID="e1",
        Gateway="10.0.0.1",
        IPAddress="10.0.0.2",
        MacAddress="02:42:0a:00:00:02",
        IPPrefixLen=24,
        IPv6Gateway="fd00::1",
        GlobalIPv6Address="fd00::2",
        GlobalIPv6PrefixLen=64,
    )
    before = EndpointSettings(IPAMConfig=asked.IPAMConfig, NetworkID="n1")
    for none in (None, Endpoint(NetworkID="n1")):
        assert views.endpoint_settings(asked, none, "n1") == before


def test_endpoints_are_kept_as_they_are() -> None:
    ports = [
        {"protocol": "tcp", "host_ip": "0.0.0.0", "host_port": 80, "container_ip": "10.0.0.2", "container_port": 8}
    ]
    endpoint = msgspec.convert({"NetworkID": "n1", "ID": "e1", "Ports": ports}, Endpoint)
    assert msgspec.json.decode(msgspec.json.encode(endpoint), type=Endpoint) == endpoint
