"""Looking at a host: anything that comes back is an answer."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from manager.dispatcher import looking
from manager.dispatcher.looking import Answer, Looker

HERE = "127.0.0.1"


def stand_still() -> None:
    """The whole process, as a pause does it."""
    time.sleep(0.5)


@contextmanager
def silent_port() -> Iterator[int]:
    """A port whose queue is full: the kernel drops what comes, as a firewall or a dead host does."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind((HERE, 0))
        server.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]


async def test_a_welcome_and_a_refusal_are_answers() -> None:
    with closing(socket.create_server((HERE, 0))) as server:
        port = server.getsockname()[1]
        assert await Looker().look(HERE, port) is Answer.ANSWERED
    assert await Looker().look(HERE, port) is Answer.ANSWERED


async def test_no_answer_in_time_is_silence_and_nothing_is_left_open() -> None:
    with silent_port() as port:
        before = len(os.listdir("/proc/self/fd"))
        assert await Looker().look(HERE, port, within_s=0.3) is Answer.SILENT
        assert len(os.listdir("/proc/self/fd")) == before


async def test_an_answer_to_a_later_attempt_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "ATTEMPTS_S", (0.0, 0.2))
    with silent_port() as port:
        look = asyncio.ensure_future(Looker().look(HERE, port, within_s=30.0))
        await asyncio.sleep(0.05)
        assert not look.done()
    assert await look is Answer.ANSWERED  # the port is closed now, and refuses


async def test_what_cannot_be_asked_is_not_silent() -> None:
    for host in ("255.255.255.255", "worker-1", ""):
        assert await Looker().look(host, 7946, within_s=0.1) is Answer.UNABLE


async def test_a_process_that_stood_still_has_not_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "LATE_S_MAX", 0.1)
    with silent_port() as port:
        look = asyncio.ensure_future(Looker().look(HERE, port, within_s=0.2))
        await asyncio.sleep(0.05)
        stand_still()
        assert await look is Answer.UNABLE


async def test_an_answer_that_came_while_the_process_stood_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "LATE_S_MAX", 0.1)
    monkeypatch.setattr(asyncio.get_running_loop(), "add_writer", lambda *_args: None)  # nothing tells of it
    with closing(socket.create_server((HERE, 0))) as server:
        look = asyncio.ensure_future(Looker().look(HERE, server.getsockname()[1], within_s=0.2))
        await asyncio.sleep(0.05)
        stand_still()
        assert await look is Answer.ANSWERED


async def test_a_bounded_number_is_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "LOOKS_AT_ONCE_MAX", 5)
    looker = Looker()
    with silent_port() as port:
        before = len(os.listdir("/proc/self/fd"))
        looks = [asyncio.ensure_future(looker.look(HERE, port, within_s=0.1)) for _ in range(15)]
        while not all(look.done() for look in looks):
            assert len(os.listdir("/proc/self/fd")) <= before + 5 * len(looking.ATTEMPTS_S)
            await asyncio.sleep(0.02)
    assert {look.result() for look in looks} == {Answer.SILENT}
