"""What happened on gRPC's connections reaches the loop at once, however much it is and however busy the loop.

gRPC's own thread wakes the loop by a byte in a socket for each event. The loop takes all events that there are in one
turn, but reads one of the bytes (grpcio 1.85, ``PollerCompletionQueue._handle_events``). Once some 280 are unread the
socket is full, and the thread stands in its write, with the events behind it: from then on a loop is told of one event a
turn, and a manager whose turns take 40 ms heard what 1000 agents had said within seconds only. Here all bytes are read.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from typing import Any  # of a callback's arguments, handed on as they are

import grpc.aio

_INT = struct.Struct("=i")


def take_all_events() -> None:
    """Call it on a running loop before anything of grpc.aio is made on it."""
    loop = asyncio.get_running_loop()
    add_reader = loop.add_reader

    def added(wakeups: Any, callback: Callable[..., Any], *args: Any) -> None:
        add_reader(wakeups, _take_all, wakeups, callback, args)

    # The only door: gRPC keeps the socket to itself and hands it to the loop.
    loop.add_reader = added  # type: ignore[method-assign, assignment]  # for one call
    try:
        grpc.aio.init_grpc_aio()
    finally:
        del loop.add_reader


def _take_all(wakeups: socket.socket, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Read all bytes but one, which ``callback`` waits for."""
    (count,) = _INT.unpack(fcntl.ioctl(wakeups, termios.FIONREAD, bytes(_INT.size)))
    if count > 1:
        wakeups.recv(count - 1)
    callback(*args)
