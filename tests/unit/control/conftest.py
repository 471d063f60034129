"""A control service over the real store and a log of one member."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.unit.control.managed import Managed, running_manager


@pytest_asyncio.fixture
async def manager() -> AsyncIterator[Managed]:
    async with running_manager() as managed:
        yield managed
