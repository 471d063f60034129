"""Addresses of the loopback that no other process uses.

All of 127/8 is this host's own. What is free on an address of one's own when it is looked up is so when it is bound,
and when it is bound again: no other run takes it, nor the kernel for an outgoing connection, which comes from 127.0.0.1.
"""

from __future__ import annotations

import os
import socket


def loopback(number: int = 255) -> str:
    """An address of this process; ``number`` is 1..255."""
    process = os.getpid()
    return f"127.{1 + process // 256 % 250}.{process % 256}.{number}"


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that is free on ``host``."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
