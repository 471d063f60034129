"""Real packets between namespaces: what a host that runs containers forwards, and what it does not.

Two neighbours on two links, a host between them, a container on the host's bridge. Everything is UDP: what was dropped is
known once a later packet on the same way has come, since each hop here carries them in order.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.kernel import nft
from runtime.kernel.linux_network import LinuxNetwork
from runtime.networks import forwarding, predefined
from runtime.networks.bridge import BridgeDriver
from runtime.networks.driver import EndpointRequest, Network
from runtime.networks.ports import PortRequest
from runtime.types import EndpointSettings
from tests.unit.engine.conftest import network_namespace  # noqa: F401 - a fixture
from tests.unit.networks.places import Place, place, sh
from tests.waiting import until

pytestmark = pytest.mark.root
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
FIRST, SECOND = "10.201.0.2", "10.202.0.2"
CONTAINER = "10.7.0.2"


@dataclass
class Net:
    """Neighbours, host and container; ``driver`` makes that of the next daemon."""

    first: Place
    second: Place
    container: Place
    network: Network
    driver: Callable[[], BridgeDriver]

    def arrives(
        self, sender: socket.socket, to: tuple[str, int], at: socket.socket, last: Callable[[], object]
    ) -> bool:
        """Whether a packet comes; ``last`` sends "end", which always comes."""
        sender.sendto(b"try", to)
        last()
        found = set()
        while b"end" not in found:
            found.add(at.recv(100))
        return b"try" in found


@pytest.fixture
async def net(network_namespace: None, tmp_path: Path) -> AsyncIterator[Net]:  # noqa: F811 - the fixture
    FORWARDING.write_text("0")
    with place() as first, place() as second, place() as container:
        for number, neighbour in ((201, first), (202, second)):
            sh(f"ip link add n{number} type veth peer name eth0 netns {neighbour.pid}")
            sh(f"ip addr add 10.{number}.0.1/24 dev n{number}")
            sh(f"ip link set n{number} up")
            neighbour.run(*f"ip addr add 10.{number}.0.2/24 dev eth0".split())
            neighbour.run(*["ip", "link", "set", "eth0", "up"])
            neighbour.run(*f"ip route add default via 10.{number}.0.1".split())
        driver = BridgeDriver(LinuxNetwork(), tmp_path)
        network = await driver.settle(predefined.networks(bridge="br7", subnet="10.7.0.0/24")[0])
        yield Net(first, second, container, network, lambda: BridgeDriver(LinuxNetwork(), tmp_path))


async def start(net: Net, *ports: PortRequest) -> BridgeDriver:
    driver = net.driver()
    await driver.create(net.network)
    endpoint = await driver.reserve(net.network, EndpointRequest("c1", EndpointSettings(), "eth0", ports))
    await driver.attach(net.network, endpoint, net.container.path, default_route=True)
    return driver


async def test_neighbours_reach_published_ports_alone(net: Net) -> None:
    driver = await start(net, PortRequest("udp", 53, "0.0.0.0", (5300,)), PortRequest("udp", 54, "127.0.0.1", (5400,)))
    with contextlib.ExitStack() as stack:
        inside = {port: stack.enter_context(net.container.udp(port=port)) for port in (53, 54, 55)}
        sender = stack.enter_context(net.first.udp())
        host = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        for port, at in inside.items():  # by a route to the subnet: unpublished, published, published on 127.0.0.1
            assert not net.arrives(sender, (CONTAINER, port), at, lambda p=port: host.sendto(b"end", (CONTAINER, p)))  # type: ignore[misc]  # a default binds p
        sender.sendto(b"query", ("10.201.0.1", 5300))
        data, peer = inside[53].recvfrom(100)
        assert (data, peer[0]) == (b"query", FIRST)  # the client's own address
        inside[53].sendto(b"answer", peer)
        assert sender.recvfrom(100) == (b"answer", ("10.201.0.1", 5300))
        sender.sendto(b"try", ("10.201.0.1", 5400))
        assert not net.arrives(
            sender, ("127.0.0.1", 5400), inside[54], lambda: host.sendto(b"end", ("127.0.0.1", 5400))
        )
    driver.close()


async def test_containers_reach_the_world_and_get_answers(net: Net) -> None:
    driver = await start(net)
    with net.second.udp(SECOND, 9) as world, net.container.udp() as sender:
        sender.sendto(b"query", (SECOND, 9))
        data, peer = world.recvfrom(100)
        assert (data, peer[0]) == (b"query", "10.202.0.1")
        world.sendto(b"answer", peer)
        assert sender.recv(100) == b"answer"
    driver.close()


async def test_the_host_forwards_for_nobody_else(net: Net) -> None:
    with net.first.udp() as sender, net.second.udp(SECOND, 9) as at, net.container.udp() as inside:

        def forwards() -> bool:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
                return net.arrives(sender, (SECOND, 9), at, lambda: host.sendto(b"end", (SECOND, 9)))

        assert not forwards()
        driver = await start(net)
        assert FORWARDING.read_text().strip() == "1"
        assert not forwards()
        nft.run("flush ruleset")
        await until(lambda: forwarding.TABLES[4] in nft.run("list tables"), what="the rules back")
        assert not forwards()
        driver.close()
        inside.sendto(b"still", (SECOND, 9))
        assert at.recv(100) == b"still"

        driver = net.driver()  # the next daemon, after somebody flushed the rules
        nft.run("flush ruleset")
        assert forwards()
        await driver.create(net.network)
        assert not forwards()
        await driver.remove(net.network)
        assert FORWARDING.read_text().strip() == "0"
        assert nft.run("list tables") == ""
        driver.close()


async def test_an_operator_who_forwards_goes_on_and_other_rules_stay(net: Net) -> None:
    FORWARDING.write_text("1")
    own = (
        "table ip operator {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n\t}\n}\n"
    )
    nft.run(own)
    driver = await start(net)
    with net.first.udp() as sender, net.second.udp(SECOND, 9) as at:
        sender.sendto(b"through", (SECOND, 9))
        assert at.recv(100) == b"through"
    assert nft.run("list table ip operator") == own
    assert f"table {forwarding.TABLES[4]}" not in nft.run("list tables")
    await driver.remove(net.network)
    assert FORWARDING.read_text().strip() == "1"
    assert nft.run("list ruleset") == own
    driver.close()


async def test_what_others_bridge_is_no_forwarding(net: Net) -> None:
    nf_call = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if not nf_call.exists():
        pytest.skip("needs br_netfilter")
    nf_call.write_text("1")
    with place() as third:
        sh("ip link add theirs type bridge")
        sh("ip link set theirs up")
        sh("ip addr flush dev n202")
        sh(f"ip link add n203 type veth peer name eth0 netns {third.pid}")
        for link in ("n202", "n203"):
            sh(f"ip link set {link} master theirs up")
        third.run(*["ip", "addr", "add", "10.202.0.3/24", "dev", "eth0"])
        third.run(*["ip", "link", "set", "eth0", "up"])
        driver = await start(net)
        with third.udp() as sender, net.second.udp(SECOND, 9) as at:
            sender.sendto(b"bridged", (SECOND, 9))
            assert at.recv(100) == b"bridged"
        driver.close()


@pytest.mark.parametrize("source", ["127.0.0.2", "127.0.0.1"])
async def test_nobody_pretends_to_be_the_hosts_loopback(net: Net, source: str) -> None:
    driver = await start(net)
    for name in ("all", "br7", "n201"):  # as on hosts that leave the check of sources out
        Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as at:
        at.settimeout(30)
        at.bind(("0.0.0.0", 9))
        for sender, to in ((net.container, "10.7.0.1"), (net.first, "10.201.0.1")):
            sender.send_forged(b"try", source=source, to=(to, 9))
            sender.send_forged(b"end", source=CONTAINER if sender is net.container else FIRST, to=(to, 9))
            assert at.recv(100) == b"end"
    driver.close()


async def test_nobody_reaches_the_hosts_loopback(net: Net) -> None:
    """Not by its address either, to which the bridge has a route for what is published there."""
    driver = await start(net, PortRequest("udp", 54, "127.0.0.1", (5400,)))
    for name in ("all", "br7", "n201"):
        Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as at:
        at.settimeout(30)
        at.bind(("0.0.0.0", 9))
        for sender, source, device, address in (
            (net.container, CONTAINER, "br7", "10.7.0.1"),
            (net.first, FIRST, "n201", "10.201.0.1"),
        ):
            mac = mac_of(device)
            sender.send_past_routes(b"try", source=source, to=("127.0.0.1", 9), neighbour=mac)
            sender.send_past_routes(b"end", source=source, to=(address, 9), neighbour=mac)
            assert at.recv(100) == b"end"
    driver.close()


def mac_of(device: str) -> bytes:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as made:
        made.bind((device, 0))
        address: bytes = made.getsockname()[4]
        return address
