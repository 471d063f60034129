"""The store against a plain dictionary: whatever is written, tables and indexes show just that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.store import ObjectExistsError, ObjectNotFoundError, SequenceConflictError, StoreError, Working
from manager.store.machine import Machine
from manager.store.mutation import MutationDetector
from manager.store.views import View
from proto.objects_pb2 import Task
from proto.store_pb2 import Transaction

IDS = [f"t{number}" for number in range(6)]

operations = st.lists(
    st.tuples(
        st.sampled_from(["create", "update", "stale", "remove", "boundary"]),
        st.sampled_from(IDS),
        st.integers(1, 3),
        st.sampled_from(["", "n1", "n2"]),
    ),
    max_size=12,
)


def check(view: View, expected: dict[str, tuple[int, str]]) -> None:
    tasks = view.tasks
    assert {task.id: (task.slot, task.node_id) for task in tasks} == expected
    assert len(tasks) == len(expected)
    for slot in (1, 2, 3):
        wanted = {task_id for task_id, (its_slot, _) in expected.items() if its_slot == slot}
        assert {task.id for task in tasks.by_slot("s", slot)} == wanted
        assert tasks.any_of_spec_version("s", slot) == bool(wanted)
    for node_id in ("", "n1", "n2"):
        wanted = {task_id for task_id, (_, its_node) in expected.items() if its_node == node_id}
        assert {task.id for task in tasks.by_node(node_id)} == wanted
    for task_id in IDS:
        assert (task_id in tasks) == (task_id in expected)


def write(
    working: Working, expected: dict[str, tuple[int, str]], operation: tuple[str, str, int, str], gone: set[str]
) -> None:
    verb, task_id, slot, node_id = operation
    current = working.tasks.get(task_id)
    task = Task(id=task_id, service_id="s", slot=slot, spec_version=slot, node_id=node_id)
    if current is not None:
        task.version.CopyFrom(current.version)
    if verb == "boundary":
        working.boundary()
    elif verb == "create":
        refused = task_id in expected or task_id in gone
        _expect(working.create, task, ObjectExistsError if refused else None)
        if not refused:
            expected[task_id] = (slot, node_id)
    elif verb == "update":
        _expect(working.update, task, None if task_id in expected else ObjectNotFoundError)
        if task_id in expected:
            expected[task_id] = (slot, node_id)
    elif verb == "stale":
        task.version.index += 1
        _expect(working.update, task, SequenceConflictError if task_id in expected else ObjectNotFoundError)
    elif task_id in expected:
        working.remove(task)
        del expected[task_id]
        if task.version.index:
            gone.add(task_id)
    else:
        _expect(working.remove, task, ObjectNotFoundError)


def _expect(call: Callable[[Task], None], task: Task, error: type[StoreError] | None) -> None:
    if error is None:
        call(task)
    else:
        with pytest.raises(error):
            call(task)


@settings(max_examples=150, deadline=None)
@given(transactions=st.lists(operations, max_size=6))
def test_tables_and_indexes_show_what_was_written(transactions: list[list[tuple[str, str, int, str]]]) -> None:
    machine = Machine(MutationDetector())
    expected: dict[str, tuple[int, str]] = {}
    for index, writes in enumerate(transactions, start=1):
        working, gone = machine.begin(), set[str]()
        before = dict(expected)
        for operation in writes:
            write(working, expected, operation, gone)
            check(working, expected)
            check(machine.view, before)
        assert sum(len(group) for group in working.groups()) == len(working.actions) == working.size
        data = Transaction(id=str(index), actions=working.actions).SerializeToString()
        result, changes = machine.apply(index, data)
        assert result == index
        check(machine.view, expected)
        assert len({(change.kind, change.id) for change in changes}) == len(changes)
        other = Machine()
        other.load(machine.snapshot()(), index)()
        check(other.view, expected)
