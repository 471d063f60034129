"""A loop that is busy hears of all that came, not of one event a turn."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from base import grpc_events
from base.grpc_events import take_all_events

STREAMS = 600


@pytest.fixture
async def all_events() -> AsyncIterator[None]:
    take_all_events()
    yield
    grpc.aio.shutdown_grpc_aio()


@pytest.mark.usefixtures("all_events")
async def test_what_came_on_many_streams_is_heard_in_few_turns() -> None:
    heard: list[bytes] = []

    async def listen(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.write(b"welcome")
        async for request in requests:
            heard.append(request)  # noqa: PERF401 - as they come

    server = grpc.aio.server()
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {"Talk": grpc.stream_stream_rpc_method_handler(listen)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Many", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        talk: Any = channel.stream_stream("/test.Many/Talk")
        calls: list[grpc.aio.StreamStreamCall[bytes, bytes]] = [talk() for _ in range(STREAMS)]
        assert [await call.read() for call in calls] == [b"welcome"] * STREAMS
        turns = 0
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(call.write(b"x"))
            while len(heard) < STREAMS and turns < STREAMS / 2:
                turns += 1
                time.sleep(0.002)  # noqa: ASYNC251 - a loop that has much else to do
                await asyncio.sleep(0)
            in_few_turns = len(heard)  # all are heard some time
        for call in calls:
            call.cancel()
    await server.stop(None)
    assert in_few_turns == STREAMS


def test_all_bytes_but_the_one_that_is_waited_for_are_read() -> None:
    reading, writing = socket.socketpair()
    left: list[int] = []

    def callback(what: str) -> None:
        (count,) = struct.unpack("=i", fcntl.ioctl(reading, termios.FIONREAD, bytes(4)))
        left.append(count)
        assert reading.recv(1) == b"1"
        assert what == "queue"

    with reading, writing:
        for count in (1, 2, 200):
            writing.send(b"1" * count)
            grpc_events._take_all(reading, callback, ("queue",))
    assert left == [1, 1, 1]


@pytest.mark.usefixtures("all_events")
async def test_it_is_grpcs_own_reader_that_is_wrapped() -> None:
    """A grpcio that asks the loop otherwise needs another look at ``base/grpc_events.py``."""
    loop: Any = asyncio.get_running_loop()  # Any: its table of readers is nobody's business elsewhere
    callbacks = [key.data[0] for key in loop._selector.get_map().values() if key.data[0] is not None]
    assert any("_take_all" in repr(callback) and "_handle_events" in repr(callback._args) for callback in callbacks)
    assert "add_reader" not in vars(loop)
