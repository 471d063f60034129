"""Batches of writes (feature A3.09)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable

import pytest

from manager.consensus.port import ConsensusError
from manager.dispatcher.intake import Change, Intake, WriterStoppedError, put
from manager.store import StoreError, Working
from proto.objects_pb2 import Task
from tests.unit.dispatcher.support import Manager, make_task


@pytest.fixture
async def manager() -> AsyncIterator[Manager]:
    manager = Manager()
    await manager.start()
    yield manager
    await manager.stop()


def opened(manager: Manager) -> Intake:
    intake = Intake(manager.store)
    intake.open()
    return intake


def rename(task_id: str, slot: int) -> Change:
    def change(working: Working) -> None:
        old = working.tasks.get(task_id)
        assert old is not None
        copy = Task()
        copy.CopyFrom(old)
        copy.slot = slot
        put(working, copy)

    return change


async def test_what_waits_becomes_one_entry(manager: Manager) -> None:
    await manager.add(*[make_task(f"t{number}", "n1") for number in range(100)])
    intake, before = opened(manager), manager.proposals
    async with asyncio.TaskGroup() as group:
        running = group.create_task(intake.run())
        async with asyncio.TaskGroup() as writers:
            for number in range(100):
                writers.create_task(intake.submit(rename(f"t{number}", 7)))
        running.cancel()
    assert manager.proposals - before <= 2
    assert all(task.slot == 7 for task in manager.store.view.tasks.values())


async def test_a_batch_larger_than_an_entry_is_split(manager: Manager) -> None:
    for begin in (0, 200, 400):
        await manager.add(*[make_task(f"t{number}", "n1") for number in range(begin, begin + 200)])
    intake = opened(manager)

    def all_of_them(working: Working) -> None:
        for task in list(working.tasks.values()):
            rename(task.id, 9)(working)

    async with asyncio.TaskGroup() as group:
        running = group.create_task(intake.run())
        await intake.submit(all_of_them, weight=600)
        running.cancel()
    assert all(task.slot == 9 for task in manager.store.view.tasks.values())


async def test_a_change_that_breaks_ends_neither_the_writer_nor_what_waits_with_it(manager: Manager) -> None:
    await manager.add(make_task("t1", "n1"))
    intake = opened(manager)

    def broken(working: Working) -> None:
        raise ValueError("what is that")

    async with asyncio.TaskGroup() as group:
        bad = group.create_task(_outcome(intake.submit(broken)))
        good = group.create_task(_outcome(intake.submit(rename("t1", 3))))
        running = group.create_task(intake.run())
        await asyncio.wait([bad, good, running], return_when=asyncio.FIRST_EXCEPTION, timeout=10)
        assert not running.done()
        running.cancel()
    assert str(bad.result()) == "ValueError: what is that"
    assert good.result() is None
    assert manager.task("t1").slot == 3


async def test_a_conflict_is_tried_again(manager: Manager) -> None:
    await manager.add(make_task("t1", "n1"))
    intake = opened(manager)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(intake.run())
        async with asyncio.TaskGroup() as writers:
            writers.create_task(intake.submit(rename("t1", 3)))
            writers.create_task(
                manager.edit("tasks", "t1", lambda task: setattr(task, "desired_state", 640)),
            )
        running.cancel()
    assert (manager.task("t1").slot, manager.task("t1").desired_state) == (3, 640)


async def test_one_bad_write_does_not_fail_the_others(manager: Manager) -> None:
    await manager.add(make_task("t1", "n1"))
    intake = opened(manager)

    def impossible(working: Working) -> None:
        for number in range(300):  # one piece that no entry can hold
            working.create(make_task(f"new{number}", "n1"))

    async with asyncio.TaskGroup() as group:
        bad = group.create_task(_outcome(intake.submit(impossible)))
        good = group.create_task(_outcome(intake.submit(rename("t1", 4))))
        running = group.create_task(intake.run())
        await asyncio.wait([bad, good])
        running.cancel()
    assert isinstance(bad.result(), StoreError)
    assert good.result() is None
    assert manager.task("t1").slot == 4


async def test_who_waits_when_leadership_ends_is_told(manager: Manager) -> None:
    intake = opened(manager)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(_outcome(intake.submit(lambda working: None)))
        await asyncio.sleep(0)
        intake.stop()
    assert isinstance(waiting.result(), WriterStoppedError)
    assert isinstance(await _outcome(intake.submit(lambda working: None)), WriterStoppedError)


async def _outcome(write: Awaitable[None]) -> Exception | None:
    try:
        await write
    except (StoreError, ConsensusError) as error:
        return error
    return None
