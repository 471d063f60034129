"""Network namespaces for tests with real packets."""

from __future__ import annotations

import contextlib
import os
import socket
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

    def socket(self, address: str = "0.0.0.0", port: int = 0) -> socket.socket:
        """A UDP socket there: it stays where it was made, whichever thread uses it."""
        made: list[socket.socket] = []

        def make() -> None:
            with open(self.path, "rb") as namespace:
                setns(namespace.fileno(), CLONE_NEWNET)
            made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        made[0].settimeout(DEADLINE_S)
        made[0].bind((address, port))
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
