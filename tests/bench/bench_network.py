"""Names of containers: answers a second and their times, ours and Docker's.

    scripts/bench network [--seconds 5] [--only ours|docker]

A line a metric: ours, Docker's (where dockerd is installed) and the ratio, both of the same run. A container asks the
resolver at 127.0.0.11 for the address of another on its network: with 100 questions under way (as dnsperf does by
default), and at 5 000 a second for the times. ``cpu_us`` is what the server's processes spent for an answer. ``forward``
questions are for names outside, answered by a server in the container.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import math
import os
import shutil
import signal
import socket
import statistics
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import docker

from tests.bench.bench_start import DockerHost, OurHost, answers
from tests.conformance.hosts import EngineHost
from tests.support_images import BUSYBOX_TAG, busybox_archive
from tests.unit.resolver.places import RESOLVER, answer, question, socket_in
from tests.waiting import wait_until

NAMES = 100
UNDER_WAY = 100
RATE = 5000
_BATCH = 100
_ANSWER_BYTES_MAX = 512
_SERVERS = {"ours": "runtime.resolver.process", "docker": "dockerd"}
_TICKS = os.sysconf("SC_CLK_TCK")


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr (sendmmsg(2))."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Iovec)),
        ("vectors_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("length", ctypes.c_uint32),
    )


class Datagrams:
    """Up to a hundred datagrams in one system call: a client that costs less than the server it measures."""

    def __init__(self, connected: socket.socket, size: int) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd, self._size = connected.fileno(), size
        self.buffers = [ctypes.create_string_buffer(size) for _ in range(_BATCH)]
        self._vectors = (_Iovec * _BATCH)()
        self._messages = (_Message * _BATCH)()
        for number, buffer in enumerate(self.buffers):
            self._vectors[number] = _Iovec(ctypes.addressof(buffer), size)
            self._messages[number].vectors = ctypes.pointer(self._vectors[number])
            self._messages[number].vectors_length = 1

    def put(self, messages: Sequence[bytes]) -> None:
        """What to send, in turn."""
        for number, message in enumerate(messages):
            ctypes.memmove(self.buffers[number], message, len(message))
            self._vectors[number].length = len(message)

    def send(self, count: int) -> None:
        if self._libc.sendmmsg(self._fd, self._messages, count, 0) < 0:
            raise OSError(ctypes.get_errno(), "sendmmsg")

    def receive(self, *, wait: bool) -> int:
        """How many came; with ``wait``, one at least."""
        flags = 0x10000 if wait else socket.MSG_DONTWAIT  # MSG_WAITFORONE
        found: int = self._libc.recvmmsg(self._fd, self._messages, _BATCH, flags, None)
        return max(found, 0)


def flood(pid: int, seconds: float, domain: str = "") -> float:
    """Answers a second, with ``UNDER_WAY`` questions under way."""
    with socket_in(pid) as made:
        made.connect(RESOLVER)
        asking, hearing = Datagrams(made, 128), Datagrams(made, _ANSWER_BYTES_MAX)
        asking.put([question(f"web{number % NAMES}{domain}", identifier=number) for number in range(UNDER_WAY)])
        made.settimeout(None)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 1, 0))
        asking.send(UNDER_WAY)
        begin, count = time.monotonic(), 0
        while (now := time.monotonic()) < begin + seconds:
            got = hearing.receive(wait=True)
            count += got
            asking.send(got or UNDER_WAY)
        return count / (now - begin)


def times_ms(pid: int, seconds: float) -> list[float]:
    """Of answers to questions sent at a steady rate, in milliseconds, sorted; one lost counts as a second."""
    with socket_in(pid) as made:
        made.connect(RESOLVER)
        made.setblocking(False)
        messages = [question(f"web{number % NAMES}")[2:] for number in range(NAMES)]
        total = int(RATE * seconds)
        sent: list[float] = []
        found: list[float] = [1000.0] * total
        begin = time.monotonic()
        while len(sent) < total or time.monotonic() < begin + seconds + 0.5:
            now = time.monotonic()
            if len(sent) < total and now >= begin + len(sent) / RATE:
                made.send(struct.pack(">H", len(sent) & 0xFFFF) + messages[len(sent) % NAMES])
                sent.append(now)
            with contextlib.suppress(BlockingIOError):
                identifier = int.from_bytes(made.recv(_ANSWER_BYTES_MAX)[:2], "big")
                now = time.monotonic()
                number = (len(sent) - 1 - identifier) // 0x10000 * 0x10000 + identifier
                found[number] = (now - sent[number]) * 1000
        return sorted(found)


@contextlib.contextmanager
def upstream(pid: int) -> Iterator[None]:
    """A server in the container, on port 53 of 127.0.0.1, in a process of its own."""
    child = os.fork()
    if child == 0:
        with socket_in(pid) as made:
            made.settimeout(None)
            made.bind(("127.0.0.1", 53))
            while True:
                message, source = made.recvfrom(4096)
                made.sendto(answer(message, ["192.0.2.1"]), source)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def server_cpu_s(host: EngineHost, kind: str) -> float:
    """Of the processes that answer, and their memory is told beside it."""
    return sum(_spent_s(pid) for pid in _servers(host, kind))


def _servers(host: EngineHost, kind: str) -> list[int]:
    found = []
    for pid in host.processes():
        with contextlib.suppress(OSError):
            if _SERVERS[kind] in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


def _spent_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:13]) / _TICKS


def memory_mb(host: EngineHost, kind: str) -> float:
    """Resident, of the processes that answer."""
    total_kb = 0
    for pid in _servers(host, kind):
        status = Path(f"/proc/{pid}/status").read_text()
        total_kb += int(status.partition("VmRSS:")[2].split()[0])
    return total_kb / 1024


def measure(host: EngineHost, kind: str, seconds: float) -> dict[str, float]:
    """All metrics, on a host of its own."""
    try:
        host.start()
        with contextlib.closing(host.client(version="1.41")) as client:
            wait_until(lambda: answers(client), f"the daemon answers; its log: {host.log}")
            client.images.load(busybox_archive())
            network = client.networks.create("front")
            made = client.containers.run(
                BUSYBOX_TAG, ["sleep", "10000"], network="front", dns=["127.0.0.1"], detach=True, name="asker"
            )
            web = client.containers.create(BUSYBOX_TAG, ["sleep", "10000"], name="web")
            network.connect(web, aliases=[f"web{number}" for number in range(NAMES)])
            web.start()
            made.reload()
            pid = _pid_here(host, made.attrs["State"]["Pid"])
            starts = [_start_s(client, "front") for _ in range(5)]
            plain = [_start_s(client, "bridge") for _ in range(5)]
        spent_s = server_cpu_s(host, kind)
        rate = flood(pid, seconds)
        cpu_us = (server_cpu_s(host, kind) - spent_s) / (rate * seconds) * 1e6
        times = times_ms(pid, seconds)
        with upstream(pid):
            forwarded = flood(pid, seconds, ".example.com")
        return {
            "answers_per_s": rate,
            "cpu_us_per_answer": cpu_us,
            "p50_ms_at_5000_per_s": times[len(times) // 2],
            "p99_ms_at_5000_per_s": times[len(times) * 99 // 100],
            "forwarded_per_s": forwarded,
            "rss_mb": memory_mb(host, kind),
            "start_on_bridge_ms": statistics.median(plain) * 1000,
            "start_with_names_ms": statistics.median(starts) * 1000,
        }
    finally:
        host.close()


def _start_s(client: docker.DockerClient, network: str) -> float:
    made = client.containers.create(BUSYBOX_TAG, ["sleep", "10000"], network=network)
    begin = time.monotonic()
    made.start()
    took_s = time.monotonic() - begin
    made.remove(force=True)
    return took_s


def _pid_here(host: EngineHost, pid: int) -> int:
    """The PID here of a process by that of the host's own PID namespace."""
    for each in host.processes():
        with contextlib.suppress(OSError):
            line = next(x for x in Path(f"/proc/{each}/status").read_text().splitlines() if x.startswith("NSpid:"))
            if int(line.split()[2]) == pid:
                return each
    raise LookupError(f"no process {pid} on that host")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--only", choices=["ours", "docker"])
    options = parser.parse_args()
    if os.geteuid():
        parser.error("needs root")
    found: dict[str, dict[str, float]] = {}
    if options.only != "docker":
        found["ours"] = measure(OurHost(), "ours", options.seconds)
    if options.only != "ours" and shutil.which("dockerd"):
        found["docker"] = measure(DockerHost(), "docker", options.seconds)
    print(f"{'metric':24}{'ours':>10}{'docker':>10}{'ratio':>8}")
    for metric in next(iter(found.values())):
        ours, theirs = (found.get(name, {}).get(metric, math.nan) for name in ("ours", "docker"))
        print(f"{metric:24}{ours:10.2f}{theirs:10.2f}{ours / theirs:8.2f}")


if __name__ == "__main__":
    main()
