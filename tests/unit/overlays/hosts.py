"""Hosts on one machine as network namespaces on one underlay, each with the data plane of a node and with containers.

No daemon and no process: the library under test acts in the namespaces, and sockets in them carry real packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from runtime.errors import HostError
from runtime.kernel.linux_network import LinuxNetwork, parse_names
from runtime.kernel.network import (
    AddAddress,
    AddVxlan,
    Batch,
    Change,
    FlowPattern,
    IPAddress,
    SetUp,
    Translation,
    VxlanLink,
)
from runtime.kernel.network import Link as KernelLink
from tests.unit.networks.places import Place, place, sh
from tests.waiting import DEADLINE_S
from worker.network.overlays import Overlays
from worker.network.types import DataPath, LocalEndpoint, NetworkID, OverlayNetwork, PeerEndpoint, Subnet

_IP_MTU_DISCOVER, _IP_PMTUDISC_DO = 10, 2


def ip(text: str) -> IPAddress:
    return ipaddress.ip_address(text)


class HostKernel(LinuxNetwork):
    """This machine's kernel, seen from another network namespace: "" is that of the host.

    ``refused`` is what it was asked and did not do: whoever asks tries again, and would hide a mistake.
    """

    def __init__(self, home: str) -> None:
        self.home = home
        self.refused: list[str] = []

    async def apply(self, *batches: Batch) -> None:
        try:
            await super().apply(*(self._at_home(batch) for batch in batches))
        except OSError as error:
            self.refused.append(str(error))
            raise

    def _at_home(self, batch: Batch) -> Batch:
        changes = tuple(
            msgspec.structs.replace(each, namespace=each.namespace or self.home) if isinstance(each, AddVxlan) else each
            for each in batch.changes
        )
        return Batch(changes, batch.namespace or self.home)

    async def links(self, namespace: str = "") -> dict[str, KernelLink]:
        return await super().links(namespace or self.home)

    async def vxlan(self, name: str, namespace: str = "") -> VxlanLink | None:
        return await super().vxlan(name, namespace or self.home)

    async def set_sysctls(self, values: Mapping[str, str], namespace: str = "") -> None:
        await super().set_sysctls(values, namespace or self.home)

    async def run_rules(self, commands: str, namespace: str = "") -> None:
        try:
            await super().run_rules(commands, namespace or self.home)
        except (OSError, HostError) as error:
            self.refused.append(f"{error}: {commands}")
            raise

    async def read_sysctl(self, name: str) -> str:
        return (await self.run("cat", f"/proc/sys/net/{name}")).strip()

    async def names_in(self, table: str, name: str) -> set[str]:
        return parse_names(await self.run("nft", "list", "set", *table.split(), name))

    async def run(self, *command: str) -> str:
        """In the host's namespace."""
        made = await asyncio.create_subprocess_exec(
            "nsenter", f"--net={self.home}", *command, stdout=asyncio.subprocess.PIPE
        )
        return (await made.communicate())[0].decode()

    async def tables(self, namespace: str = "") -> set[str]:
        return await super().tables(namespace or self.home)

    async def translations(self, namespace: str = "") -> set[Translation]:
        return await super().translations(namespace or self.home)

    async def forget_translations(self, gone: Collection[FlowPattern], namespace: str = "") -> None:
        await super().forget_translations(gone, namespace or self.home)

    def watch_rules(self, changed: Callable[[], None], namespace: str = "") -> Callable[[], None]:
        return super().watch_rules(changed, namespace or self.home)

    def watch_links(self, changed: Callable[[str], None], namespace: str = "") -> Callable[[], None]:
        return super().watch_links(changed, namespace or self.home)


@dataclass
class Container:
    """A container of the tests: a namespace with one interface."""

    place: Place
    endpoint: LocalEndpoint
    host: Host

    @property
    def address(self) -> str:
        return str(self.endpoint.addresses[0])


@dataclass
class Host:
    """A node and its data plane."""

    number: int
    place: Place
    run: Path
    kernel: HostKernel
    overlays: Overlays
    containers: list[Container] = field(default_factory=list)

    @property
    def address(self) -> IPAddress:
        return ip(f"192.168.77.{self.number}")

    async def kill(self) -> None:
        """The daemon, without a word; a new one adopts what its containers have."""
        await self.overlays.close()  # the event loop is shared: its tasks would go on
        self.overlays = Overlays(self.kernel, self.run, DataPath(self.address))


@dataclass
class Bed:
    """All hosts, what there is, and the wire between them."""

    hosts: list[Host]
    stack: contextlib.ExitStack
    underlay: Place
    networks: dict[NetworkID, OverlayNetwork] = field(default_factory=dict)

    def wire(self, place: Place, address: str) -> None:
        """Put a place on the underlay, by its eth0."""
        port = f"v{place.pid}"
        sh(f"nsenter --net={self.underlay.path} ip link add {port} type veth peer name eth0 netns {place.pid}")
        self.underlay.run("ip", "link", "set", port, "master", "ul0", "up")
        place.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
        place.run("ip", "link", "set", "eth0", "up")

    async def add_network(self, name: str, vni: int, *subnets: str, internal: bool = False) -> NetworkID:
        found = NetworkID(name)
        made = [ipaddress.ip_network(each) for each in subnets]
        self.networks[found] = OverlayNetwork(
            id=found, vni=vni, subnets=tuple(Subnet(each, each[1]) for each in made), internal=internal
        )
        return found

    async def start(self, host: Host, network: NetworkID, *addresses: str) -> Container:
        """A container with an address a subnet, of which every host is told."""
        inside = self.stack.enter_context(place())
        parsed = tuple(ip(each) for each in addresses)
        name = f"veth{len(self.everyone()):03}{host.number}"
        endpoint = LocalEndpoint(f"{name}-{network}", parsed, name, "eth0", inside.path)
        lengths = [each.network.prefixlen for each in self.networks[network].subnets]
        changes: list[Change] = [
            SetUp("eth0"),
            *(
                AddAddress("eth0", ipaddress.ip_interface(f"{each}/{length}"))
                for each, length in zip(parsed, lengths, strict=False)
            ),
        ]
        host.overlays.set_network(self.networks[network])
        await host.overlays.join(network, endpoint, changes)
        made = Container(inside, endpoint, host)
        host.containers.append(made)
        await self.tell(network)
        return made

    def everyone(self) -> list[Container]:
        return [each for host in self.hosts for each in host.containers]

    def peers(self, network: NetworkID) -> list[PeerEndpoint]:
        return [
            PeerEndpoint(each.endpoint.addresses, each.host.address)
            for each in self.everyone()
            if each.endpoint.id.endswith(f"-{network}")
        ]

    async def tell(self, network: NetworkID) -> None:
        for host in self.hosts:
            host.overlays.set_network(self.networks[network])
            host.overlays.set_peers(network, self.peers(network))
        await self.settled(network)

    async def settled(self, network: NetworkID) -> None:
        for host in self.hosts:
            await asyncio.wait_for(host.overlays.settled(network), 30)


@contextlib.asynccontextmanager
async def bed(folder: Path, count: int) -> AsyncIterator[Bed]:
    """Hosts 192.168.77.1 and on, on a bridge in a namespace of its own."""
    with contextlib.ExitStack() as stack:
        underlay = stack.enter_context(place())
        underlay.run("ip", "link", "add", "ul0", "type", "bridge")
        underlay.run("ip", "link", "set", "ul0", "up")
        made = Bed([], stack, underlay)
        for number in range(1, count + 1):
            home = stack.enter_context(place())
            made.wire(home, f"192.168.77.{number}")
            run, kernel = folder / f"h{number}", HostKernel(home.path)
            run.mkdir()
            made.hosts.append(
                Host(number, home, run, kernel, Overlays(kernel, run, DataPath(ip(f"192.168.77.{number}"))))
            )
        try:
            yield made
            assert [each for host in made.hosts for each in host.kernel.refused] == []
        finally:
            for host in made.hosts:
                for container in list(host.containers):
                    await host.overlays.leave(NetworkID(container.endpoint.id.partition("-")[2]), container.endpoint)
                await asyncio.gather(*(host.overlays.settled(each) for each in made.networks))
                await host.overlays.close()


def ping(source: Container, address: str, *, size: int = 56, timeout_s: float = 2) -> bool:
    """Whether one echo request is answered, of a size that must not be split."""
    is_v4 = ip(address).version == 4
    family, protocol = (socket.AF_INET, socket.IPPROTO_ICMP) if is_v4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    head = struct.pack(">BBHHH", 8 if is_v4 else 128, 0, 0, 7, 1)
    data = head + b"x" * size
    with source.place.socket(socket.SOCK_RAW, protocol, family) as made:
        if is_v4:
            data = head[:2] + struct.pack(">H", _checksum(data)) + data[4:]
            made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
        made.settimeout(timeout_s)
        with contextlib.suppress(OSError):
            made.sendto(data, (address, 0))
            while True:
                heard, peer = made.recvfrom(9000)
                if peer[0] == address and heard[20 if is_v4 else 0] == (0 if is_v4 else 129):
                    return True
    return False


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2])) + (
        data[-1] << 8 if len(data) % 2 else 0
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def serving(container: Container, port: int, text: str = "") -> contextlib.AbstractContextManager[None]:
    """As ``serve``; the name is the container's address unless it is said."""
    return serve(container.place, port, text or container.address)


@contextlib.contextmanager
def serve(place: Place, port: int, name: str) -> Iterator[None]:
    """A TCP and a UDP server on one port of all IPv4 addresses: an answer is the name and the client's address."""
    udp, tcp = (place.socket(kind, 0) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM))
    for made in (udp, tcp):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("", port))
    tcp.listen(128)

    def answer_udp() -> None:
        with contextlib.suppress(OSError):
            while True:
                _, peer = udp.recvfrom(9000)
                if peer is None:  # shut down
                    return
                udp.sendto(f"{name} {peer[0]}".encode(), peer)

    def answer_one(client: socket.socket, peer: str) -> None:
        with client, contextlib.suppress(OSError):
            while client.recv(9000):
                client.sendall(f"{name} {peer}".encode())

    def answer_tcp() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, peer = tcp.accept()
                threading.Thread(target=answer_one, args=(client, peer[0]), daemon=True).start()

    threads = [threading.Thread(target=work, daemon=True) for work in (answer_udp, answer_tcp)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for made in (udp, tcp):
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)
            made.close()
        for thread in threads:
            thread.join(10)


async def comes_true(check: Callable[[], bool], what: str) -> None:
    """Ask again and again, in a thread: what is waited for happens on the event loop. Raises TimeoutError."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await asyncio.to_thread(check):
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise TimeoutError(f"not within {DEADLINE_S:g} s: {what}") from None


def connect(place: Place, address: str, port: int) -> socket.socket:
    """A TCP connection. Raises OSError."""
    made = place.socket(socket.SOCK_STREAM, 0, socket.AF_INET if ip(address).version == 4 else socket.AF_INET6)
    made.settimeout(5)
    try:
        made.connect((address, port))
    except BaseException:
        made.close()
        raise
    return made


def ask(made: socket.socket, *, timeout_s: float = 5) -> list[str]:
    """What the server at the other end says: its name and the address it sees. Raises OSError."""
    made.settimeout(timeout_s)
    made.send(b"who")
    return made.recv(9000).decode().split()


def tcp(place: Place, address: str, port: int) -> list[str]:
    """One question on a connection of its own. Raises OSError."""
    with connect(place, address, port) as made:
        return ask(made)


def udp(place: Place, address: str, port: int, *, timeout_s: float = 5) -> list[str]:
    """One question from a port of its own. Raises OSError."""
    with place.socket(socket.SOCK_DGRAM, 0, socket.AF_INET if ip(address).version == 4 else socket.AF_INET6) as made:
        made.connect((address, port))
        return ask(made, timeout_s=timeout_s)
