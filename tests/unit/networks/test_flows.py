"""A peer that keeps sending from one UDP port reaches whoever has the published port now. Real packets."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.kernel import conntrack, netlink
from runtime.kernel.linux_network import LinuxNetwork
from runtime.kernel.network import FlowsTo
from runtime.networks import predefined
from runtime.networks.bridge import BridgeDriver
from runtime.networks.driver import Endpoint, EndpointRequest, Network
from runtime.networks.ports import PortRequest
from runtime.types import EndpointIPAMConfig, EndpointSettings
from tests.unit.engine.conftest import network_namespace  # noqa: F401 - a fixture
from tests.unit.networks.places import Place, place, sh

pytestmark = pytest.mark.root
PORT = 51897
HERE = "10.201.0.1"


@dataclass
class Host:
    """The host between a peer and its containers."""

    peer: Place
    driver: BridgeDriver
    network: Network

    async def publish(
        self, container: Place, *, address: str = "", count: int = 1, host_ip: str = "0.0.0.0"
    ) -> Endpoint:
        ports = [PortRequest("udp", 53 + number, host_ip, (PORT + number,)) for number in range(count)]
        settings = EndpointSettings(IPAMConfig=EndpointIPAMConfig(IPv4Address=address))
        endpoint = await self.driver.reserve(self.network, EndpointRequest("c1", settings, "eth0", ports))
        await self.driver.attach(self.network, endpoint, container.path, default_route=True)
        return endpoint


@pytest.fixture
async def host(network_namespace: None, tmp_path: Path) -> AsyncIterator[Host]:  # noqa: F811 - the fixture
    with place() as peer:
        sh(f"ip link add peer type veth peer name eth0 netns {peer.pid}")
        sh(f"ip addr add {HERE}/24 dev peer")
        sh("ip link set peer up")
        peer.run(*["ip", "addr", "add", "10.201.0.2/24", "dev", "eth0"])
        peer.run(*["ip", "link", "set", "eth0", "up"])
        driver = BridgeDriver(LinuxNetwork(), tmp_path)
        network = await driver.settle(predefined.networks(bridge="br7", subnet="10.7.0.0/24")[0])
        await driver.create(network)
        yield Host(peer, driver, network)
        driver.close()


def exchange(sender: socket.socket, at: socket.socket, *, to: tuple[str, int] = (HERE, PORT)) -> bool:
    """Whether a query arrives, and is answered under the address that it went to."""
    sender.sendto(b"query", to)
    with contextlib.suppress(TimeoutError):
        _, peer = at.recvfrom(100)
        at.sendto(b"answer", peer)
        return sender.recvfrom(100) == (b"answer", to)
    return False


@pytest.mark.parametrize("next_address", ["10.7.0.9", "10.7.0.8"], ids=["another-address", "the-same-address"])
async def test_the_next_container_at_the_port_gets_what_the_peer_sends(host: Host, next_address: str) -> None:
    with host.peer.udp(port=4000) as sender:
        with place() as first:
            endpoint = await host.publish(first, address="10.7.0.8")
            with first.udp(port=53) as at:
                assert exchange(sender, at)
        sender.sendto(b"in between", (HERE, PORT))
        await host.driver.release(host.network, endpoint)
        sender.sendto(b"in between", (HERE, PORT))  # now to the host itself, where nobody listens
        with place() as second:
            await host.publish(second, address=next_address)
            with second.udp(port=53) as at:
                assert exchange(sender, at)


async def test_a_peer_that_sent_before_there_was_anything_is_heard(host: Host) -> None:
    with host.peer.udp(port=4000) as sender, place() as container:
        sender.sendto(b"nobody there", (HERE, PORT))
        await host.publish(container)
        with container.udp(port=53) as at:
            assert exchange(sender, at)


async def test_a_port_that_is_published_no_more_is_the_hosts(host: Host) -> None:
    with host.peer.udp(port=4000) as sender, place() as container:
        endpoint = await host.publish(container)
        with container.udp(port=53) as at:
            assert exchange(sender, at)
        await host.driver.release(host.network, endpoint)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.settimeout(30)
            own.bind((HERE, PORT))
            assert exchange(sender, own)


@pytest.mark.parametrize("count", [1, 3, 20])
async def test_of_many_ports_each_is_heard_anew(host: Host, count: int) -> None:
    with host.peer.udp(port=4000) as sender:
        for _ in range(2):
            with place() as container, contextlib.ExitStack() as stack:
                endpoint = await host.publish(container, count=count)
                for number in range(count):
                    at = stack.enter_context(container.udp(port=53 + number))
                    assert exchange(sender, at, to=(HERE, PORT + number))
                await host.driver.release(host.network, endpoint)
            sender.sendto(b"nobody", (HERE, PORT + count - 1))


def tracked(port: int) -> set[str]:
    with netlink.connection(protocol=netlink.NETFILTER) as sock:
        return {str(flow.destination) for flow in conntrack.flows(sock, socket.IPPROTO_UDP, {port}, 4)}


async def test_flows_of_others_are_left_alone(host: Host) -> None:
    """Through the host to the same port elsewhere, to other addresses of the host, to other ports."""
    kernel = LinuxNetwork()
    sh("ip addr add 10.201.0.7/24 dev peer")
    with host.peer.udp() as sender, place() as container:
        endpoint = await host.publish(container, host_ip="10.201.0.7")
        with container.udp() as inside:
            inside.sendto(b"query", ("10.201.0.2", PORT))  # masqueraded: a flow of the host's table
        for address in (HERE, "10.201.0.7"):
            sender.sendto(b"x", (address, PORT))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.sendto(b"x", ("127.9.9.9", PORT))
            own.sendto(b"x", ("127.0.0.1", PORT + 1))
        everything = {HERE, "10.201.0.7", "127.9.9.9", "10.201.0.2"}
        assert (tracked(PORT), tracked(PORT + 1)) == (everything, {"127.0.0.1"})
        await host.driver.release(host.network, endpoint)
        assert tracked(PORT) == everything - {"10.201.0.7"}
        await kernel.forget_flows([FlowsTo("udp", "0.0.0.0", PORT)])
        assert (tracked(PORT), tracked(PORT + 1)) == ({"10.201.0.2"}, {"127.0.0.1"})
        await kernel.forget_flows([FlowsTo("udp", "0.0.0.0", PORT), FlowsTo("sctp", "127.0.0.1", PORT)])
        assert tracked(PORT) == {"10.201.0.2"}


async def test_hundreds_of_peers_are_forgotten_at_once(host: Host) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(host.peer.udp()).sendto(b"x", (HERE, PORT))
        with netlink.connection(protocol=netlink.NETFILTER) as sock:
            assert len(list(conntrack.flows(sock, socket.IPPROTO_UDP, {PORT}, 4))) == 300
    await LinuxNetwork().forget_flows([FlowsTo("udp", HERE, PORT)])
    assert tracked(PORT) == set()
