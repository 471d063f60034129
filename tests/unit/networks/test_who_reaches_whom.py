"""Real packets between namespaces: who reaches whom on the networks of one host, in IPv4 and IPv6, and who does not.

A host, a neighbour that has a route to each of its networks, and containers. Everything is UDP. What was dropped is known
once later packets have come that the host sends itself, which always come.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from runtime.kernel import nft
from runtime.kernel.linux_network import LinuxNetwork
from runtime.network_types import IPAM, IPAMConfig
from runtime.networks import forwarding, obstacles, options
from runtime.networks.bridge import BridgeDriver
from runtime.networks.driver import Endpoint, EndpointRequest, Network
from runtime.networks.ports import PortRequest
from runtime.types import EndpointSettings
from tests.unit.engine.conftest import network_namespace  # noqa: F401 - a fixture
from tests.unit.networks.places import Place, place, sh
from tests.waiting import until

pytestmark = pytest.mark.root
ROUNDS = 4
PORT = 53
BRIDGE = f"{options.PREFIX}bridge."
HOST4, HOST6 = "203.0.113.1", "2001:db8:f::1"
WORLD4, WORLD6 = "203.0.113.2", "2001:db8:f::2"


@dataclass
class Container:
    """A namespace on a network."""

    place: Place
    endpoint: Endpoint

    def address(self, version: int) -> str:
        return next(str(each.ip) for each in self.endpoint.interfaces() if each.version == version)


class Host:
    """``driver`` is that of the present daemon; ``world`` is the neighbour."""

    def __init__(self, run: Path, stack: contextlib.ExitStack, *, translates_bridged: bool) -> None:
        self.translates_bridged = translates_bridged
        self.run, self.stack, self._numbers = run, stack, itertools.count(1)
        self.driver = BridgeDriver(LinuxNetwork(), run)
        self.world = stack.enter_context(place())
        self.networks: list[Network] = []

    async def network(self, given: dict[str, str] | None = None, *, internal: bool = False) -> Network:
        number = next(self._numbers)
        pools = [IPAMConfig(Subnet=f"10.{number}.0.0/24"), IPAMConfig(Subnet=f"fd00:{number}::/64")]
        made = await self.driver.settle(
            Network(
                ID=f"{number:064x}",
                Name=f"n{number}",
                Driver="bridge",
                Created="",
                Options={options.DEVICE: f"br{number}", **(given or {})},
                EnableIPv6=True,
                Internal=internal,
                IPAM=IPAM(Config=pools),
            ),
            self.networks,
        )
        await self.driver.create(made)
        self.networks.append(made)
        for via, subnet in ((HOST4, f"10.{number}.0.0/24"), (HOST6, f"fd00:{number}::/64")):
            self.world.run("ip", "route", "add", subnet, "via", via)
        return made

    async def container(self, network: Network, *ports: PortRequest) -> Container:
        inside = self.stack.enter_context(place())
        endpoint = await self.driver.reserve(network, EndpointRequest("c1", EndpointSettings(), "eth0", ports))
        await self.driver.attach(network, endpoint, inside.path, default_route=True)
        return Container(inside, endpoint)


@pytest.fixture(params=["0", "1"], ids=["plain", "br_netfilter"])
async def host(request: pytest.FixtureRequest, network_namespace: None, tmp_path: Path) -> AsyncIterator[Host]:  # noqa: F811 - the fixture
    """Both where bridged packets go through the rules of routed ones, and where they do not."""
    for name in ("iptables", "ip6tables"):
        nf_call = Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}")
        if nf_call.exists():
            nf_call.write_text(request.param)
        elif request.param == "1":
            pytest.skip("needs the module br_netfilter")
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        (Path("/proc/sys/net") / name).write_text("0")
    with contextlib.ExitStack() as stack:
        made = Host(tmp_path, stack, translates_bridged=request.param == "1")
        sh(f"ip link add world type veth peer name eth0 netns {made.world.pid}")
        sh("ip link set world up")
        made.world.run("ip", "link", "set", "eth0", "up")
        for here, there, length in ((HOST4, WORLD4, 24), (HOST6, WORLD6, 64)):
            nodad = ["nodad"] if length == 64 else []
            sh(" ".join(["ip", "addr", "add", f"{here}/{length}", "dev", "world", *nodad]))
            made.world.run("ip", "addr", "add", f"{there}/{length}", "dev", "eth0", *nodad)
        yield made
        made.driver.close()


def rules() -> list[str]:
    """All there are, whatever their order."""
    return sorted(nft.run("list ruleset").splitlines())


def own_socket(version: int) -> socket.socket:
    return socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)


def reached(sender: socket.socket, to: tuple[str, int], at: Place, port: int = PORT) -> str:
    """Whom packets come from, at ``port`` on all addresses of a place. Raises TimeoutError: none does."""
    with at.udp(_anywhere(sender), port) as receiver:
        receiver.settimeout(0.05)
        for _ in range(600):
            sender.sendto(b"try", to)
            with contextlib.suppress(TimeoutError):
                data, peer = receiver.recvfrom(100)
                assert data == b"try"
                return str(peer[0])
    raise TimeoutError(f"nothing came to {to}")


def is_out_of_reach(sender: socket.socket, to: tuple[str, int], at: Place, port: int = PORT) -> bool:
    """Whether nothing comes there. Each round ends with a packet of the host's own; the first finds out who is where."""
    version = _version(sender)
    with at.udp(_anywhere(sender), port) as receiver, own_socket(version) as host:
        direct = last_address(at, version)
        for _ in range(ROUNDS):
            with contextlib.suppress(OSError):  # no route, or told that there is none
                sender.sendto(b"try", to)
            host.sendto(b"end", (direct, port))
            while (data := receiver.recv(100)) != b"end":
                if data == b"try":
                    return False
    return True


def _version(sender: socket.socket) -> int:
    return 6 if sender.family == socket.AF_INET6 else 4


def _anywhere(sender: socket.socket) -> str:
    return "::" if sender.family == socket.AF_INET6 else "0.0.0.0"


def last_address(at: Place, version: int) -> str:
    """By which the host reaches a place itself."""
    command = [
        "nsenter",
        f"--net={at.path}",
        "ip",
        "-j",
        f"-{version}",
        "addr",
        "show",
        "dev",
        "eth0",
        "scope",
        "global",
    ]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return str(found[0]["addr_info"][0]["local"])


def check_pairs(containers: Sequence[Container], expected: set[tuple[int, int]]) -> None:
    """Which containers reach which, by their own addresses, in both address families."""
    for one, other in itertools.permutations(range(len(containers)), 2):
        for version, anywhere in ((4, "0.0.0.0"), (6, "::")):
            to = containers[other].address(version), PORT
            with containers[one].place.udp(anywhere) as sender:
                if (one, other) in expected:
                    reached(sender, to, containers[other].place)
                else:
                    assert is_out_of_reach(sender, to, containers[other].place)


async def test_bridges_are_kept_from_each_other(host: Host) -> None:
    first, second = await host.network(), await host.network()
    containers = [await host.container(network) for network in (first, first, second)]
    check_pairs(containers, {(0, 1), (1, 0)})


async def test_containers_that_may_not_speak_to_each_other(host: Host) -> None:
    quiet = await host.network({f"{BRIDGE}enable_icc": "false"})
    port = PortRequest("udp", PORT, "", (5300,))
    containers = [await host.container(quiet, port), await host.container(quiet)]
    check_pairs(containers, set())
    with containers[1].place.udp() as sender:  # published is for all, but not where a bridge translates it by itself
        if host.translates_bridged:
            assert is_out_of_reach(sender, (HOST4, 5300), containers[0].place)
        else:
            reached(sender, (HOST4, 5300), containers[0].place)


async def test_the_world_is_reached_behind_our_address_and_reaches_what_is_published(host: Host) -> None:
    network = await host.network()
    web = await host.container(network, PortRequest("udp", PORT, "", (5300,)), PortRequest("udp", 54, HOST4, (5400,)))
    for version, here, world, any_ in ((4, HOST4, WORLD4, "0.0.0.0"), (6, HOST6, WORLD6, "::")):
        with web.place.udp(any_) as sender:
            assert reached(sender, (world, 9), host.world, port=9) == here
        with host.world.udp(any_) as sender:
            assert is_out_of_reach(sender, (web.address(version), PORT), web.place)
            assert reached(sender, (here, 5300), web.place) == world  # the client's own address
            if version == 6:
                assert is_out_of_reach(sender, (here, 5400), web.place, port=54)
            else:
                reached(sender, (here, 5400), web.place, port=54)
        with own_socket(version) as own:
            assert reached(own, (here, 5300), web.place)
        with web.place.udp(any_) as itself:
            assert reached(itself, (here, 5300), web.place)
    with own_socket(4) as own:
        assert reached(own, ("127.0.0.1", 5300), web.place)


async def test_ports_of_one_network_are_reached_from_another(host: Host) -> None:
    web = await host.container(await host.network(), PortRequest("udp", PORT, "", (5300,)))
    other = await host.container(await host.network())
    for here, any_ in ((HOST4, "0.0.0.0"), (HOST6, "::")):
        with other.place.udp(any_) as sender:
            assert reached(sender, (here, 5300), web.place)


async def test_an_internal_network_has_no_way_in_or_out(host: Host) -> None:
    inside = await host.network(internal=True)
    port = PortRequest("udp", PORT, "", (5300,))
    containers = [
        await host.container(inside, port),
        await host.container(inside),
        await host.container(await host.network(), port),
    ]
    assert containers[0].endpoint.Ports == []
    assert containers[0].endpoint.Gateways == []
    check_pairs(containers, {(0, 1), (1, 0)})
    for number, (here, world, any_) in enumerate(((HOST4, WORLD4, "0.0.0.0"), (HOST6, WORLD6, "::"))):
        gateway = inside.Pools[number].Gateway
        containers[1].place.run("ip", "route", "add", "default", "via", gateway)  # as a container with NET_ADMIN might
        with containers[1].place.udp(any_) as sender:
            assert is_out_of_reach(sender, (world, 9), host.world, port=9)
            for address in (here, gateway):
                assert is_out_of_reach(sender, (address, 5300), containers[2].place)
        with host.world.udp(any_) as sender:
            assert is_out_of_reach(sender, (containers[1].address(4 if number == 0 else 6), PORT), containers[1].place)


async def test_a_routed_network_shows_its_own_addresses_and_what_is_open_on_them(host: Host) -> None:
    modes = {f"{BRIDGE}gateway_mode_ipv{version}": "routed" for version in (4, 6)}
    web = await host.container(await host.network(modes), PortRequest("udp", PORT, "", (5300,)))
    assert {port.host_port for port in web.endpoint.Ports} == {0}
    for version, here, world, any_ in ((4, HOST4, WORLD4, "0.0.0.0"), (6, HOST6, WORLD6, "::")):
        with web.place.udp(any_) as sender:
            assert reached(sender, (world, 9), host.world, port=9) == web.address(version)
        with host.world.udp(any_) as sender:
            assert reached(sender, (web.address(version), PORT), web.place) == world
            assert is_out_of_reach(sender, (web.address(version), 54), web.place, port=54)
            assert is_out_of_reach(sender, (here, 5300), web.place)


async def test_an_unprotected_network_is_reached_at_its_own_addresses(host: Host) -> None:
    modes = {f"{BRIDGE}gateway_mode_ipv{version}": "nat-unprotected" for version in (4, 6)}
    web = await host.container(await host.network(modes))
    for version, here, world, any_ in ((4, HOST4, WORLD4, "0.0.0.0"), (6, HOST6, WORLD6, "::")):
        with host.world.udp(any_) as sender:
            assert reached(sender, (web.address(version), PORT), web.place) == world
        with web.place.udp(any_) as sender:
            assert reached(sender, (world, 9), host.world, port=9) == here


async def test_what_comes_by_a_trusted_interface_reaches_published_ports_directly(host: Host) -> None:
    port = PortRequest("udp", PORT, "127.0.0.1", (5300,))
    web = await host.container(await host.network({f"{BRIDGE}trusted_host_interfaces": "world"}), port)
    other = await host.container(
        await host.network({f"{BRIDGE}trusted_host_interfaces": "other"}),
        msgspec.structs.replace(port, host_ports=(5301,)),
    )
    with host.world.udp() as sender:
        assert reached(sender, (web.address(4), PORT), web.place) == WORLD4
        assert is_out_of_reach(sender, (web.address(4), 54), web.place, port=54)
        assert is_out_of_reach(sender, (other.address(4), PORT), other.place)


async def test_addresses_that_the_world_sees(host: Host) -> None:
    sh("ip addr add 203.0.113.7/24 dev world")
    seen = await host.container(await host.network({f"{options.PREFIX}host_ipv4": "203.0.113.7"}))
    plain = await host.container(await host.network({f"{BRIDGE}enable_ip_masquerade": "false"}))
    for container, source in ((seen, "203.0.113.7"), (plain, plain.address(4))):
        with container.place.udp() as sender:
            assert reached(sender, (WORLD4, 9), host.world, port=9) == source


async def test_ports_are_published_where_the_network_says(host: Host) -> None:
    local = await host.network({f"{BRIDGE}host_binding_ipv4": "127.0.0.1"})
    web = await host.container(local, PortRequest("udp", PORT, "", (5300,)))
    assert [port.host_ip for port in web.endpoint.Ports] == ["127.0.0.1"]
    with host.world.udp() as sender, own_socket(4) as own:
        assert is_out_of_reach(sender, (HOST4, 5300), web.place)
        assert reached(own, ("127.0.0.1", 5300), web.place)


async def test_an_isolated_network_has_no_host_on_it(host: Host) -> None:
    modes = {f"{BRIDGE}gateway_mode_ipv{version}": "isolated" for version in (4, 6)}
    network = await host.network(modes, internal=True)
    assert [pool.Gateway for pool in network.Pools] == ["", ""]
    containers = [await host.container(network), await host.container(network)]
    shown = await asyncio.to_thread(lambda: Path("/proc/thread-self/net/if_inet6").read_text())
    assert network.Options[options.DEVICE] not in shown
    for version, any_ in ((4, "0.0.0.0"), (6, "::")):
        with containers[0].place.udp(any_) as sender, containers[1].place.udp(any_, PORT) as receiver:
            await until(lambda s=sender, r=receiver, v=version: _comes(s, r, containers[1].address(v)), what="a packet")  # type: ignore[misc]  # defaults bind


def _comes(sender: socket.socket, receiver: socket.socket, to: str) -> bool:
    sender.sendto(b"try", (to, PORT))
    receiver.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        return receiver.recv(100) == b"try"
    return False


async def test_all_of_it_is_there_again_after_a_flush_and_with_the_next_daemon(host: Host) -> None:
    first, second = await host.network(), await host.network(internal=True)
    web = await host.container(first, PortRequest("udp", PORT, "", (5300,)))
    inner = await host.container(second)

    def holds() -> None:
        for version, here, any_ in ((4, HOST4, "0.0.0.0"), (6, HOST6, "::")):
            with host.world.udp(any_) as sender:
                assert reached(sender, (here, 5300), web.place)
                assert is_out_of_reach(sender, (web.address(version), PORT), web.place)
                assert is_out_of_reach(sender, (inner.address(version), PORT), inner.place)

    holds()
    before = rules()
    nft.run("flush ruleset")
    await until(lambda: rules() == before, what="the rules back")
    holds()
    host.driver.close()
    host.driver = BridgeDriver(LinuxNetwork(), host.run)
    for network, container in ((first, web), (second, inner)):
        host.driver.adopt(network, container.endpoint)
    for network, container in ((first, web), (second, inner)):
        await host.driver.reconcile(network, [container.endpoint])
    assert rules() == before
    holds()
    await host.driver.release(first, web.endpoint)
    for network in (first, second):
        await host.driver.remove(network)
    assert nft.run("list tables") == ""
    for name in forwarding.SYSCTLS.values():
        assert (Path("/proc/sys/net") / name).read_text().strip() == "0"


async def test_a_chain_of_others_that_drops_is_told_with_its_mending(host: Host) -> None:
    """As dockerd makes one; what is not published stays out of reach once it is mended."""
    nft.run("table inet other { chain f { type filter hook forward priority filter; policy drop; }; }")
    web = await host.container(await host.network(), PortRequest("udp", PORT, "", (5300,)))
    bridges = ["br1"]
    (told,) = obstacles.warnings(await LinuxNetwork().dropping_forwards(), bridges)
    with host.world.udp() as sender:
        assert is_out_of_reach(sender, (HOST4, 5300), web.place)
    for command in told.rpartition("(")[2].rstrip(")").split("; "):
        nft.run(command.removeprefix("nft "))
    assert obstacles.warnings(await LinuxNetwork().dropping_forwards(), bridges) == []
    with host.world.udp() as sender, web.place.udp() as inner:
        reached(sender, (HOST4, 5300), web.place)
        assert is_out_of_reach(sender, (web.address(4), PORT), web.place)
        reached(inner, (WORLD4, 9), host.world, port=9)
    assert "inet other" in nft.run("list tables")


async def test_a_bridge_that_somebody_deletes_is_back(host: Host) -> None:
    web = await host.container(await host.network(), PortRequest("udp", PORT, "", (5300,)))
    sh("ip link del br1")
    for here, anywhere in ((HOST4, "0.0.0.0"), (HOST6, "::")):
        with host.world.udp(anywhere) as sender:
            await asyncio.to_thread(reached, sender, (here, 5300), web.place)
