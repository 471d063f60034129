"""Work that an event may cut short."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, _Result]) -> _Result | None:
    """Do ``work``, but cancel it when ``event`` is set first (or is set already); None then.

    Returns when the work has ended either way. What it raises is raised, also while it is being cancelled.
    """
    loop = asyncio.get_running_loop()
    working = loop.create_task(work, name="work that may be cut short")
    cut = loop.create_task(event.wait(), name="cut short")
    try:
        await asyncio.wait({working, cut}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        cut.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})
    return None if working.cancelled() else working.result()
