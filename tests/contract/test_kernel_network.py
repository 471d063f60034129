"""What network drivers rely on, of both kernels: the one in memory, and this host's in a namespace of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from runtime.errors import HostError
from runtime.kernel.linux_network import LinuxNetwork
from runtime.kernel.network import (
    AddAddress,
    AddBridge,
    AddDefaultRoute,
    AddDummy,
    AddMarkRule,
    AddPort,
    AddRoute,
    AddSublink,
    AddVeth,
    AddVlan,
    AddVxlan,
    Batch,
    Change,
    DeleteForwarding,
    DeleteLink,
    DeleteMarkRule,
    DeleteNeighbour,
    FlowPattern,
    FlowsTo,
    KernelNetwork,
    Link,
    Route,
    SetForwarding,
    SetNeighbour,
    SetPort,
    SetReflecting,
    SetUp,
    VxlanLink,
)
from runtime.networks.rules import BridgeRules, PublishedPort, port_elements, table_name, whole
from tests.unit.engine.conftest import network_namespace  # noqa: F401 - a fixture
from tests.unit.networks.fakes import RecordingKernel
from tests.waiting import until

BRIDGE = AddBridge("br7", "02:42:0a:00:07:01")
NET = ipaddress.IPv4Network("10.0.7.0/24")


@dataclass
class Host:
    """A kernel with one more namespace, that of a container."""

    kernel: KernelNetwork
    inside: str
    end_inside: Callable[[], None]
    default_routes: Callable[[], set[str]]

    def pair(self, name: str = "veth0000007", bridge: str = "br7") -> AddVeth:
        return AddVeth(name, bridge, 1400, "eth0", "02:42:0a:00:07:02", self.inside)

    async def apply(self, *changes: Change, namespace: str = "") -> None:
        await self.kernel.apply(Batch(changes, namespace))


HERE, PEER = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")
FAR = ipaddress.ip_address("10.0.7.9")
FAR_MAC = "02:42:0a:00:07:09"


@pytest.fixture(params=["memory", pytest.param("linux", marks=pytest.mark.root)])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    if request.param == "memory":
        kernel = RecordingKernel()
        kernel.add_namespace("/proc/7/ns/net")
        yield Host(
            kernel,
            "/proc/7/ns/net",
            lambda: kernel.end_namespace("/proc/7/ns/net"),
            lambda: set(kernel.default_routes.values()),
        )
        return
    request.getfixturevalue("network_namespace")
    holder = subprocess.Popen(["unshare", "--net", "sleep", "600"])
    inside = Path(f"/proc/{holder.pid}/ns/net")
    while inside.stat().st_ino == Path("/proc/thread-self/ns/net").stat().st_ino:
        pass
    with contextlib.ExitStack() as stack:
        stack.callback(holder.wait)
        stack.callback(holder.kill)
        yield Host(LinuxNetwork(), str(inside), holder.kill, lambda: _default_routes(inside))


def _default_routes(namespace: Path) -> set[str]:
    """Links of the default routes, of both address families."""
    enter = ["nsenter", f"--net={namespace}", "ip"]
    listed = [
        subprocess.run([*enter, family, "route", "show", "default"], capture_output=True, text=True, check=True).stdout
        for family in ("-4", "-6")
    ]
    assert [text.count("\n") for text in listed] == [1, 1]
    return {text.split(" dev ")[1].split()[0] for text in listed}


def ruleset(*ports: PublishedPort) -> str:
    """A table in place of what there was of that name."""
    table, bridge = table_name("br7"), BridgeRules(device="br7", subnets=(NET,))
    return whole(table, [bridge], [port_elements(bridge, ports)])


async def test_names_in_a_set_are_read(host: Host) -> None:
    await host.kernel.run_rules(ruleset())
    assert await host.kernel.names_in("inet engine-br7", "bridges") == {"br7"}
    await host.kernel.run_rules('delete element inet engine-br7 bridges { "br7" }\n')
    assert await host.kernel.names_in("inet engine-br7", "bridges") == set()
    with pytest.raises(HostError, match="nftables"):
        await host.kernel.run_rules('delete element inet engine-br7 bridges { "br7" }\n')
    await host.kernel.run_rules("delete table inet engine-br7\n")
    with pytest.raises(HostError, match="nftables"):
        await host.kernel.names_in("inet engine-br7", "bridges")


async def test_ports_of_a_bridge_are_kept_apart(host: Host) -> None:
    await host.apply(BRIDGE, host.pair(), SetReflecting("veth0000007", isolated=True))
    await host.apply(DeleteLink("br7"))
    for _ in range(2):
        await host.apply(BRIDGE, AddPort("veth0000007", "br7"))
    assert (await host.kernel.links())["veth0000007"] == Link("veth0000007", "br7", "veth")
    with pytest.raises(OSError, match=r".+"):
        await host.apply(SetReflecting("veth0000008"))


async def test_a_bridge_is_made_once_and_routed_by(host: Host) -> None:
    address = AddAddress("br7", ipaddress.ip_interface("10.0.7.1/24"))
    for _ in range(2):
        await host.apply(BRIDGE, address, SetUp("br7"))
    assert (await host.kernel.links())["br7"] == Link("br7", kind="bridge")
    assert Route(NET, "br7") in await host.kernel.routes()
    await host.apply(DeleteLink("br7"))
    assert "br7" not in await host.kernel.links()
    assert await host.kernel.routes() == []
    await host.apply(DeleteLink("br7"))


async def test_a_pair_has_one_end_on_the_bridge_and_one_inside(host: Host) -> None:
    await host.apply(BRIDGE)
    gateways = [AddDefaultRoute(ipaddress.ip_address(text)) for text in ("10.0.7.1", "fd00:7::1")]
    addresses = [AddAddress("eth0", ipaddress.ip_interface(text)) for text in ("10.0.7.2/24", "fd00:7::2/64")]
    await host.kernel.apply(
        Batch((host.pair(),)), Batch((SetUp("eth0"), *addresses, *gateways, *gateways), host.inside)
    )
    assert (await host.kernel.links())["veth0000007"] == Link("veth0000007", "br7", "veth")
    assert set(await host.kernel.links(host.inside)) == {"lo", "eth0"}
    assert set(await host.kernel.links()) == {"lo", "br7", "veth0000007"}
    await host.apply(DeleteLink("br7"))
    assert (await host.kernel.links())["veth0000007"] == Link("veth0000007", kind="veth")
    await host.apply(DeleteLink("veth0000007"))
    assert set(await host.kernel.links(host.inside)) == {"lo"}


async def test_a_default_route_moves_to_another_link(host: Host) -> None:
    """By a gateway or by the link itself, one an address family: IPv6 would else have both."""
    other = AddVeth("veth0000008", "br7", 1400, "eth1", "02:42:0a:00:07:03", host.inside)
    ends = [(f"eth{n}", f"10.0.{n}.2/24", f"fd00:{n}::2/64") for n in range(2)]
    inside: list[Change] = [
        *(SetUp(link) for link, *_ in ends),
        *(AddAddress(link, ipaddress.ip_interface(text)) for link, *texts in ends for text in texts),
    ]
    await host.kernel.apply(Batch((BRIDGE, host.pair(), other)), Batch(tuple(inside), host.inside))
    for link, *gateways in (
        ("eth0", "10.0.0.1", "fd00:0::1"),
        ("eth1", "10.0.1.1", "fd00:1::1"),
        ("eth0", "0.0.0.0", "::"),
        ("eth1", "10.0.1.1", "fd00:1::1"),
    ):
        routes = [AddDefaultRoute(ipaddress.ip_address(text), link) for text in gateways]
        await host.apply(*routes, namespace=host.inside)
        assert host.default_routes() == {link}
    with pytest.raises(OSError, match=r".+"):
        await host.apply(AddDefaultRoute(ipaddress.ip_address("10.0.0.1"), "eth9"), namespace=host.inside)


async def test_devices_on_top_of_another_go_with_it_and_with_their_namespace(host: Host) -> None:
    """The kernels of the development machines have macvlan alone of these: the rest is seen where there are all."""
    for name in ("br7", "br8"):
        await host.apply(msgspec.structs.replace(BRIDGE, name=name))
    kinds = [
        ("macvlan", "bridge", ""),
        ("macvlan", "passthru", ""),
        ("ipvlan", "l2", "bridge"),
        ("ipvlan", "l3s", "vepa"),
    ]
    for kind, mode, flag in kinds:
        mac = "02:42:0a:00:07:09" if kind == "macvlan" else ""
        made = AddSublink("eth5", kind, "br7", mode, flag, mac, host.inside)
        async with served(kind):
            await host.apply(made)
            assert (await host.kernel.links(host.inside))["eth5"].kind == kind
            with pytest.raises(OSError, match=r".+"):
                await host.apply(made)
            await host.apply(DeleteLink("eth5"), namespace=host.inside)
            with pytest.raises(OSError, match=r"br9"):
                await host.apply(msgspec.structs.replace(made, parent="br9"))
    async with served("vlan"):
        for _ in range(2):
            await host.apply(AddVlan("br8.10", "br8", 10), SetUp("br8.10"))
        assert (await host.kernel.links())["br8.10"].kind == "vlan"
        await host.apply(AddSublink("eth5", "macvlan", "br8.10", "bridge", "", "", host.inside))
        await host.apply(DeleteLink("br8"))
        assert not {"br8", "br8.10"} & set(await host.kernel.links())
        assert "eth5" not in await host.kernel.links(host.inside)
    async with served("dummy"):
        for _ in range(2):
            await host.apply(AddDummy("dm-7"))
        assert (await host.kernel.links())["dm-7"].kind == "dummy"


@contextlib.asynccontextmanager
async def served(kind: str) -> AsyncIterator[None]:
    """What is done with devices that this kernel may not have."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        print(f"this kernel has no {kind}")


async def test_a_pair_goes_with_the_namespace(host: Host) -> None:
    await host.apply(BRIDGE, host.pair())
    host.end_inside()
    async with asyncio.timeout(30):
        while "veth0000007" in await host.kernel.links():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "changes",
    [
        lambda host: [host.pair(bridge="br8")],
        lambda host: [host.pair(), host.pair()],
        lambda host: [AddVeth("veth0000008", "br7", 1500, "eth0", "02:42:0a:00:07:02", "/proc/0/ns/net")],
        lambda host: [AddAddress("br8", ipaddress.ip_interface("10.0.8.1/24"))],
        lambda host: [SetUp("br8")],
        lambda host: [AddDefaultRoute(ipaddress.ip_address("10.0.8.1"))],
    ],
    ids=["no-bridge", "twice", "no-namespace", "address-of-nothing", "nothing-up", "gateway-out-of-reach"],
)
async def test_what_cannot_be_is_an_error(host: Host, changes: Callable[[Host], list[Change]]) -> None:
    await host.apply(BRIDGE)
    with pytest.raises(OSError, match=r".+"):
        await host.apply(*changes(host))
    with pytest.raises(OSError, match=r".+"):
        await host.apply(SetUp("lo"), namespace="/proc/0/ns/net")
    with pytest.raises(OSError, match=r".+"):
        await host.kernel.links("/proc/0/ns/net")


async def test_sysctls(host: Host) -> None:
    await host.apply(BRIDGE)
    await host.kernel.set_sysctls({"ipv4/ip_forward": "0"})
    assert await host.kernel.read_sysctl("ipv4/ip_forward") == "0"
    for _ in range(2):
        await host.kernel.set_sysctls({"ipv4/ip_forward": "1", "ipv4/conf/br7/route_localnet": "1"})
    assert await host.kernel.read_sysctl("ipv4/ip_forward") == "1"
    with pytest.raises(OSError, match="br8"):
        await host.kernel.read_sysctl("ipv4/conf/br8/route_localnet")
    with pytest.raises(OSError, match="br8"):
        await host.kernel.set_sysctls({"ipv4/conf/br8/route_localnet": "1"})
    await host.apply(host.pair())
    await host.kernel.set_sysctls({"ipv4/conf/eth0/log_martians": "1"}, host.inside)
    with pytest.raises(OSError, match="eth0"):
        await host.kernel.set_sysctls({"ipv4/conf/eth0/log_martians": "1"})


async def test_a_table_that_goes_is_told_of_until_the_watch_ends(host: Host) -> None:
    told: list[str] = []
    stop = host.kernel.watch_rules(lambda: told.append("gone"))
    await host.kernel.run_rules(ruleset())
    count = len(told)
    await host.kernel.run_rules("delete table inet engine-br7\n")
    await until(lambda: len(told) > count, what="the table's end told")
    stop()
    count = len(told)
    for _ in range(2):
        await host.kernel.run_rules(ruleset())
    await asyncio.sleep(0)
    assert len(told) == count
    await host.kernel.run_rules("delete table inet engine-br7\n")


async def test_to_forget_flows_that_there_are_not_is_no_error(host: Host) -> None:
    for count in (1, 20):
        await host.kernel.forget_flows([FlowsTo("udp", "0.0.0.0", 53 + number) for number in range(count)])
    await host.kernel.forget_flows([FlowsTo("sctp", "127.0.0.1", 53)])


async def test_rules_are_replaced_all_or_none(host: Host) -> None:
    assert await host.kernel.tables() == set()
    port = PublishedPort("tcp", "0.0.0.0", 80, "10.0.7.2", 8080)
    for ports in ([port], [], [port]):
        await host.kernel.run_rules(ruleset(*ports))
        assert await host.kernel.tables() == {"inet engine-br7"}
    with pytest.raises(HostError, match="nftables"):
        await host.kernel.run_rules("delete table inet engine-br7\ndelete table inet engine-br8\n")
    with pytest.raises(HostError, match="nftables"):
        await host.kernel.run_rules("add table inet engine-br8\nwhat is this\n")
    assert await host.kernel.tables() == {"inet engine-br7"}
    await host.kernel.run_rules("add table inet engine-br7\ndelete table inet engine-br7\n")
    assert await host.kernel.tables() == set()


def vxlan(inside: str, name: str = "vxlan0", vni: int = 4099) -> AddVxlan:
    return AddVxlan(name, vni, HERE, 4789, 1450, inside)


async def test_a_vxlan_device_is_born_elsewhere_and_knows_what_it_was_told(host: Host) -> None:
    await host.apply(vxlan(host.inside))
    await host.apply(
        AddBridge("br0", "02:42:0a:00:07:01", snooping=False),
        SetPort("vxlan0", "br0", flood=True),
        namespace=host.inside,
    )
    for _ in range(2):
        await host.apply(
            SetForwarding("vxlan0", FAR_MAC, HERE),
            SetForwarding("vxlan0", FAR_MAC, PEER),
            SetNeighbour("vxlan0", FAR, FAR_MAC),
            SetNeighbour("vxlan0", ipaddress.ip_address("fd00:7::9"), FAR_MAC),
            namespace=host.inside,
        )
    neighbours = {FAR: FAR_MAC, ipaddress.ip_address("fd00:7::9"): FAR_MAC}
    assert await host.kernel.vxlan("vxlan0", host.inside) == VxlanLink(
        4099, HERE, 4789, 1450, "br0", {FAR_MAC: PEER}, neighbours
    )
    for _ in range(2):
        await host.apply(
            DeleteForwarding("vxlan0", FAR_MAC),
            *(DeleteNeighbour("vxlan0", each) for each in neighbours),
            namespace=host.inside,
        )
    assert await host.kernel.vxlan("vxlan0", host.inside) == VxlanLink(4099, HERE, 4789, 1450, "br0", {}, {})
    assert await host.kernel.vxlan("br0", host.inside) is None
    assert await host.kernel.vxlan("vxlan0") is None


async def test_ten_thousand_places_are_one_batch(host: Host) -> None:
    await host.apply(vxlan(host.inside))
    macs = [f"02:42:0a:01:{number >> 8:02x}:{number & 255:02x}" for number in range(10_000)]
    await host.apply(*(SetForwarding("vxlan0", mac, PEER) for mac in macs), namespace=host.inside)
    found = await host.kernel.vxlan("vxlan0", host.inside)
    assert found is not None
    assert found.forwarding == dict.fromkeys(macs, PEER)


async def test_a_vni_is_used_once(host: Host) -> None:
    await host.apply(vxlan(host.inside))
    with pytest.raises(OSError, match="exists"):
        await host.apply(vxlan(host.inside, "vxlan1"))
    await host.apply(vxlan(host.inside, "vxlan1", 4100))


async def test_a_port_has_its_mac_in_one_place(host: Host) -> None:
    await host.apply(BRIDGE, host.pair(), SetPort("veth0000007", "br7", flood=False))
    await host.apply(SetForwarding("veth0000007", "02:42:0a:00:07:02"))
    with pytest.raises(OSError, match=r".+"):
        await host.apply(SetPort("veth0000007", "br8", flood=False))


async def test_a_namespace_of_nobody_is_there_until_it_is_taken_away(host: Host, tmp_path: Path) -> None:
    path = str(tmp_path / "overlays" / "n1")
    assert not await host.kernel.has_namespace(path)
    for _ in range(2):
        await host.kernel.keep_namespace(path)
    assert await host.kernel.has_namespace(path)
    assert set(await host.kernel.links(path)) == {"lo"}
    await host.apply(BRIDGE, namespace=path)
    assert set(await host.kernel.links(path)) == {"lo", "br7"}
    await host.kernel.run_rules(ruleset(), path)
    assert (await host.kernel.tables(path), await host.kernel.tables()) == ({"inet engine-br7"}, set())
    await host.kernel.set_sysctls({"ipv4/conf/br7/rp_filter": "2"}, path)
    for _ in range(2):
        await host.kernel.drop_namespace(path)
    assert not await host.kernel.has_namespace(path)


async def test_a_link_that_goes_is_told_of_until_the_watch_ends(host: Host) -> None:
    told: list[str] = []
    stop = host.kernel.watch_links(told.append, host.inside)
    await host.apply(AddBridge("br8", "02:42:0a:00:08:01"), DeleteLink("br8"), namespace=host.inside)
    await until(lambda: "br8" in told, what="the link's end told")
    stop()
    told.clear()
    await host.apply(BRIDGE, DeleteLink("br7"), namespace=host.inside)
    await asyncio.sleep(0)
    assert told == []


async def test_routes_by_link_and_by_mark(host: Host) -> None:
    await host.apply(BRIDGE, AddAddress("br7", ipaddress.ip_interface("10.0.7.1/24")), SetUp("br7"))
    for _ in range(2):
        await host.apply(
            AddRoute(ipaddress.ip_network("10.8.0.0/16"), "br7"),
            AddRoute(ipaddress.ip_network("fd00:8::/64"), "br7"),
            AddRoute(ipaddress.ip_network("0.0.0.0/0"), "br7", ipaddress.ip_address("169.254.7.1"), table=97),
            AddMarkRule("br7", 0x100, 0xFF00, 97),
        )
    for _ in range(2):
        await host.apply(DeleteMarkRule("br7", 0x100, 0xFF00, 97))
    with pytest.raises(OSError, match=r".+"):
        await host.apply(AddRoute(ipaddress.ip_network("10.8.0.0/16"), "br8"))


async def test_to_forget_translations_that_there_are_not_is_no_error(host: Host) -> None:
    assert await host.kernel.translations(host.inside) == set()
    for count in (1, 20):
        gone = [FlowPattern(target=ipaddress.ip_address(f"10.0.7.{number + 1}")) for number in range(count)]
        await host.kernel.forget_translations(gone, host.inside)
    await host.kernel.forget_translations([FlowPattern(target=ipaddress.ip_address("fd00:7::9"), protocol=6, port=53)])
