"""When a process that was refused threads begins anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from base.refused_threads import CALM_PROBES, threads_were_refused


def probes(answers: str) -> tuple[Callable[[], None], Iterator[str]]:
    """Each begins a thread (``y``) or is refused one (``n``); all after the last begin one."""
    left = iter(answers)

    def begin() -> None:
        if next(left, "y") == "n":
            raise RuntimeError("can't start new thread")

    return begin, left


@pytest.mark.parametrize("answers", ["n", "yyn", "nnn", "n" + "y" * (CALM_PROBES - 1) + "n"])
async def test_it_is_over_when_threads_have_begun_for_some_seconds(answers: str) -> None:
    begin, left = probes(answers + "y" * CALM_PROBES + "?")
    async with asyncio.timeout(20):
        await threads_were_refused(begin, period_s=0)
    assert next(left) == "?", "neither sooner nor later"


async def test_where_all_is_well_it_never_is() -> None:
    begin, _ = probes("")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await threads_were_refused(begin, period_s=0)


async def test_a_thread_can_be_had_here() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await threads_were_refused(period_s=0)
