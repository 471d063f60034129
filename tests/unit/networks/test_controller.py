"""The table of networks, and the endpoints of containers on several of them: drivers that make nothing, no root."""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from runtime.errors import AddressInUseError, HostError, InvalidParameterError, NetworkNotFoundError
from runtime.events import EventBus, EventMessage
from runtime.network_types import IPAM, IPAMConfig, NetworkCreateRequest
from runtime.networks import Driver, Networks, predefined, views
from runtime.networks.driver import Endpoint, Network, Pool
from runtime.networks.ports import PortRequest
from runtime.types import EndpointIPAMConfig, EndpointSettings
from tests.unit.networks.fakes import FakeDriver, RecordingKernel

PORT = PortRequest("tcp", 80, "127.0.0.1", (0,))


def make(
    state: Path,
    *drivers: Driver,
    names: Mapping[str, str] | None = None,
    ways_out: Mapping[str, NetworkCreateRequest] | None = None,
) -> Networks:
    """On networks a, b and c of the first driver and z of the second, and what a host has anyway."""
    networks = predefined.networks(bridge="br7", subnet="172.17.0.0/16")
    for name, driver in zip("abcz", [*drivers[:1] * 3, *drivers[1:]], strict=False):
        pools = [Pool(Subnet="10.7.0.0/16", Gateway="10.7.0.1")]
        networks.append(Network(ID="", Name=name, Driver=driver.name, Created="", Pools=pools, Settled=True))
    events = EventBus()
    return Networks(
        state,
        drivers=[*predefined.drivers(RecordingKernel(), state), *drivers],
        predefined=networks,
        kernel=RecordingKernel(),
        events=events,
        name_of=(names or {}).__getitem__,
        ways_out=ways_out,
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
        *((step, name) for step in ("create", "reserve") for name in "bac"),
        *(("attach", name) for name in "bac"),
        *(("release", name) for name in "bac"),
    ]
    assert [endpoint.Interface for endpoint in sandbox.endpoints.values()] == ["eth0", "eth1", "eth2"]
    assert (sandbox.gateways, driver.default_routes) == (("a",), ["a"])
    assert {name: list(made.ports) for name, made in driver.requests.items()} == {"b": [], "a": [PORT], "c": []}


async def test_the_gateway_is_the_first_by_priority_and_name_of_those_that_route(tmp_path: Path) -> None:
    unrouted = FakeDriver("unrouted", routes=False)
    networks = await opened(tmp_path, FakeDriver(), unrouted)
    for names, gateways in ((wanted("c", "b"), "b"), (wanted("z", "c", z=9), "c"), (wanted("z"), ""), ({}, "")):
        assert (await networks.reserve("c1", names, [PORT])).gateways == tuple(gateways)
        await networks.release("c1")
    assert unrouted.requests["z"].ports == ()


async def running(networks: Networks, *names: str, **priorities: int) -> None:
    """c1 with PORT, on networks of the driver of the tests."""
    await networks.reserve("c1", wanted(*names, **priorities), [PORT])
    await networks.attach("c1", 7)


async def test_a_network_more_takes_the_ports_when_it_is_the_way_out(tmp_path: Path) -> None:
    driver = FakeDriver()
    networks = await opened(tmp_path, driver)
    await running(networks, "b")
    driver.done.clear()
    sandbox = await networks.extend("c1", "c", EndpointSettings(), [PORT])
    await networks.attach("c1", 7)
    assert driver.done == [("create", "c"), ("reserve", "c"), ("attach", "c")]
    assert (sandbox.gateways, sandbox.endpoints["c"].Interface) == (("b",), "eth1")
    driver.done.clear()
    sandbox = await networks.extend("c1", "a", EndpointSettings(GwPriority=1), [PORT])
    assert driver.done == [("create", "a"), ("reserve", "a"), ("withdraw", "b"), ("publish", "a")]
    assert sandbox.gateways == ("a",)
    assert {name: [port.host_port for port in made.Ports] for name, made in sandbox.endpoints.items()} == {
        "b": [],
        "c": [],
        "a": [49153],
    }
    await networks.attach("c1", 7)
    assert driver.default_routes == ["b", "a"]


async def test_a_network_that_is_left_hands_on_the_ports_and_keeps_its_address_meanwhile(tmp_path: Path) -> None:
    driver = FakeDriver()
    networks = await opened(tmp_path, driver)
    await running(networks, "a", "b")
    driver.done.clear()
    sandbox = await networks.leave("c1", "a", [PORT], 7)
    assert driver.done == [("withdraw", "a"), ("publish", "b"), ("detach", "a")]
    assert ([*sandbox.endpoints], sandbox.gateways) == (["b"], ("b",))
    assert [port.host_port for port in sandbox.endpoints["b"].Ports] == [49153]
    assert [*networks.inspect("a").Containers] == ["c1"]
    await networks.give_back("c1", "a")
    assert driver.done[-1] == ("release", "a")
    assert networks.inspect("a").Containers == {}
    assert (await networks.extend("c1", "a", EndpointSettings(), [PORT])).endpoints["a"].Interface == "eth0"
    assert (await networks.leave("c1", "b", [PORT], 7)).gateways == ("a",)
    await networks.give_back("c1", "b")
    assert (await networks.leave("c1", "a", [PORT], 7)).gateways == ()


@pytest.mark.parametrize("step", ["create", "reserve", "publish"])
async def test_a_network_that_cannot_be_joined_changes_nothing(tmp_path: Path, step: str) -> None:
    driver = FakeDriver()
    networks = await opened(tmp_path, driver)
    await running(networks, "b")
    driver.refuse.add((step, "a"))
    with pytest.raises(HostError, match=f"{step} a"):
        await networks.extend("c1", "a", EndpointSettings(), [PORT])
    assert networks.inspect("a").Containers == {}
    driver.refuse.clear()
    sandbox = await networks.extend("c1", "c", EndpointSettings(), [PORT])
    assert (sandbox.gateways, len(sandbox.endpoints["b"].Ports)) == (("b",), 1)


@pytest.mark.parametrize("step", ["publish b", "detach a"])
async def test_a_network_that_cannot_be_left_keeps_what_it_had(tmp_path: Path, step: str) -> None:
    driver = FakeDriver()
    networks = await opened(tmp_path, driver)
    await running(networks, "a", "b")
    action, name = step.split()
    driver.refuse.add((action, name))
    with pytest.raises(HostError, match=step):
        await networks.leave("c1", "a", [PORT], 7)
    driver.refuse.clear()
    sandbox = await networks.extend("c1", "c", EndpointSettings(), [PORT])
    assert sandbox.gateways == ("a",)
    assert {name: len(made.Ports) for name, made in sandbox.endpoints.items()} == {"a": 1, "b": 0, "c": 0}


async def test_who_needs_a_way_out_gets_it_and_loses_it_when_another_leads_out(tmp_path: Path) -> None:
    """Network z alone leads nowhere: who is on it is put on "out" as well, while nothing else leads out."""
    driver, overlay = FakeDriver(), FakeDriver("overlay", routes=False)
    out = NetworkCreateRequest(Name="out", Driver="fake", IPAM=IPAM(Config=[IPAMConfig(Subnet="10.9.0.0/24")]))
    networks = make(tmp_path, driver, overlay, names={"c1": "one"}, ways_out={"overlay": out})
    await networks.open()
    await running(networks, "a")
    sandbox = await networks.extend("c1", "z", EndpointSettings(), [PORT])
    await networks.attach("c1", 7)
    assert ([*sandbox.endpoints], sandbox.gateways, networks.spare_way_out("c1")) == (["a", "z"], ("a",), "")
    sandbox = await networks.leave("c1", "a", [PORT], 7)
    await networks.give_back("c1", "a")
    assert ([*sandbox.endpoints], sandbox.gateways) == (["z", "out"], ("out",))
    assert [len(each.Ports) for each in sandbox.endpoints.values()] == [0, 1]
    assert driver.done.index(("attach", "out")) < driver.done.index(("detach", "a"))
    sandbox = await networks.extend("c1", "b", EndpointSettings(), [PORT])
    await networks.attach("c1", 7)
    assert sandbox.gateways == ("b",)  # what was asked for comes before it
    assert networks.spare_way_out("c1") == ""
    await networks.leave("c1", "z", [PORT], 7)
    await networks.give_back("c1", "z")
    assert networks.spare_way_out("c1") == "out"
    await networks.leave("c1", "out", [PORT], 7)
    await networks.give_back("c1", "out")
    assert networks.spare_way_out("c1") == ""


async def test_an_address_asked_for_is_nobody_elses_while_its_container_exists(tmp_path: Path) -> None:
    driver = FakeDriver()
    networks = await opened(tmp_path, driver)
    address = ipaddress.ip_address("10.7.0.9")
    asked = {"a": EndpointSettings(IPAMConfig=EndpointIPAMConfig(IPv4Address="10.7.0.9"))}
    for container_id in ("c1", "c2"):
        networks.reservations.ask(container_id, asked)
    with pytest.raises(AddressInUseError, match=r"Address already in use: 10.7.0.9 is reserved for container one"):
        await networks.reserve("c2", asked, [])
    await networks.reserve("c3", wanted("a"), [])
    assert list(driver.requests["a"].avoid) == [address]
    await networks.reserve("c1", asked, [])
    networks.reservations.drop("c1")
    await networks.release("c1")
    await networks.reserve("c2", asked, [])
    networks.reservations.drop("c2", "a")
    assert list(networks.reservations.of("a")) == []


async def test_addresses_that_the_cluster_gives_out_are_not_kept_for_ended_containers(tmp_path: Path) -> None:
    driver, overlay = FakeDriver(), FakeDriver("overlay", scope="swarm")
    networks = await opened(tmp_path, driver, overlay)
    asked = {"z": EndpointSettings(IPAMConfig=EndpointIPAMConfig(IPv4Address="10.7.0.9"))}
    networks.reservations.ask("c1", asked)
    networks.reservations.ask("c2", asked)
    assert [*(await networks.reserve("c2", asked, [])).endpoints] == ["z"]


async def test_a_network_that_has_gone_is_told_at_the_start(tmp_path: Path) -> None:
    networks = await opened(tmp_path, FakeDriver())
    with pytest.raises(NetworkNotFoundError, match="network gone not found"):
        await networks.reserve("c1", wanted("a", "gone"), [])
    assert networks.inspect("a").Containers == {}
    assert networks.id_of("gone") == ""


@pytest.mark.parametrize("step", ["create", "reserve"])
async def test_a_failed_reservation_gives_back_those_before_it(tmp_path: Path, step: str) -> None:
    driver = FakeDriver()
    driver.refuse.add((step, "b"))
    networks = await opened(tmp_path, driver)
    with pytest.raises(HostError, match=f"{step} b"):
        await networks.reserve("c1", wanted("a", "b", "c"), [])
    given_back = [("reserve", "a"), ("release", "a")] if step == "reserve" else []
    assert [done for done in driver.done if done[0] != "create"] == given_back
    assert networks.inspect("a").Containers == {}


async def test_after_a_failed_attach_the_release_gives_back_all(tmp_path: Path) -> None:
    driver = FakeDriver()
    driver.refuse.add(("attach", "b"))
    networks = await opened(tmp_path, driver)
    await networks.reserve("c1", wanted("a", "b"), [])
    with pytest.raises(HostError, match="attach b"):
        await networks.attach("c1", 7)
    await networks.release("c1", staying="/proc/7/ns/net")
    assert driver.done[-3:] == [("detach", "a"), ("release", "a"), ("release", "b")]


@pytest.mark.parametrize("step", ["detach", "release"])
async def test_what_cannot_be_given_back_is_told_once_the_rest_is(tmp_path: Path, step: str) -> None:
    driver = FakeDriver()
    driver.refuse.add((step, "a"))
    networks = await opened(tmp_path, driver)
    await networks.reserve("c1", wanted("a", "b"), [])
    await networks.attach("c1", 7)
    with pytest.raises(HostError, match=f"{step} a"):
        await networks.release("c1", staying="/proc/7/ns/net")
    assert driver.done[-1] == ("release", "b")
    assert [*networks.inspect("a").Containers] == ["c1"]
    driver.refuse.clear()
    await networks.release("c1", staying="/proc/7/ns/net")  # tried again: what is left of it
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
        kernel=kernel,
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
        facts = {"container": "c1", "name": name, "type": {"none": "null"}.get(name, name)}
        assert seen == [("connect", facts), ("disconnect", facts)]
        told.clear()


async def test_adopted_endpoints_are_known_and_released(tmp_path: Path) -> None:
    driver = FakeDriver()
    networks = await opened(tmp_path, driver)
    network_id = networks.id_of("a")
    endpoints = {name: Endpoint(NetworkID=network_id, ID=f"e-{name}") for name in ("a", "gone")}
    networks.adopt("c1", endpoints, wanted("a"))
    await networks.reconcile()
    assert networks.inspect("a").Containers["c1"].EndpointID == "e-a"
    await networks.release("c1", staying="/proc/7/ns/net")
    assert driver.done == [("adopt", "a"), *(("reconcile", name) for name in "abc"), ("detach", "a"), ("release", "a")]


async def test_the_table_outlives_the_daemon(tmp_path: Path) -> None:
    networks = await opened(tmp_path, FakeDriver())
    before = {network.Name: network.Id for network in networks.list()}
    assert list(before) == ["bridge", "host", "none", "a", "b", "c"]
    assert [pool.Subnet for pool in networks.inspect("bridge").IPAM.Config or ()] == ["172.17.0.0/16"]
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
        kernel=RecordingKernel(),
        events=EventBus(),
        name_of=str,
    )
    await other.open()
    found = other.inspect("bridge")
    assert [pool.Subnet for pool in found.IPAM.Config or ()] == ["172.17.0.0/16"]
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
    before = msgspec.structs.replace(asked, NetworkID="n1")
    assert views.endpoint_settings(asked, None, "n1") == before


def test_endpoints_are_kept_as_they_are() -> None:
    ports = [
        {"protocol": "tcp", "host_ip": "0.0.0.0", "host_port": 80, "container_ip": "10.0.0.2", "container_port": 8}
    ]
    endpoint = msgspec.convert({"NetworkID": "n1", "ID": "e1", "Ports": ports}, Endpoint)
    assert msgspec.json.decode(msgspec.json.encode(endpoint), type=Endpoint) == endpoint
