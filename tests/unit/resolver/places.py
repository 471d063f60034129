"""Network namespaces of the tests in which somebody asks, servers that answer, and messages put together by hand."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from runtime.kernel.syscalls import CLONE_NEWNET, setns
from tests.waiting import wait_until

RESOLVER = ("127.0.0.11", 53)
A, PTR, TXT, AAAA, SRV = 1, 12, 16, 28, 33


@contextlib.contextmanager
def container() -> Iterator[int]:
    """PID of a process with a network namespace of its own, loopback up, as runc leaves one that waits."""
    process = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 1000"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"up\n"
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def socket_in(pid: int, kind: socket.SocketKind = socket.SOCK_DGRAM, *, timeout_s: float = 10.0) -> socket.socket:
    """Made in the network namespace of a process."""
    made: list[socket.socket] = []

    def make() -> None:
        descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            setns(descriptor, CLONE_NEWNET)
            made.append(socket.socket(socket.AF_INET, kind))
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    made[0].settimeout(timeout_s)
    return made[0]


def name_bytes(name: str) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode() for label in name.split(".")) + b"\0"


def question(name: str, kind: int = A, *, identifier: int = 7, edns_bytes: int = 0) -> bytes:
    """A message as resolvers of libc send it."""
    edns = b"\0" + struct.pack(">HHIH", 41, edns_bytes, 0, 0) if edns_bytes else b""
    counts = struct.pack(">HHHHH", 0x100, 1, 0, 0, bool(edns))
    return struct.pack(">H", identifier) + counts + name_bytes(name) + struct.pack(">HH", kind, 1) + edns


def answer(asked: bytes, addresses: Sequence[str] = (), *, rcode: int = 0, truncated: bool = False) -> bytes:
    """What a server of the tests says to a question without EDNS."""
    records = b"".join(
        b"\xc0\x0c" + struct.pack(">HHIH", A, 1, 60, 4) + socket.inet_aton(address) for address in addresses
    )
    flags = 0x8180 | rcode | (0x0200 if truncated else 0)
    return asked[:2] + struct.pack(">HHHHH", flags, 1, len(addresses), 0, 0) + asked[12:] + records


def rcode(message: bytes) -> int:
    return message[3] & 0xF


def addresses(message: bytes) -> list[str]:
    """Of the records of an answer that has no others; names in it are pointers."""
    count = struct.unpack_from(">H", message, 6)[0]
    at = message.index(b"\0", 12) + 5
    found = []
    for _ in range(count):
        length = struct.unpack_from(">H", message, at + 10)[0]
        data = message[at + 12 : at + 12 + length]
        found.append(socket.inet_ntop(socket.AF_INET6 if length == 16 else socket.AF_INET, data))
        at += 12 + length
    return found


def ask(pid: int, name: str, kind: int = A, *, timeout_s: float = 10.0) -> bytes:
    """Ask the resolver of a container by UDP, and give its answer. Raises OSError: there is none."""
    with socket_in(pid, timeout_s=timeout_s) as made:
        made.connect(RESOLVER)
        made.send(question(name, kind))
        return made.recv(65535)


def ask_by_tcp(pid: int, *messages: bytes) -> list[bytes]:
    """Several on one connection; answers as they come."""
    with socket_in(pid, socket.SOCK_STREAM) as made:
        made.connect(RESOLVER)
        for message in messages:
            made.sendall(len(message).to_bytes(2, "big") + message)
        stream = made.makefile("rb")
        return [stream.read(int.from_bytes(stream.read(2), "big")) for _ in messages]


class NameServer:
    """A server of other names on 127.0.0.1 (or another loopback address) of a namespace, by UDP and TCP.

    ``respond`` is given the question and whether it came by TCP; None is silence. ``asked`` are the questions it got.
    """

    def __init__(self, pid: int, respond: Callable[[bytes, bool], bytes | None], address: str = "127.0.0.1") -> None:
        self.asked: list[bytes] = []
        self._respond = respond
        self._udp, self._tcp = socket_in(pid), socket_in(pid, socket.SOCK_STREAM)
        self._udp.settimeout(None)
        self._tcp.settimeout(None)
        self._udp.bind((address, 0))
        self.address, self.port = self._udp.getsockname()
        self._tcp.bind((address, self.port))
        self._tcp.listen(16)
        self._threads = [threading.Thread(target=serve, daemon=True) for serve in (self._serve_udp, self._serve_tcp)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for made in (self._udp, self._tcp):
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)
            made.close()
        for thread in self._threads:
            thread.join(5)

    def __enter__(self) -> NameServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve_udp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                message, source = self._udp.recvfrom(65535)
                if len(message) < 12:
                    return
                self.asked.append(message)
                if (reply := self._respond(message, False)) is not None:
                    self._udp.sendto(reply, source)

    def _serve_tcp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self._tcp.accept()[0]
                with connection, connection.makefile("rb") as stream:
                    message = stream.read(int.from_bytes(stream.read(2), "big"))
                    self.asked.append(message)
                    if (reply := self._respond(message, True)) is not None:
                        connection.sendall(len(reply).to_bytes(2, "big") + reply)


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def wait_for_descriptors(pid: int, count: int) -> None:
    wait_until(lambda: descriptors(pid) <= count, f"at most {count} descriptors", deadline_s=20)
