"""The assignment file (features D10, X18)."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from proto.dispatcher_pb2 import AssignmentChange, AssignmentKey, AssignmentKind
from proto.objects_pb2 import Config, Secret, SpecVersion, TaskState, TaskStatus
from tests.unit.dispatcher.support import make_spec_version, make_task
from worker.agent.assignments import ReceivedAssignments
from worker.agent.contents import Contents, change_of
from worker.agent.persistence import FILE_NAME, SLACK_BYTES, AgentStateError, AssignmentFile

RUNNING = TaskStatus(state=TaskState.TASK_STATE_RUNNING, message="started")


def make_file(folder: Path) -> AssignmentFile:
    file = AssignmentFile(folder, "n1")
    file.load()
    return file


def task_change(task_id: str) -> AssignmentChange:
    return change_of(make_task(task_id, "n1"))


def removal(task_id: str) -> AssignmentChange:
    return AssignmentChange(kind=AssignmentKind.ASSIGNMENT_KIND_TASK, id=task_id)


async def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    file = make_file(tmp_path)
    version = make_spec_version("web")
    version.spec.task_template.registry_auth = "c2VjcmV0"
    config, secret = Config(id="c1"), Secret(id="s1")
    config.spec.data, secret.spec.data = b"settings", b"hunter2"
    file.put_changes(
        [
            change_of(version),
            change_of(config),
            change_of(secret),
            task_change("t1"),
            task_change("t2"),
        ]
    )
    file.put_status("t1", RUNNING)
    file.put_status("stranger", RUNNING)
    await file.flush()
    file.put_changes([removal("t2")])
    await file.flush()

    data = (tmp_path / FILE_NAME).read_bytes()
    assert b"hunter2" not in data
    assert b"c2VjcmV0" not in data
    assert os.stat(tmp_path / FILE_NAME).st_mode & 0o777 == 0o600
    contents, statuses = AssignmentFile(tmp_path, "n1").load()
    assert set(contents.tasks) == {"t1"}
    assert set(contents.of(SpecVersion)) == {"web.1"}
    assert contents.of(Config)["c1"] == config
    assert contents.of(Secret) == {}
    assert statuses == {"t1": RUNNING}


async def test_a_task_whose_secret_was_never_written_is_not_whole_after_a_restart(tmp_path: Path) -> None:
    needs = [
        AssignmentKey(kind=AssignmentKind.ASSIGNMENT_KIND_SPEC_VERSION, id="web.1"),
        AssignmentKey(kind=AssignmentKind.ASSIGNMENT_KIND_SECRET, id="s1"),
        AssignmentKey(kind=AssignmentKind.ASSIGNMENT_KIND_CONFIG, id="c1"),
    ]
    before = Contents(make_spec_version("web"), Config(id="c1"), Secret(id="s1"))
    before.put(change_of(make_task("t1", "n1"), needs), "n1")
    file = make_file(tmp_path)
    file.replace(before)
    await file.flush()
    contents, _ = AssignmentFile(tmp_path, "n1").load()
    assignment = ReceivedAssignments("n1", contents).assignment("t1")
    assert assignment is not None
    assert set(assignment.needed.of(Config)) == {"c1"}
    assert not assignment.is_whole
    contents.put(change_of(Secret(id="s1")), "n1")
    assignment = ReceivedAssignments("n1", contents).assignment("t1")
    assert assignment is not None
    assert assignment.is_whole


async def test_a_complete_set_replaces_everything(tmp_path: Path) -> None:
    file = make_file(tmp_path)
    file.put_changes([task_change("t1"), task_change("t2")])
    file.put_status("t2", RUNNING)
    await file.flush()
    file.replace(Contents(make_task("t2", "n1"), make_task("t3", "n1")))
    await file.flush()
    contents, statuses = AssignmentFile(tmp_path, "n1").load()
    assert set(contents.tasks) == {"t2", "t3"}
    assert set(statuses) == {"t2"}


async def test_the_file_stays_small_however_many_tasks_come_and_go(tmp_path: Path) -> None:
    file = make_file(tmp_path)
    for number in range(3000):
        file.put_changes([task_change(f"t{number}")])
        file.put_status(f"t{number}", RUNNING)
        file.put_changes([removal(f"t{number}")])
        if number % 100 == 0:
            await file.flush()
            assert (tmp_path / FILE_NAME).stat().st_size < SLACK_BYTES + 50_000
    await file.flush()
    assert AssignmentFile(tmp_path, "n1").load()[0].tasks == {}


async def test_a_tail_torn_at_any_byte_is_cut(tmp_path: Path) -> None:
    file = make_file(tmp_path)
    file.put_changes([task_change("t1")])
    await file.flush()
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    file.put_changes([task_change("t2")])
    await file.flush()
    longer = path.read_bytes()
    for length in range(len(longer)):
        path.write_bytes(longer[:length])
        reader = AssignmentFile(tmp_path, "n1")
        contents, _ = reader.load()
        assert set(contents.tasks) == ({"t1"} if length >= len(whole) else set())
        reader.put_changes([task_change("t3")])
        await reader.flush()
        assert "t3" in AssignmentFile(tmp_path, "n1").load()[0].tasks


async def test_a_flipped_byte_costs_what_is_behind_it_and_no_more(tmp_path: Path) -> None:
    file = make_file(tmp_path)
    file.put_changes([task_change("t1"), task_change("t2")])
    await file.flush()
    path = tmp_path / FILE_NAME
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(data)
    assert set(AssignmentFile(tmp_path, "n1").load()[0].tasks) == {"t1"}


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    for header in (b"swarm-agent 9\n", b"swarm-agent 2\n"):
        (tmp_path / FILE_NAME).write_bytes(header + b"xxxx")
        with pytest.raises(AgentStateError, match="of this version"):
            AssignmentFile(tmp_path, "n1").load()


async def test_a_disk_that_does_not_take_it_is_tried_again(tmp_path: Path) -> None:
    file = make_file(tmp_path)
    file.put_changes([task_change("t1")])
    assert await file.flush()
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    file.put_changes([task_change("t2")])
    assert not await file.flush()
    moved.rename(tmp_path)
    assert await file.flush()
    assert set(AssignmentFile(tmp_path, "n1").load()[0].tasks) == {"t1", "t2"}


async def test_no_write_that_was_cut_short_comes_after_the_file_was_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow_fsync(descriptor: int, fsync: Callable[[int], None] = os.fsync) -> None:
        begun.set()
        go_on.wait(30)
        fsync(descriptor)

    file = make_file(tmp_path)
    file.put_changes([task_change("t1")])
    monkeypatch.setattr(os, "fsync", slow_fsync)
    writing = asyncio.ensure_future(file.run())
    assert await asyncio.to_thread(begun.wait, 30)
    writing.cancel()
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await writing
    file.clear()
    go_on.set()
    await asyncio.get_running_loop().shutdown_default_executor()  # whatever still writes
    assert list(tmp_path.iterdir()) == []
