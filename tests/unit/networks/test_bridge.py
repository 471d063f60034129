"""What the bridge driver does to the kernel, in which order, and what it takes back when a step fails: no root."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

import msgspec
import pytest

from runtime.errors import HostError, UnavailableError
from runtime.kernel.network import (
    AddAddress,
    AddBridge,
    AddDefaultRoute,
    AddVeth,
    Batch,
    DeleteLink,
    FlowsTo,
    SetReflecting,
    SetUp,
)
from runtime.networks import forwarding, predefined
from runtime.networks.bridge import BridgeDriver
from runtime.networks.driver import Endpoint, EndpointRequest, Network
from runtime.networks.ports import PortRequest
from runtime.types import EndpointIPAMConfig, EndpointSettings
from tests.unit.networks.fakes import Device, RecordingKernel, Step
from tests.waiting import until

INSIDE = "/proc/7/ns/net"
TABLE = "inet engine-swarm0"
FORWARDING = forwarding.TABLES[4]


@pytest.fixture
def kernel() -> RecordingKernel:
    made = RecordingKernel()
    made.add_namespace(INSIDE)
    return made


@pytest.fixture
def driver(kernel: RecordingKernel, tmp_path: Path) -> BridgeDriver:
    return BridgeDriver(kernel, tmp_path)


async def settled(driver: BridgeDriver) -> Network:
    bridge, _, _ = predefined.networks(bridge="br7", subnet="172.17.0.0/16")
    return await driver.settle(bridge)


def request(*ports: PortRequest, address: str = "") -> EndpointRequest:
    wanted = EndpointIPAMConfig(IPv4Address=address) if address else None
    return EndpointRequest("c1", EndpointSettings(IPAMConfig=wanted), "eth0", ports)


def published(kernel: RecordingKernel) -> list[str]:
    """What the maps of ports have."""
    return [line for line in kernel.rules.get(TABLE, "").splitlines() if line.startswith("published")]


def free_port() -> PortRequest:
    return PortRequest("tcp", 80, "127.0.0.1", (0,))


def interface(text: str) -> ipaddress.IPv4Interface:
    return ipaddress.IPv4Interface(text)


async def test_the_first_container_makes_the_bridge_and_the_next_only_a_pair(
    kernel: RecordingKernel, driver: BridgeDriver
) -> None:
    network = await settled(driver)
    assert kernel.done == []
    for _ in range(2):
        await driver.create(network)
    assert kernel.done == [
        AddBridge("br7", "02:42:ac:11:00:01"),
        AddAddress("br7", interface("172.17.0.1/16")),
        SetUp("br7"),
        "rules",
    ]
    assert kernel.sysctls == {
        "ipv4/ip_forward": "1",
        "ipv6/conf/all/forwarding": "0",
        "ipv4/conf/br7/route_localnet": "1",
        "ipv6/conf/br7/accept_ra": "0",
        "ipv6/conf/br7/disable_ipv6": "1",
    }
    kernel.done.clear()

    endpoint = await driver.reserve(network, request())
    assert kernel.done == []
    await driver.attach(network, endpoint, INSIDE, default_route=True)
    assert kernel.done == [
        AddVeth(endpoint.Link, "br7", 1500, "eth0", "02:42:ac:11:00:02", INSIDE),
        SetReflecting(endpoint.Link),
        SetUp("eth0"),
        AddAddress("eth0", interface("172.17.0.2/16")),
        AddDefaultRoute(ipaddress.IPv4Address("172.17.0.1")),
    ]
    kernel.done.clear()
    await driver.release(network, endpoint)
    assert kernel.done == []  # the pair goes with the namespace


async def test_one_of_several_networks_has_the_default_route(kernel: RecordingKernel, driver: BridgeDriver) -> None:
    network = await settled(driver)
    await driver.create(network)
    endpoint = await driver.reserve(network, request())
    await driver.attach(network, endpoint, INSIDE, default_route=False)
    assert not any(isinstance(change, AddDefaultRoute) for change in kernel.done)


async def test_published_ports_are_in_the_rules_from_attach_to_release(
    kernel: RecordingKernel, driver: BridgeDriver
) -> None:
    network = await settled(driver)
    await driver.create(network)
    endpoint = await driver.reserve(network, request(free_port()))
    (port,) = endpoint.Ports
    assert port.container_ip == "172.17.0.2"
    assert published(kernel) == []
    await driver.attach(network, endpoint, INSIDE, default_route=True)
    assert published(kernel) == [f"published_ipv4 {{ 127.0.0.1 . tcp . {port.host_port} : 172.17.0.2 . 80 }}"]
    await driver.release(network, endpoint)
    assert published(kernel) == []
    socket.create_server(("127.0.0.1", port.host_port)).close()


async def test_flows_to_a_port_are_forgotten_once_the_rules_lead_elsewhere(
    kernel: RecordingKernel, driver: BridgeDriver
) -> None:
    network = await settled(driver)
    await driver.create(network)
    udp = PortRequest("udp", 53, "127.0.0.1", (0,))
    endpoint = await driver.reserve(network, request(free_port(), udp))
    flows = FlowsTo("udp", "127.0.0.1", endpoint.Ports[1].host_port)
    await driver.attach(network, endpoint, INSIDE, default_route=True)
    assert kernel.done[-2:] == ["rules", flows]
    await driver.release(network, endpoint)
    assert kernel.done[-2:] == ["rules", flows]


async def test_a_kernel_that_forgets_no_flows_keeps_no_container_from_starting(
    kernel: RecordingKernel, driver: BridgeDriver
) -> None:
    network = await settled(driver)
    await driver.create(network)
    endpoint = await driver.reserve(network, request(PortRequest("udp", 53, "127.0.0.1", (0,))))
    kernel.refuse("flows")
    await driver.attach(network, endpoint, INSIDE, default_route=True)
    assert endpoint.Link in kernel.devices[""]


async def test_a_reservation_is_all_or_none(driver: BridgeDriver) -> None:
    network = await settled(driver)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fixed = PortRequest("tcp", 80, "127.0.0.1", (taken.getsockname()[1],))
        with pytest.raises(UnavailableError, match="port is already allocated"):
            await driver.reserve(network, request(fixed, address="172.17.9.9"))
    endpoint = await driver.reserve(network, request(address="172.17.9.9"))
    assert endpoint.Addresses == ["172.17.9.9/16"]
    with pytest.raises(UnavailableError, match="Address already in use"):
        await driver.reserve(network, request(address="172.17.9.9"))
    for _ in range(2):
        await driver.release(network, endpoint)
    await driver.reserve(network, request(address="172.17.9.9"))


@pytest.mark.parametrize("step", [AddBridge, AddAddress, SetUp, "sysctls", "rules"])
async def test_a_bridge_that_could_not_be_made_is_made_by_the_next(
    kernel: RecordingKernel, driver: BridgeDriver, step: Step
) -> None:
    network = await settled(driver)
    kernel.refuse(step)
    with pytest.raises(HostError):
        await driver.create(network)
    await driver.create(network)
    assert kernel.devices[""]["br7"].addresses == [interface("172.17.0.1/16")]
    assert TABLE in kernel.rules


@pytest.mark.parametrize("step", [AddVeth, SetUp, AddAddress, AddDefaultRoute, "rules"])
async def test_a_failed_attach_leaves_no_link_and_release_gives_back_the_rest(
    kernel: RecordingKernel, driver: BridgeDriver, step: Step
) -> None:
    network = await settled(driver)
    await driver.create(network)
    endpoint = await driver.reserve(network, request(free_port(), address="172.17.9.9"))
    kernel.refuse(step, times=2)
    with pytest.raises(HostError):
        await driver.attach(network, endpoint, INSIDE, default_route=True)
    assert (set(kernel.devices[""]), set(kernel.devices[INSIDE])) == ({"lo", "br7"}, {"lo"})
    await driver.release(network, endpoint)
    assert published(kernel) == []
    await driver.reserve(network, request(address="172.17.9.9"))


async def test_an_address_is_given_out_again_only_once_no_rule_leads_to_it(
    kernel: RecordingKernel, driver: BridgeDriver
) -> None:
    network = await settled(driver)
    await driver.create(network)
    endpoint = await driver.reserve(network, request(free_port(), address="172.17.9.9"))
    await driver.attach(network, endpoint, INSIDE, default_route=True)
    kernel.refuse("rules", times=2)
    with pytest.raises(HostError, match="busy"):
        await driver.release(network, endpoint)
    with pytest.raises(UnavailableError, match="already in use"):
        await driver.reserve(network, request(address="172.17.9.9"))
    await driver.release(network, endpoint)  # tried again
    assert str(endpoint.Ports[0].host_port) not in str(kernel.done[-1])
    await driver.reserve(network, request(address="172.17.9.9"))
    socket.create_server(("127.0.0.1", endpoint.Ports[0].host_port)).close()


async def test_detach_takes_the_link_of_a_namespace_that_goes_on(kernel: RecordingKernel, driver: BridgeDriver) -> None:
    network = await settled(driver)
    await driver.create(network)
    endpoint = await driver.reserve(network, request())
    await driver.attach(network, endpoint, INSIDE, default_route=True)
    await driver.detach(network, endpoint, INSIDE)
    assert kernel.done[-1] == DeleteLink(endpoint.Link)
    assert set(kernel.devices[INSIDE]) == {"lo"}


async def test_a_subnet_the_host_routes_is_passed_over_but_not_by_the_bridge_itself(
    kernel: RecordingKernel, driver: BridgeDriver
) -> None:
    kernel.devices[""]["br7"] = Device(kind="bridge", up=True, addresses=[interface("172.17.0.1/16")])
    assert (await settled(driver)).Pools[0].Subnet == "172.17.0.0/16"
    kernel.devices[""]["busy"] = Device(up=True, addresses=[interface("172.17.5.1/24")])
    network = await settled(driver)
    assert (network.Pools[0].Subnet, network.Pools[0].Gateway, network.Settled) == ("172.18.0.0/16", "172.18.0.1", True)


async def test_a_nameserver_of_the_host_is_on_no_network(kernel: RecordingKernel, tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("search x\nnameserver 172.17.255.3\nnameserver fe80::1%eth0\nnameserver\n")
    driver = BridgeDriver(kernel, tmp_path, resolv_conf=tmp_path / "resolv.conf")
    assert (await settled(driver)).Pools[0].Subnet == "172.18.0.0/16"


async def test_the_next_daemon_keeps_what_runs_and_takes_away_what_does_not(
    kernel: RecordingKernel, tmp_path: Path
) -> None:
    before = BridgeDriver(kernel, tmp_path)
    network = await settled(before)
    await before.create(network)
    stays = await before.reserve(network, request(free_port()))
    await before.attach(network, stays, INSIDE, default_route=True)
    kernel.add_namespace("/proc/8/ns/net")
    ended = await before.reserve(network, request(free_port()))
    await before.attach(network, ended, "/proc/8/ns/net", default_route=True)
    kernel.devices[""]["veth-other"] = Device(bridge="br7")
    before.close()

    after = BridgeDriver(kernel, tmp_path)
    after.adopt(network, stays)
    await after.reconcile(network, [stays])
    assert set(kernel.devices[""]) == {"lo", "br7", stays.Link, "veth-other"}
    assert len(published(kernel)) == 1
    with pytest.raises(UnavailableError):
        await after.reserve(network, request(address="172.17.0.2"))
    await after.reserve(network, request(address="172.17.0.3"))


async def test_a_bridge_that_is_not_there_and_not_needed_is_not_made(kernel: RecordingKernel, tmp_path: Path) -> None:
    driver = BridgeDriver(kernel, tmp_path)
    network = await settled(driver)
    await driver.reconcile(network, [])
    assert kernel.done == []
    gone = Endpoint(NetworkID=network.ID, ID="e1", Link="veth0000001", Addresses=["172.17.0.2/16"])
    driver.adopt(network, gone)
    await driver.reconcile(network, [gone])
    assert "br7" in kernel.devices[""]


async def test_removal_takes_device_and_rules(kernel: RecordingKernel, driver: BridgeDriver) -> None:
    network = await settled(driver)
    await driver.create(network)
    for _ in range(2):
        await driver.remove(network)
    assert set(kernel.devices[""]) == {"lo"}
    assert kernel.rules == {}
    assert kernel.sysctls["ipv4/ip_forward"] == "0"
    await kernel.apply(Batch((AddBridge("br7", "02:42:ac:11:00:01"),)))
    await driver.create(network)
    assert kernel.devices[""]["br7"].addresses == [interface("172.17.0.1/16")]


async def test_forwarding_that_was_on_stays_without_a_table(kernel: RecordingKernel, driver: BridgeDriver) -> None:
    kernel.sysctls["ipv4/ip_forward"] = "1"
    network = await settled(driver)
    await driver.create(network)
    assert set(kernel.rules) == {TABLE}
    await driver.remove(network)
    assert kernel.sysctls["ipv4/ip_forward"] == "1"


async def test_forwarding_that_we_switched_on_is_shut_for_others_over_restarts_and_flushes(
    kernel: RecordingKernel, tmp_path: Path
) -> None:
    network = await settled(BridgeDriver(kernel, tmp_path))
    for _ in range(2):
        await BridgeDriver(kernel, tmp_path).create(network)
        assert set(kernel.rules) == {TABLE, FORWARDING}
        kernel.rules.clear()
    (tmp_path / "forwarding").write_text("the boot before")
    await BridgeDriver(kernel, tmp_path).create(network)  # on since this boot began
    assert set(kernel.rules) == {TABLE}


async def test_flushed_rules_come_back_by_themselves(kernel: RecordingKernel, driver: BridgeDriver) -> None:
    network = await settled(driver)
    await driver.create(network)
    endpoint = await driver.reserve(network, request(free_port()))
    await driver.attach(network, endpoint, INSIDE, default_route=True)
    wanted = dict(kernel.rules)
    for _ in range(2):
        kernel.flush_rules()
        await until(lambda: kernel.rules == wanted, what="the rules back")
    del kernel.rules[FORWARDING]
    kernel.refuse("rules")
    kernel.watchers[0]()
    await until(lambda: not kernel.refused, what="a refusal")
    kernel.watchers[0]()
    await until(lambda: kernel.rules == wanted, what="the rules back")
    await driver.remove(network)
    driver.close()
    assert (kernel.rules, kernel.watchers) == ({}, [])


async def test_rules_that_cannot_be_watched_are_made_all_the_same(
    kernel: RecordingKernel, driver: BridgeDriver
) -> None:
    kernel.refuse("watch")
    await driver.create(await settled(driver))
    assert TABLE in kernel.rules
    driver.close()


async def test_engines_share_the_table_and_the_last_one_switches_off(kernel: RecordingKernel, tmp_path: Path) -> None:
    made = []
    for name in ("br7", "br8"):
        (tmp_path / name).mkdir()
        driver = BridgeDriver(kernel, tmp_path / name, engine=name)
        bridge, _, _ = predefined.networks(bridge=name, subnet="172.17.0.0/16")
        network = msgspec.structs.replace(await driver.settle(bridge), ID=name)
        await driver.create(network)
        made.append((driver, network))
    assert await kernel.names_in(FORWARDING, "bridges") == {"br7", "br8"}
    await made[0][0].remove(made[0][1])
    assert await kernel.names_in(FORWARDING, "bridges") == {"br8"}
    assert kernel.sysctls["ipv4/ip_forward"] == "1"
    await made[1][0].remove(made[1][1])
    assert kernel.rules == {}
    assert kernel.sysctls["ipv4/ip_forward"] == "0"


async def test_no_note_can_be_written_and_the_table_says_so_alone(kernel: RecordingKernel, tmp_path: Path) -> None:
    run = tmp_path / "gone"
    network = await settled(BridgeDriver(kernel, run))
    for _ in range(2):
        await BridgeDriver(kernel, run).create(network)
        assert FORWARDING in kernel.rules


async def test_a_bridge_that_somebody_deletes_is_back_with_what_was_on_it(
    kernel: RecordingKernel, driver: BridgeDriver, tmp_path: Path
) -> None:
    network = await settled(driver)
    await driver.create(network)
    endpoint = await driver.reserve(network, request())
    await driver.attach(network, endpoint, INSIDE, default_route=True)
    before = set(kernel.devices[""])
    for _ in range(2):
        await kernel.apply(Batch((DeleteLink("br7"),)))
        await until(lambda: kernel.devices[""][endpoint.Link].bridge == "br7", what="the bridge back")
    assert kernel.devices[""]["br7"].addresses == [interface("172.17.0.1/16")]
    driver.close()
    await kernel.apply(Batch((DeleteLink("br7"),)))
    after = BridgeDriver(kernel, tmp_path)  # so too while no daemon looked
    after.adopt(network, endpoint)
    await after.reconcile(network, [endpoint])
    assert kernel.devices[""][endpoint.Link].bridge == "br7"
    await after.detach(network, endpoint, INSIDE)
    await after.release(network, endpoint)
    await after.remove(network)
    assert set(kernel.devices[""]) == before - {"br7", endpoint.Link}
    after.close()
    assert kernel.link_watchers == []
