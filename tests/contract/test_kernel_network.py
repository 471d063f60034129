"""What network drivers rely on, of both kernels: the one in memory, and this host's in a namespace of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.errors import HostError
from runtime.kernel.linux_network import LinuxNetwork
from runtime.kernel.network import (
    AddAddress,
    AddBridge,
    AddDefaultRoute,
    AddVeth,
    Batch,
    Change,
    DeleteLink,
    FlowsTo,
    KernelNetwork,
    Link,
    Route,
    SetUp,
)
from runtime.networks.rules import PublishedPort, ruleset
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

    def pair(self, name: str = "veth0000007", bridge: str = "br7") -> AddVeth:
        return AddVeth(name, bridge, 1400, "eth0", "02:42:0a:00:07:02", self.inside)

    async def apply(self, *changes: Change, namespace: str = "") -> None:
        await self.kernel.apply(Batch(changes, namespace))


@pytest.fixture(params=["memory", pytest.param("linux", marks=pytest.mark.root)])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    if request.param == "memory":
        kernel = RecordingKernel()
        kernel.add_namespace("/proc/7/ns/net")
        yield Host(kernel, "/proc/7/ns/net", lambda: kernel.end_namespace("/proc/7/ns/net"))
        return
    request.getfixturevalue("network_namespace")
    holder = subprocess.Popen(["unshare", "--net", "sleep", "600"])
    inside = Path(f"/proc/{holder.pid}/ns/net")
    while inside.stat().st_ino == Path("/proc/thread-self/ns/net").stat().st_ino:
        pass
    with contextlib.ExitStack() as stack:
        stack.callback(holder.wait)
        stack.callback(holder.kill)
        yield Host(LinuxNetwork(), str(inside), holder.kill)


async def test_a_bridge_is_made_once_and_routed_by(host: Host) -> None:
    address = AddAddress("br7", ipaddress.ip_interface("10.0.7.1/24"))
    for _ in range(2):
        await host.apply(BRIDGE, address, SetUp("br7"))
    assert (await host.kernel.links())["br7"] == Link("br7")
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
    assert (await host.kernel.links())["veth0000007"] == Link("veth0000007", "br7")
    assert set(await host.kernel.links(host.inside)) == {"lo", "eth0"}
    assert set(await host.kernel.links()) == {"lo", "br7", "veth0000007"}
    await host.apply(DeleteLink("br7"))
    assert (await host.kernel.links())["veth0000007"] == Link("veth0000007")
    await host.apply(DeleteLink("veth0000007"))
    assert set(await host.kernel.links(host.inside)) == {"lo"}


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


async def test_a_table_that_goes_is_told_of_until_the_watch_ends(host: Host) -> None:
    told: list[str] = []
    stop = host.kernel.watch_rules(lambda: told.append("gone"))
    await host.kernel.run_rules(ruleset("br7", NET, []))
    count = len(told)
    await host.kernel.run_rules("delete table ip engine-br7\n")
    await until(lambda: len(told) > count, what="the table's end told")
    stop()
    count = len(told)
    for _ in range(2):
        await host.kernel.run_rules(ruleset("br7", NET, []))
    await asyncio.sleep(0)
    assert len(told) == count
    await host.kernel.run_rules("delete table ip engine-br7\n")


async def test_to_forget_flows_that_there_are_not_is_no_error(host: Host) -> None:
    for count in (1, 20):
        await host.kernel.forget_flows([FlowsTo("udp", "0.0.0.0", 53 + number) for number in range(count)])
    await host.kernel.forget_flows([FlowsTo("sctp", "127.0.0.1", 53)])


async def test_rules_are_replaced_all_or_none(host: Host) -> None:
    assert await host.kernel.tables() == set()
    port = PublishedPort("tcp", "0.0.0.0", 80, "10.0.7.2", 8080)
    for ports in ([port], [], [port]):
        await host.kernel.run_rules(ruleset("br7", NET, ports))
        assert await host.kernel.tables() == {"ip engine-br7"}
    with pytest.raises(HostError, match="nftables"):
        await host.kernel.run_rules("delete table ip engine-br7\ndelete table ip engine-br8\n")
    with pytest.raises(HostError, match="nftables"):
        await host.kernel.run_rules("add table ip engine-br8\nwhat is this\n")
    assert await host.kernel.tables() == {"ip engine-br7"}
    await host.kernel.run_rules("add table ip engine-br7\ndelete table ip engine-br7\n")
    assert await host.kernel.tables() == set()
