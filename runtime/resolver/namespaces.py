"""Sockets in the network namespaces of containers, and the rules there that lead questions to them.

The resolver listens on ports that are free, so that a container may serve port 53 itself, and two rules lead what is sent
to 127.0.0.11, port 53, there (as moby libnetwork/resolver_unix.go does).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import socket
import sys

import msgspec

from runtime.errors import EngineError, HostError
from runtime.kernel import nft
from runtime.kernel.syscalls import CLONE_NEWNET, setns
from runtime.resolver.port import ADDRESS

TABLE = "swarm-resolver"
_BACKLOG = 128
_SIOCGSKNS = 0x894C
_OF_PROCESS = re.compile(r"/proc/([1-9][0-9]*)/ns/net")
_UDP = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_TCP = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


class Sockets(msgspec.Struct, frozen=True):
    """Descriptors of a container's two sockets, kept by the node over the end of the process that opened them."""

    udp: int
    tcp: int

    def close(self) -> None:
        """Once."""
        os.close(self.udp)
        os.close(self.tcp)


class Opened:
    """What is held of a namespace: its descriptor, the sockets in it, and the process whose end is its end (-1: none)."""

    def __init__(self, namespace: int, process: int, udp: socket.socket, tcp: socket.socket) -> None:
        self.namespace, self.process, self.udp, self.tcp = namespace, process, udp, tcp

    def close(self) -> None:
        """Once."""
        self.udp.close()
        self.tcp.close()
        for descriptor in (self.namespace, self.process):
            if descriptor >= 0:
                os.close(descriptor)


def open_in(path: str, kept: Sockets | None = None) -> Opened:
    """Open the sockets and set the rules. For a thread that ends with it, as it stays in that namespace.

    ``kept`` are taken instead if they are of this namespace: their rules stand, and what was asked meanwhile waits in them.
    They are this function's to close. Raises OSError, HostError: nothing is left open.
    """
    with contextlib.ExitStack() as stack:
        process = _open_process(path)
        if process >= 0:
            stack.callback(os.close, process)
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, namespace)
        if process >= 0 and select.select([process], [], [], 0)[0]:
            raise ProcessLookupError("its process has ended")  # the path may be another's by now
        if kept is not None:
            udp, tcp = (stack.enter_context(_adopted(each)) for each in (kept.udp, kept.tcp))
            if namespace_of(udp) == namespace_of(tcp) == os.fstat(namespace).st_ino:
                stack.pop_all()
                return Opened(namespace, process, udp, tcp)
            udp.close()
            tcp.close()
        setns(namespace, CLONE_NEWNET)
        udp, tcp = (stack.enter_context(socket.socket(socket.AF_INET, kind)) for kind in (_UDP, _TCP))
        udp.bind((ADDRESS, 0))
        tcp.bind((ADDRESS, 0))
        tcp.listen(_BACKLOG)
        _set_rules(rules(udp.getsockname()[1], tcp.getsockname()[1]))
        stack.pop_all()
        return Opened(namespace, process, udp, tcp)


def _adopted(descriptor: int) -> socket.socket:
    made = socket.socket(fileno=descriptor)
    made.setblocking(False)
    return made


def namespace_of(made: socket.socket) -> int:
    """The inode of a socket's network namespace."""
    found = fcntl.ioctl(made, _SIOCGSKNS)
    try:
        return os.fstat(found).st_ino
    finally:
        os.close(found)


def _open_process(path: str) -> int:
    found = _OF_PROCESS.fullmatch(path)
    return os.pidfd_open(int(found[1])) if found else -1


def rules(udp_port: int, tcp_port: int) -> str:
    """The table, in nft's language."""
    ports = (("udp", udp_port), ("tcp", tcp_port))
    there = "".join(f"ip daddr {ADDRESS} {kind} dport 53 dnat to {ADDRESS}:{port};" for kind, port in ports)
    back = "".join(f"ip saddr {ADDRESS} {kind} sport {port} snat to :53;" for kind, port in ports)
    return (
        f"table ip {TABLE} {{\n"
        f"chain output {{ type nat hook output priority -100; policy accept; {there} }}\n"
        f"chain postrouting {{ type nat hook postrouting priority 100; policy accept; {back} }}\n"
        "}\n"
    )


def _set_rules(table: str) -> None:
    """In place of those of a resolver before this one; that takes the kernel twenty times as long, so it is not tried first."""
    try:
        nft.run(f"create table ip {TABLE}\n{table}")
    except HostError:
        nft.run(f"add table ip {TABLE}\ndelete table ip {TABLE}\n{table}")


class Outside:
    """Sockets to ask others by: made in a namespace, used in this process's own.

    The one thread there is goes there and comes back, which is two system calls where a thread a question would be ten
    times that. It never stays: a way back that fails ends the process, and its successor begins at home.
    """

    def __init__(self) -> None:
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def socket(self, namespace: int | None, family: int, *, stream: bool) -> socket.socket:
        """Not blocking; None is the host's namespace. Raises OSError."""
        kind = _TCP if stream else _UDP
        if namespace is None:
            return socket.socket(family, kind)
        setns(namespace, CLONE_NEWNET)
        try:
            return socket.socket(family, kind)
        finally:
            self._return()

    def close(self) -> None:
        """Once."""
        os.close(self._home)

    def _return(self) -> None:
        try:
            setns(self._home, CLONE_NEWNET)
        except OSError as error:
            sys.stderr.write(f"the resolver cannot leave a container's network namespace: {error}\n")
            os._exit(1)


OPEN_ERRORS = (OSError, EngineError)
"""What ``open_in`` raises."""
