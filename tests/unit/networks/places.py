"""Network namespaces for tests with real packets."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from runtime.kernel.syscalls import CLONE_NEWNET, setns

DEADLINE_S = 30.0
_ETHERTYPE_IPV4 = 0x0800


@dataclass
class Place:
    """A process in a network namespace of its own."""

    pid: int

    @property
    def path(self) -> str:
        return f"/proc/{self.pid}/ns/net"

    def run(self, *command: str) -> None:
        subprocess.run(["nsenter", f"--net={self.path}", *command], check=True)

    def udp(self, address: str = "0.0.0.0", port: int = 0) -> socket.socket:
        """A UDP socket there: it stays where it was made, whichever thread uses it."""
        made = self.socket(socket.SOCK_DGRAM, 0, socket.AF_INET6 if ":" in address else socket.AF_INET)
        made.settimeout(DEADLINE_S)
        made.bind((address, port))
        return made

    def send_forged(self, data: bytes, *, source: str, to: tuple[str, int]) -> None:
        """A UDP datagram with any source, as a process with CAP_NET_RAW sends it."""
        with self.socket(socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
            made.sendto(_datagram(data, source, to), to)

    def send_past_routes(self, data: bytes, *, source: str, to: tuple[str, int], neighbour: bytes) -> None:
        """The same to any address, by eth0 to the device with the MAC ``neighbour``: its own routes are not asked."""
        with self.socket(socket.SOCK_DGRAM, 0, socket.AF_PACKET) as made:
            made.sendto(_datagram(data, source, to), ("eth0", _ETHERTYPE_IPV4, 0, 0, neighbour))

    def socket(self, kind: int, protocol: int, family: int = socket.AF_INET) -> socket.socket:
        made: list[socket.socket] = []

        def make() -> None:
            with open(self.path, "rb") as namespace:
                setns(namespace.fileno(), CLONE_NEWNET)
            made.append(socket.socket(family, kind, protocol))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]


def _datagram(data: bytes, source: str, to: tuple[str, int]) -> bytes:
    """An IPv4 packet with UDP in it, which needs no checksum of its own."""
    udp = struct.pack(">HHHH", 9, to[1], 8 + len(data), 0) + data
    addresses = socket.inet_aton(source) + socket.inet_aton(to[0])
    words = [0x4500, 20 + len(udp), 0, 0, 64 << 8 | socket.IPPROTO_UDP, *struct.unpack(">HHHH", addresses)]
    total = sum(words)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return struct.pack(">HHHHHH", *words[:5], checksum) + addresses + udp


@contextlib.contextmanager
def place() -> Iterator[Place]:
    holder = subprocess.Popen(["unshare", "--net", "sleep", "600"])
    try:
        here = os.stat("/proc/thread-self/ns/net").st_ino
        while os.stat(f"/proc/{holder.pid}/ns/net").st_ino == here:
            pass
        made = Place(holder.pid)
        made.run("ip", "link", "set", "lo", "up")
        yield made
    finally:
        holder.kill()
        holder.wait()


def sh(command: str) -> None:
    subprocess.run(command.split(), check=True)
