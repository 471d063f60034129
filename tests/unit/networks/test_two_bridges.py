"""A container on two networks at once, in a real kernel: both interfaces, one default route, and nothing left."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.events import EventBus
from runtime.kernel.linux_network import LinuxNetwork
from runtime.networks import Networks, options, predefined
from runtime.networks.driver import Network, Pool
from runtime.networks.ports import PortRequest
from runtime.types import EndpointSettings
from tests.unit.engine.conftest import network_namespace  # noqa: F401 - a fixture

pytestmark = pytest.mark.root


@pytest.fixture
def pid(network_namespace: None) -> Iterator[int]:  # noqa: F811 - the fixture
    """A process in a network namespace of its own."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "600"])
    while Path(f"/proc/{holder.pid}/ns/net").stat().st_ino == Path("/proc/thread-self/ns/net").stat().st_ino:
        pass
    yield holder.pid
    holder.kill()
    holder.wait()


@pytest.fixture
def make(tmp_path: Path) -> Callable[[], Networks]:
    """The networks of one daemon after the other: the default bridge, and "back" on 10.8.0.0/24."""
    back = Network(
        ID="",
        Name="back",
        Driver="bridge",
        Created="",
        Options={options.DEVICE: "br8", options.MTU: "1400"},
        Pools=[Pool(Subnet="10.8.0.0/24", Gateway="10.8.0.1")],
    )
    return lambda: Networks(
        tmp_path,
        drivers=predefined.drivers(LinuxNetwork(), tmp_path),
        predefined=[*predefined.networks(bridge="br7", subnet="10.7.0.0/24"), back],
        kernel=LinuxNetwork(),
        events=EventBus(),
        name_of=str,
    )


def enter(pid: int) -> list[str]:
    return ["nsenter", f"--net=/proc/{pid}/ns/net"]


def inside(pid: int, *arguments: str) -> list[dict[str, object]]:
    command = [*enter(pid), "ip", "-4", "-j", *arguments]
    found: list[dict[str, object]] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def ping(pid: int, address: str) -> None:
    command = [*enter(pid), "busybox", "ping", "-c1", "-W30", address]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


async def test_a_container_on_two_networks(pid: int, make: Callable[[], Networks]) -> None:
    networks = make()
    await networks.open()
    wanted = {"bridge": EndpointSettings(), "back": EndpointSettings(GwPriority=1)}
    sandbox = await networks.reserve("c1", wanted, [])
    await networks.attach("c1", pid)
    links = {str(link["ifname"]): link for link in inside(pid, "addr")}
    assert {name: link["addr_info"][0]["local"] for name, link in links.items() if name != "lo"} == {  # type: ignore[index]  # ip's JSON
        "eth0": "10.7.0.2",
        "eth1": "10.8.0.2",
    }
    assert (links["eth0"]["mtu"], links["eth1"]["mtu"]) == (1500, 1400)
    routes = inside(pid, "route", "show", "default")
    assert [(route["gateway"], route["dev"]) for route in routes] == [("10.8.0.1", "eth1")]
    for gateway in ("10.7.0.1", "10.8.0.1"):
        await asyncio.to_thread(ping, pid, gateway)
    await networks.close()

    networks = make()
    await networks.open()
    networks.adopt("c1", sandbox.endpoints, wanted)
    await networks.reconcile()
    other = await networks.reserve("c2", wanted, [])
    assert sorted(other.addresses(wanted)) == ["10.7.0.3", "10.8.0.3"]
    await networks.release("c2")
    await networks.release("c1", staying=f"/proc/{pid}/ns/net")
    assert {link["ifname"] for link in inside(pid, "link")} == {"lo"}
    await networks.remove_devices()
    kernel = LinuxNetwork()
    assert set(await kernel.links()) == {"lo"}
    assert await kernel.tables() == set()
    await networks.close()


async def test_a_container_that_runs_joins_and_leaves(pid: int, make: Callable[[], Networks]) -> None:
    """The default route and the published port, the same one on the host, go by whichever network is its way out."""
    networks = make()
    await networks.open()
    server = serve(pid)
    ports = [PortRequest("tcp", 80, "127.0.0.1", (0,))]
    try:
        sandbox = await networks.reserve("c1", {"bridge": EndpointSettings()}, ports)
        (port,) = sandbox.endpoints["bridge"].Ports
        await networks.attach("c1", pid)
        sandbox = await networks.extend("c1", "back", EndpointSettings(GwPriority=1), ports)
        await networks.attach("c1", pid)
        assert [each.host_port for each in sandbox.endpoints["back"].Ports] == [port.host_port]
        assert default_routes(pid) == [("10.8.0.1", "eth1")]
        await asyncio.to_thread(knock, port.host_port)
        sandbox = await networks.leave("c1", "bridge", ports, pid)
        await networks.give_back("c1", "bridge")
        assert [*sandbox.endpoints] == ["back"]
        assert {link["ifname"] for link in inside(pid, "link")} == {"lo", "eth1"}
        await asyncio.to_thread(knock, port.host_port)
        await networks.extend("c1", "bridge", EndpointSettings(), ports)
        await networks.attach("c1", pid)
        assert default_routes(pid) == [("10.8.0.1", "eth1")]
        sandbox = await networks.leave("c1", "back", ports, pid)
        await networks.give_back("c1", "back")
        assert sandbox.endpoints["bridge"].Interface == "eth0"
        assert default_routes(pid) == [("10.7.0.1", "eth0")]
        await asyncio.to_thread(knock, port.host_port)
        await networks.leave("c1", "bridge", ports, pid)
        await networks.give_back("c1", "bridge")
        assert {link["ifname"] for link in inside(pid, "link")} == {"lo"}
        socket.create_server(("127.0.0.1", port.host_port)).close()
    finally:
        server.kill()
        server.wait()
        await networks.remove_devices()
        await networks.close()


def serve(pid: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*enter(pid), "busybox", "nc", "-ll", "-p", "80", "-e", "echo", "here"])


def default_routes(pid: int) -> list[tuple[object, object]]:
    return [(route["gateway"], route["dev"]) for route in inside(pid, "route", "show", "default")]


def knock(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as made:
                assert made.recv(100) == b"here\n"
                return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
