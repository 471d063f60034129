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
        made = self._socket(socket.SOCK_DGRAM, 0)
        made.settimeout(DEADLINE_S)
        made.bind((address, port))
        return made

    def send_forged(self, data: bytes, *, source: str, to: tuple[str, int]) -> None:
        """A UDP datagram with any source, as a process with CAP_NET_RAW sends it."""
        udp = struct.pack(">HHHH", 9, to[1], 8 + len(data), 0) + data
        addresses = socket.inet_aton(source) + socket.inet_aton(to[0])
        head = struct.pack(">BBHHHBBH", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_UDP, 0)
        with self._socket(socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
            made.sendto(head + addresses + udp, to)

    def _socket(self, kind: int, protocol: int) -> socket.socket:
        made: list[socket.socket] = []

        def make() -> None:
            with open(self.path, "rb") as namespace:
                setns(namespace.fileno(), CLONE_NEWNET)
            made.append(socket.socket(socket.AF_INET, kind, protocol))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]


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
