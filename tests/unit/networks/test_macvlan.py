"""Networks on a device of the host: what is asked of them, whose the parent is, and what a container gets: no root."""

from __future__ import annotations

import ipaddress

import msgspec
import pytest

from runtime.errors import ForbiddenError, HostError, InvalidParameterError, NotFoundError
from runtime.kernel.network import AddAddress, AddDefaultRoute, AddDummy, AddSublink, AddVlan, DeleteLink, SetUp
from runtime.network_types import IPAM, IPAMConfig
from runtime.networks import macvlan, views
from runtime.networks.driver import Endpoint, EndpointRequest, Network
from runtime.networks.macvlan import Kind, MacvlanDriver
from runtime.networks.ports import PortRequest
from runtime.types import EndpointIPAMConfig, EndpointSettings
from tests.unit.networks.fakes import Device, RecordingKernel

INSIDE = "/proc/7/ns/net"


@pytest.fixture
def kernel() -> RecordingKernel:
    made = RecordingKernel()
    made.add_namespace(INSIDE)
    made.devices[""]["eth0"] = Device(up=True)
    return made


def network(driver: Kind = "macvlan", name: str = "lan", subnet: str = "10.7.0.0/24", **options: str) -> Network:
    ipam = IPAM(Config=[IPAMConfig(Subnet=subnet, Gateway=f"{subnet[:-4]}254")])
    return Network(ID=f"{name}0123456789abc", Name=name, Driver=driver, Created="", Options=options, IPAM=ipam)


def wanted(**settings: object) -> EndpointRequest:
    ports = [PortRequest("tcp", 80, "0.0.0.0", (8080,))]
    return EndpointRequest("c1", msgspec.convert(settings, EndpointSettings), "eth0", ports)


async def made(driver: MacvlanDriver, asked: Network, *others: Network) -> Network:
    settled = await driver.settle(asked, others)
    await driver.create(settled)
    return settled


@pytest.mark.parametrize(
    ("driver", "options", "error", "text"),
    [
        ("macvlan", {"macvlan_mode": "odd"}, InvalidParameterError, "requested macvlan mode 'odd' is not valid, 'bridge' mode is the macvlan driver default"),
        ("ipvlan", {"ipvlan_mode": "l4"}, InvalidParameterError, "requested ipvlan mode 'l4' is not valid, 'l2' mode is the ipvlan driver default"),
        ("ipvlan", {"ipvlan_flag": "x"}, InvalidParameterError, "requested ipvlan flag 'x' is not valid, 'bridge' is the ipvlan driver default"),
        ("macvlan", {"parent": "lo"}, InvalidParameterError, "loopback interface is not a valid macvlan parent link"),
        ("macvlan", {"parent": "eth9"}, InvalidParameterError, "invalid subinterface vlan name eth9, example formatting is eth0.10"),
        ("macvlan", {"parent": "eth9.10"}, NotFoundError, "-o parent interface was not found on the host: eth9"),
        ("macvlan", {"parent": "eth0.x"}, InvalidParameterError, "unable to parse a valid vlan id from: x (ex. eth0.10 for vlan 10)"),
        ("macvlan", {"parent": "eth0.1.2"}, InvalidParameterError, "required interface name format is: name.vlan_id, ex. eth0.10 for vlan 10, instead received eth0.1.2"),
        ("ipvlan", {"parent": "eth0.4095"}, InvalidParameterError, "vlan id must be between 1-4094, received: 4095"),
        ("macvlan", {"parent": "a device of a name too long"}, InvalidParameterError, "invalid parent interface name"),
    ],
)  # fmt: skip
async def test_refusals(
    kernel: RecordingKernel, driver: Kind, options: dict[str, str], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as refused:
        await MacvlanDriver(driver, kernel).settle(network(driver, **options))
    assert str(refused.value).startswith(text)
    assert kernel.done == []


async def test_who_shares_a_parent(kernel: RecordingKernel) -> None:
    driver = MacvlanDriver("macvlan", kernel)
    first = await made(driver, network(parent="eth0"))
    second = network(name="two", subnet="10.8.0.0/24", parent="eth0")
    await driver.settle(second, [first])
    passthru = msgspec.structs.replace(second, Options={"parent": "eth0", "macvlan_mode": "passthru"})
    with pytest.raises(ForbiddenError, match="cannot use mode passthru, macvlan network lan0123456789abc is already"):
        await driver.settle(passthru, [first])
    with pytest.raises(ForbiddenError, match="is already using parent interface eth0 in mode passthru"):
        await driver.settle(second, [msgspec.structs.replace(first, Options=passthru.Options)])
    ipvlan = MacvlanDriver("ipvlan", kernel)
    taken = await made(ipvlan, network("ipvlan", parent="eth0"))
    with pytest.raises(ForbiddenError, match="network di-lan012345678 is already using parent interface eth0"):
        await ipvlan.settle(network("ipvlan", "two", "10.8.0.0/24", parent="eth0"), [taken])


async def test_a_container_is_a_neighbour_with_the_routers_address_and_no_ports(kernel: RecordingKernel) -> None:
    driver = MacvlanDriver("macvlan", kernel)
    lan = await made(driver, network(parent="eth0", macvlan_mode="vepa"))
    assert (kernel.done, lan.DeviceFound) == ([], True)
    endpoint = await driver.reserve(lan, wanted())
    assert (endpoint.Addresses, endpoint.Gateways, endpoint.Ports) == (["10.7.0.1/24"], ["10.7.0.254"], [])
    await driver.attach(lan, endpoint, INSIDE, default_route=True)
    assert kernel.done == [
        AddSublink("eth0", "macvlan", "eth0", "vepa", "", "02:42:0a:07:00:01", INSIDE),
        SetUp("eth0"),
        AddAddress("eth0", ipaddress.ip_interface("10.7.0.1/24")),
        AddDefaultRoute(ipaddress.ip_address("10.7.0.254"), "eth0"),
    ]
    await driver.detach(lan, endpoint, INSIDE)
    assert set(kernel.devices[INSIDE]) == {"lo"}
    kernel.end_namespace(INSIDE)
    await driver.detach(lan, endpoint, INSIDE)
    await driver.remove(lan)
    assert "eth0" in kernel.devices[""]


async def test_a_vlan_is_made_for_the_first_and_goes_with_the_last(kernel: RecordingKernel) -> None:
    driver = MacvlanDriver("macvlan", kernel)
    one = await made(driver, network(parent="eth0.10"))
    assert kernel.done == [AddVlan("eth0.10", "eth0", 10), SetUp("eth0.10")]
    two = await made(driver, network(name="two", subnet="10.8.0.0/24", parent="eth0.10"), one)
    assert not two.DeviceFound
    await driver.remove(one)
    assert "eth0.10" in kernel.devices[""]
    later = MacvlanDriver("macvlan", kernel)  # of the next daemon
    await later.reconcile(two, [])
    kernel.refuse(DeleteLink)
    with pytest.raises(HostError, match=r"cannot remove device eth0\.10"):
        await later.remove(two)
    for _ in range(2):
        await later.remove(two)
    assert "eth0.10" not in kernel.devices[""]


async def test_a_vlan_of_the_hosts_own_stays(kernel: RecordingKernel) -> None:
    kernel.devices[""]["eth0.20"] = Device(up=True, kind="vlan")
    driver = MacvlanDriver("ipvlan", kernel)
    lan = await made(driver, network("ipvlan", parent="eth0.20"))
    await driver.remove(lan)
    assert "eth0.20" in kernel.devices[""]


async def test_after_a_boot_the_parent_is_made_again_or_missed(kernel: RecordingKernel) -> None:
    lan = await made(MacvlanDriver("macvlan", kernel), network(parent="eth0.10"))
    del kernel.devices[""]["eth0.10"]
    driver = MacvlanDriver("macvlan", kernel)
    await driver.reconcile(lan, [])
    assert "eth0.10" in kernel.devices[""]
    del kernel.devices[""]["eth0.10"], kernel.devices[""]["eth0"]
    with pytest.raises(HostError, match="-o parent interface was not found on the host: eth0"):
        await MacvlanDriver("macvlan", kernel).reconcile(lan, [])


@pytest.mark.parametrize(("driver", "device"), [("macvlan", "dm-lan012345678"), ("ipvlan", "di-lan012345678")])
async def test_without_a_parent_there_is_no_way_out(kernel: RecordingKernel, driver: Kind, device: str) -> None:
    maker = MacvlanDriver(driver, kernel)
    lan = await made(maker, msgspec.structs.replace(network(driver), IPAM=IPAM()))
    assert kernel.done == [AddDummy(device)]
    assert [pool.Gateway for pool in lan.Pools] == [""]
    endpoint = await maker.reserve(lan, wanted())
    assert endpoint.Gateways == []
    await maker.remove(lan)
    assert device not in kernel.devices[""]


async def test_in_layer_3_what_is_elsewhere_is_on_the_link(kernel: RecordingKernel) -> None:
    driver = MacvlanDriver("ipvlan", kernel)
    asked = msgspec.structs.replace(
        network("ipvlan", parent="eth0", ipvlan_mode="l3s"), EnableIPv6=True, IPAM=IPAM(Config=[IPAMConfig(Subnet="fd00:7::/64")])
    )  # fmt: skip
    lan = await made(driver, asked)
    endpoint = await driver.reserve(lan, wanted())
    assert (endpoint.Gateways, endpoint.MacAddress) == (["0.0.0.0", "::"], "")
    await driver.attach(lan, endpoint, INSIDE, default_route=True)
    assert AddDefaultRoute(ipaddress.ip_address("::"), "eth0") in kernel.done
    shown = views.endpoint_settings(EndpointSettings(), endpoint, lan.ID)
    assert (shown.Gateway, shown.IPv6Gateway) == ("", "")
    resource = views.resource(lan, "local", {})
    assert [each.Gateway for each in resource.IPAM.Config or ()] == ["", ""]


async def test_addresses_are_asked_for_in_both_families_and_given_back(kernel: RecordingKernel) -> None:
    driver = MacvlanDriver("macvlan", kernel)
    config = [IPAMConfig(Subnet=subnet) for subnet in ("10.7.0.0/24", "10.8.0.0/24", "fd00:7::/64")]
    lan = await made(driver, msgspec.structs.replace(network(parent="eth0"), EnableIPv6=True, IPAM=IPAM(Config=config)))
    asked = EndpointIPAMConfig(IPv4Address="10.8.0.9", IPv6Address="fd00:7::9")
    endpoint = await driver.reserve(lan, wanted(IPAMConfig=asked, MacAddress="02-42-00-00-00-01"))
    assert endpoint.Addresses == ["10.8.0.9/24", "fd00:7::9/64"]
    assert (endpoint.Gateways, endpoint.MacAddress) == (["10.8.0.1", "fd00:7::1"], "02:42:00:00:00:01")
    again = MacvlanDriver("macvlan", kernel)
    again.adopt(lan, endpoint)
    for each in (driver, again):
        await each.release(lan, endpoint)
        second = await each.reserve(lan, EndpointRequest("c2", EndpointSettings(IPAMConfig=asked), "eth0"))  # fmt: skip
        assert second.Addresses == endpoint.Addresses


def test_the_vlan_of_a_device() -> None:
    assert macvlan.vlan_of("eth0.10", {"eth0"}) == ("eth0", 10)
    assert Endpoint(NetworkID="n").interfaces() == []
