"""Frames, detach keys, progress and connections taken over from HTTP (feature W08)."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from api.streams import (
    PROGRESS_PENDING_MAX,
    READ_AHEAD_BYTES_MAX,
    DetachKeys,
    ProgressQueue,
    frame,
    parse_detach_keys,
)
from runtime.errors import StartError
from tests.unit.api.conftest import Client
from tests.unit.api.fakes import CONTAINER_ID, FakeEngine

DEADLINE_S = 30.0


def test_frame_has_stream_number_and_length_in_big_endian() -> None:
    assert frame("stdout", b"hello") == b"\x01\0\0\0\0\0\0\x05hello"
    assert frame("stderr", b"x" * 70_000)[:8] == b"\x02\0\0\0\0\x01\x11\x70"


@pytest.mark.parametrize(
    ("text", "keys"),
    [("", b"\x10\x11"), ("ctrl-p,ctrl-q", b"\x10\x11"), ("ctrl-@,a,ctrl-[", b"\0a\x1b"), ("x", b"x")],
)
def test_detach_keys_are_parsed(text: str, keys: bytes) -> None:
    assert parse_detach_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "abc", "a,,b", "ctrl-ä", "é"])
def test_detach_keys_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Unknown character"):
        parse_detach_keys(text)


@pytest.mark.parametrize(
    ("keys", "typed", "passed", "detached"),
    [
        (b"\x10\x11", b"ls\n\x10\x11rest", b"ls\n", True),
        (b"\x10\x11", b"\x10x\x10\x10\x11", b"\x10x\x10", True),
        (b"\x10\x11", b"a\x10b", b"a\x10b", False),
        (b"aab", b"aaab", b"a", True),
        (b"", b"\x10\x11", b"\x10\x11", False),
    ],
)
def test_detach_keys_are_found_however_the_input_is_split(
    keys: bytes, typed: bytes, passed: bytes, detached: bool
) -> None:
    for cuts in itertools.product((0, 1), repeat=len(typed) - 1):
        reads, start = [], 0
        for offset, cut in enumerate(cuts, 1):
            if cut:
                reads.append(typed[start:offset])
                start = offset
        reads.append(typed[start:])
        finder, out, found = DetachKeys(keys), b"", False
        for read in reads:
            data, found = finder.feed(read)
            out += data
            if found:
                break
        assert (out, found) == (passed, detached), reads


async def test_progress_drops_intermediate_states_only_when_the_client_lags() -> None:
    queue = ProgressQueue()
    for step in range(PROGRESS_PENDING_MAX * 2):
        queue({"status": "Downloading", "progressDetail": {"current": step}})
    queue({"status": "Pull complete"})
    queue.end()
    lines = (await queue.next_lines()).splitlines()
    assert len(lines) == PROGRESS_PENDING_MAX + 1
    assert lines[-1] == b'{"status":"Pull complete"}'
    assert await queue.next_lines() == b""


# ---------------------------------------------------------------- hijack


class Wire:
    """A client that speaks HTTP by hand, so that it may close one direction."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, client: Client, path: str, *headers: str, body: bytes = b"") -> Wire:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        return cls(reader, writer)

    async def head(self) -> str:
        return (await self.reader.readuntil(b"\r\n\r\n")).decode()


UPGRADE = ("Connection: Upgrade", "Upgrade: tcp")
ATTACH = "/v1.44/containers/web/attach?stream=1&stdin=1&stdout=1&stderr=1"


async def test_attach_is_a_duplex_stream_whose_directions_end_alone(client: Client, engine: FakeEngine) -> None:
    async with asyncio.timeout(DEADLINE_S):
        wire = await Wire.open(client, ATTACH, *UPGRADE)
        assert await wire.head() == (
            "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\n"
            "Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        )
        wire.writer.write(b"input")
        wire.writer.write_eof()
        await engine.stream.stdin_closed.wait()
        assert engine.stream.received == b"input"
        engine.stream.say("stderr", b"late")
        engine.stream.finish()
        assert await wire.reader.read() == frame("stderr", b"late")
        wire.writer.close()
        await engine.stream.closed.wait()


@pytest.mark.parametrize(
    ("path", "headers", "head"),
    [
        (ATTACH, (), "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"),
        (ATTACH.replace("1.44", "1.41"), UPGRADE, "raw-stream"),
    ],
)
async def test_older_clients_get_the_older_head(
    client: Client, engine: FakeEngine, path: str, headers: tuple[str, ...], head: str
) -> None:
    async with asyncio.timeout(DEADLINE_S):
        wire = await Wire.open(client, path, *headers)
        assert head in await wire.head()
        engine.stream.finish()
        assert await wire.reader.read() == b""
        wire.writer.close()


async def test_detach_keys_end_the_stream_and_leave_the_process(client: Client, engine: FakeEngine) -> None:
    engine.set_tty()
    subscription = engine.events.subscribe()
    async with asyncio.timeout(DEADLINE_S):
        wire = await Wire.open(client, ATTACH, *UPGRADE)
        await wire.head()
        engine.stream.say("stdout", b"raw")
        assert await wire.reader.readexactly(3) == b"raw"
        wire.writer.write(b"ls\x10")
        wire.writer.write(b"\x11")
        assert await wire.reader.read() == b""
        assert engine.stream.received == b"ls"
        wire.writer.close()
        message = await anext(aiter(subscription))
    assert (message.Action, message.Actor.ID) == ("detach", CONTAINER_ID)


async def test_client_that_vanishes_ends_the_attach(client: Client, engine: FakeEngine) -> None:
    async with asyncio.timeout(DEADLINE_S):
        wire = await Wire.open(client, ATTACH, *UPGRADE)
        await wire.head()
        wire.writer.transport.abort()  # the server sees the end of the input, as of a client that goes on reading
        while not engine.stream.closed.is_set():
            engine.stream.say("stdout", b"anybody?")
            await asyncio.sleep(0)


async def test_input_waits_while_the_process_does_not_read(client: Client, engine: FakeEngine) -> None:
    """The server keeps at most its read-ahead and what the kernel buffers; nothing is lost."""
    may_read = asyncio.Event()
    write = engine.stream.write

    async def slow_write(data: bytes) -> None:
        await may_read.wait()
        await write(data)

    engine.stream.write = slow_write  # type: ignore[method-assign] # one method of a fake
    total = READ_AHEAD_BYTES_MAX * 64
    async with asyncio.timeout(DEADLINE_S):
        wire = await Wire.open(client, ATTACH, *UPGRADE)
        await wire.head()
        wire.writer.write(b"x" * total)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await wire.writer.drain()
        may_read.set()
        await wire.writer.drain()
        wire.writer.write_eof()
        await engine.stream.stdin_closed.wait()
        assert len(engine.stream.received) == total
        engine.stream.finish()
        await wire.reader.read()
        wire.writer.close()


async def test_exec_starts_on_a_stream_or_detached(client: Client, engine: FakeEngine) -> None:
    made = await client.post("/containers/web/exec", json={"Cmd": ["sh"], "AttachStdin": True})
    assert (made.status, await made.json()) == (201, {"Id": "e" * 64})
    assert (await client.post("/containers/web/exec", json={"Cmd": []})).status == 400
    detached = await client.post(f"/exec/{'e' * 64}/start", json={"Detach": True})
    assert detached.status == 200
    headers = (*UPGRADE, "Content-Type: application/json")
    async with asyncio.timeout(DEADLINE_S):
        wire = await Wire.open(client, f"/exec/{'e' * 64}/start", *headers, body=b'{"Detach":false}')
        assert "101 UPGRADED" in await wire.head()
        engine.stream.say("stdout", b"out")
        engine.stream.finish()
        assert await wire.reader.read() == frame("stdout", b"out")
        wire.writer.close()


async def test_exec_that_cannot_start_says_so_in_its_stream(client: Client, engine: FakeEngine) -> None:
    engine.exec_error = StartError("OCI runtime exec failed: no such file", exit_code=127)
    async with asyncio.timeout(DEADLINE_S):
        headers = (*UPGRADE, "Content-Type: application/json")
        wire = await Wire.open(client, f"/exec/{'e' * 64}/start", *headers, body=b"{}")
        assert "101 UPGRADED" in await wire.head()
        assert await wire.reader.read() == frame("stdout", b"OCI runtime exec failed: no such file\r\n")
        wire.writer.close()
    refused = await client.post(f"/exec/{'e' * 64}/start", json={"Detach": True})
    assert refused.status == 400
