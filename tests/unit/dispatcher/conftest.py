"""What the tests with a manager and an agent share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.dispatcher.support import AgentHost, Manager, leading_manager, make_node, make_spec_version


@pytest.fixture
async def manager() -> AsyncIterator[Manager]:
    """A leading one that knows the node n1 and the service web."""
    async with leading_manager() as manager:
        await manager.add(make_node("n1"), make_spec_version("web"))
        yield manager


@pytest.fixture
async def host(manager: Manager, tmp_path: Path) -> AsyncIterator[AgentHost]:
    """The agent of n1, not started."""
    host = AgentHost("n1", tmp_path / "n1", [manager.addr])
    yield host
    await host.stop()
