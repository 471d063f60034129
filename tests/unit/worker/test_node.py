"""What a host answers to init, join and leave in each of its states (features A1.01 to A1.18). Real managers."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.worker.support import Place, place, until
from worker.membership import InitRequest


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Place]:
    """A host in no swarm."""
    async with place(tmp_path / "a") as made:
        yield made


@pytest.fixture
async def manager(alone: Place) -> Place:
    """The only manager of a swarm."""
    await alone.node.init(InitRequest(listen_addr=alone.listen, advertise_addr=alone.listen))
    return alone


# The manager process of a node


async def test_a_manager_that_died_answers_again_once_it_is_started_again(manager: Place) -> None:
    first = manager.manager_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: not manager.node.info().control_available)
    await until(lambda: manager.node.info().control_available)
    assert manager.manager_pid not in (None, first)


async def test_a_manager_that_outlived_its_node_is_found_and_still_watched(manager: Place) -> None:
    first = manager.manager_pid
    assert first is not None
    await manager.restart_after_kill()
    await until(lambda: manager.node.info().control_available)
    assert manager.manager_pid == first
    os.kill(first, signal.SIGKILL)
    await until(lambda: not manager.node.info().control_available)
    await until(lambda: manager.node.info().control_available)
    assert manager.manager_pid not in (None, first)
