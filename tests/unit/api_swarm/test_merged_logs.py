"""Logs of several tasks as one: by time, the newest last, the same each time (features A5.10)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from api.swarm_routes.merged_logs import send_merged
from runtime.types import LogLine
from tests.waiting import until


async def told(*times: int, slow: bool = False, then: asyncio.Event | None = None) -> AsyncIterator[LogLine]:
    """Lines of these times; the log goes on until ``then``, when it has one."""
    for time in times:
        if slow:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        yield LogLine(stream="stdout", timestamp_ns=time, data=b"%d\n" % time)
    if then is not None:
        await then.wait()


async def test_lines_are_merged_by_time_however_fast_the_logs_are_read() -> None:
    for slow in (0, 1, 2):
        sent: list[tuple[str, int]] = []

        async def send(name: str, line: LogLine, sent: list[tuple[str, int]] = sent) -> None:
            sent.append((name, line.timestamp_ns))

        times = [range(0, 600, 3), range(1, 600, 3), [2, 2, 5, 900]]
        logs = [(name, told(*each, slow=at == slow)) for at, (name, each) in enumerate(zip("abc", times, strict=True))]
        await send_merged(logs, send, follow=False)
        assert [time for _, time in sent] == sorted(time for each in times for time in each)
        assert sent[-1] == ("c", 900)


async def test_of_the_same_time_the_order_is_that_of_the_logs() -> None:
    sent: list[str] = []

    async def send(name: str, _line: LogLine) -> None:
        sent.append(name)

    await send_merged([(name, told(5, 5)) for name in "abc"], send, follow=False)
    assert sent == ["a", "a", "b", "b", "c", "c"]


async def test_a_log_that_is_silent_holds_no_followed_one_up() -> None:
    """Its past is told, and what the others say goes out as it comes."""
    sent: list[tuple[str, int]] = []
    end = asyncio.Event()

    async def send(name: str, line: LogLine) -> None:
        sent.append((name, line.timestamp_ns))

    async with asyncio.TaskGroup() as group:
        logs = [("quiet", told(then=end)), ("old", told(1, 3, then=end)), ("new", told(2, 4, then=end))]
        group.create_task(send_merged(logs, send, follow=True))
        await until(lambda: len(sent) == 4)
        assert sent == [("old", 1), ("new", 2), ("old", 3), ("new", 4)]
        end.set()


async def test_a_client_that_goes_away_ends_it() -> None:
    async def send(_name: str, _line: LogLine) -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await send_merged([("a", told(1, then=asyncio.Event()))], send, follow=True)
