"""Who may move a task's states: one table, one owner each, only upwards (features A6.01, A6.02); and one writer."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from manager.model.tasks import new_task
from manager.model.transitions import (
    ON_NODE,
    REPORTABLE,
    TRANSITIONS,
    UNASSIGNED,
    InvariantError,
    Owner,
    replace_status,
    set_desired,
    set_status,
    with_desired,
)
from proto.objects_pb2 import (
    TASK_STATE_ASSIGNED,
    TASK_STATE_COMPLETE,
    TASK_STATE_NEW,
    TASK_STATE_ORPHANED,
    TASK_STATE_PENDING,
    TASK_STATE_READY,
    TASK_STATE_REJECTED,
    TASK_STATE_REMOVE,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    Service,
    Task,
    TaskState,
    TaskStatus,
)
from proto.task_states import state_name

ROOT = Path(__file__).parents[3]
MANAGER = ROOT / "manager"
PAGE = (ROOT / "docs/design/orchestration.md").read_text()

SHARED = {
    TASK_STATE_REJECTED: {Owner.AGENT, Owner.CONSTRAINT_ENFORCER},  # by its node, or because its node may not bear it
    TASK_STATE_ORPHANED: {Owner.ORPHANER, Owner.CONTROL},  # its node does not come back, or is removed by hand
}
"""Where two owners are meant: an end that more than one may find. All other transitions have one."""


def owners() -> dict[tuple[TaskState.ValueType, TaskState.ValueType], set[Owner]]:
    found = defaultdict(set)
    for owner, transitions in TRANSITIONS.items():
        for transition in transitions:
            found[transition].add(owner)
    return found


def test_the_design_page_has_the_table() -> None:
    rows = re.findall(
        r"^\| ([a-z A-Z]+?)(?:,[^|]*| \([^|]*)? \| ([A-Z][^|:]*) \| ([A-Z][^|:]*)(?::[^|]*)? \|$", PAGE, re.MULTILINE
    )
    assert {owner: (states(before), states(after)) for owner, before, after in rows} == {
        owner.value: ({before for before, _ in table}, {after for _, after in table})
        for owner, table in TRANSITIONS.items()
    }


def states(text: str) -> set[TaskState.ValueType]:
    """``A, B to D`` as the page writes it."""
    found = set()
    for part in text.split(", "):
        first, _, last = part.strip().partition(" to ")
        low, high = (TaskState.Value(f"TASK_STATE_{name}") for name in (first, last or first))
        found |= {
            state for state in TaskState.values() if low <= state <= high and state != TaskState.TASK_STATE_ALLOCATED
        }
    return found


def test_every_owner_has_a_row() -> None:
    assert TRANSITIONS.keys() == set(Owner)


def test_states_only_rise() -> None:
    for transitions in TRANSITIONS.values():
        assert all(after > before for before, after in transitions)


def test_every_transition_has_one_owner_but_the_ends_that_two_may_find() -> None:
    for (before, after), who in owners().items():
        if len(who) > 1:
            assert before in ON_NODE
            assert who == SHARED[after]


def test_every_transition_can_happen() -> None:
    reached, more = set(), {TASK_STATE_NEW}
    while more:
        reached |= more
        more = {after for before, after in owners() if before in reached} - reached
    assert {before for before, _ in owners()} <= reached
    assert reached == set(TaskState.values()) - {
        TaskState.TASK_STATE_ALLOCATED,  # swarmkit's; the allocator ends at PENDING
        TASK_STATE_REMOVE,  # only ever desired
    }


def test_what_has_ended_stays_so() -> None:
    assert {before for before, _ in owners()} == {*UNASSIGNED, *ON_NODE}


def test_what_an_agent_has_is_its_own_but_for_three() -> None:
    touching = {owner for (before, _), who in owners().items() if before in ON_NODE for owner in who}
    assert touching == {Owner.AGENT, Owner.CONSTRAINT_ENFORCER, Owner.ORPHANER, Owner.CONTROL}
    assert {after for before, after in TRANSITIONS[Owner.AGENT]} == set(REPORTABLE)
    assert max(UNASSIGNED) < min(ON_NODE)
    assert (min(ON_NODE), max(ON_NODE)) == (TASK_STATE_ASSIGNED, TASK_STATE_RUNNING)


@pytest.mark.parametrize("owner", list(Owner))
def test_everything_else_raises(owner: Owner) -> None:
    for before, after in product(TaskState.values(), TaskState.values()):
        task = Task(id="t1", status=TaskStatus(state=before))
        replaced = Task(id="t1", status=TaskStatus(state=before))
        if (before, after) in TRANSITIONS[owner]:
            set_status(task, owner, after, "moved", 1.0)
            assert task.status.state == after
            replace_status(replaced, owner, TaskStatus(state=after, message="moved"))
            assert replaced.status == TaskStatus(state=after, message="moved")
            continue
        with pytest.raises(InvariantError, match=f"the {owner.value} may not move it"):
            set_status(task, owner, after, "moved", 1.0)
        assert task.status.state == before
        if owner is Owner.AGENT and before == after:
            continue
        with pytest.raises(InvariantError, match=f"the {owner.value} may not move it"):
            replace_status(replaced, owner, TaskStatus(state=after))
        assert replaced.status.state == before


def test_an_agent_may_say_more_of_the_state_it_reported() -> None:
    task = Task(id="t1", status=TaskStatus(state=TASK_STATE_RUNNING, message="started"))
    replace_status(task, Owner.AGENT, TaskStatus(state=TASK_STATE_RUNNING, message="healthy"))
    assert task.status.message == "healthy"


def test_a_broken_invariant_tells_the_story_of_the_task() -> None:
    task = Task(id="t1", service_id="s1", slot=3, node_id="n1", spec_version=7, desired_state=TASK_STATE_RUNNING)
    task.status.CopyFrom(TaskStatus(state=TASK_STATE_COMPLETE, message="finished"))
    with pytest.raises(InvariantError) as raised:
        set_status(task, Owner.SCHEDULER, TASK_STATE_ASSIGNED, "placed", 1.0)
    told = str(raised.value)
    assert all(part in told for part in ("t1", "s1", "slot 3", "n1", "version 7", "COMPLETE", "finished", "RUNNING"))
    assert "the scheduler may not move it to ASSIGNED" in told


@pytest.mark.parametrize(("before", "after"), list(product(TaskState.values(), TaskState.values())))
def test_desired_states_only_rise(before: TaskState.ValueType, after: TaskState.ValueType) -> None:
    task = Task(id="t1", desired_state=before, status=TaskStatus(state=TASK_STATE_RUNNING))
    if after >= before:
        assert with_desired(task, after, 1.0).desired_state == after
    else:
        with pytest.raises(InvariantError, match="cannot fall"):
            with_desired(task, after, 1.0)
    assert task.desired_state == before


def test_what_no_agent_has_stops_when_it_is_told_to() -> None:
    for state, stops in ((TASK_STATE_PENDING, True), (TASK_STATE_ASSIGNED, False)):
        for desired in (TASK_STATE_SHUTDOWN, TASK_STATE_REMOVE):
            task = Task(id="t1", desired_state=TASK_STATE_READY, status=TaskStatus(state=state))
            set_desired(task, desired, 1.0)
            assert task.status.state == (TASK_STATE_SHUTDOWN if stops else state)


def test_a_task_begins_at_new() -> None:
    task = new_task(Service(id="s1"), task_id="t1", now=1.0, desired=TASK_STATE_READY)
    assert (task.status.state, task.desired_state) == (TASK_STATE_NEW, TASK_STATE_READY)


def test_states_have_names() -> None:
    assert state_name(TASK_STATE_RUNNING) == "RUNNING"
    assert state_name(4711) == "4711"


# ---------------------------------------------------------------- one writer

ALLOWED = {
    "model/transitions.py": "the writer",
    "model/tasks.py": "makes tasks",
    "dispatcher/nodes.py": "writes the status of nodes",
    "ca/state.py": "makes nodes",
}
"""Who may write something called status or desired_state, and why."""


def writes_of_states(tree: ast.AST) -> Iterator[int]:
    """Lines that assign to ``x.status.y``, ``x.status`` or ``x.desired_state``, fill ``x.status``, or make such a task."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_state(node):
            yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            fills = node.func.attr in ("CopyFrom", "MergeFrom", "ParseFromString", "Clear")
            if fills and isinstance(node.func.value, ast.Attribute) and node.func.value.attr == "status":
                yield node.lineno
        elif isinstance(node, ast.Call) and makes_task(node):
            yield node.lineno


def makes_task(call: ast.Call) -> bool:
    """Whether it is ``Task(..., status=..., desired_state=...)`` with one of the two."""
    is_task = isinstance(call.func, ast.Name) and call.func.id == "Task"
    return is_task and bool({keyword.arg for keyword in call.keywords} & {"status", "desired_state"})


def is_state(target: ast.Attribute) -> bool:
    of_status = isinstance(target.value, ast.Attribute) and target.value.attr == "status" and target.attr == "state"
    return of_status or target.attr == "desired_state"


def test_nobody_else_writes_the_states_of_tasks() -> None:
    found = {}
    for path in sorted(MANAGER.rglob("*.py")):
        lines = list(writes_of_states(ast.parse(path.read_text())))
        if lines:
            found[str(path.relative_to(MANAGER))] = lines
    assert found.keys() == ALLOWED.keys(), found


def test_the_search_finds_what_it_is_for() -> None:
    for line in (
        "task.status.state = 1",
        "task.desired_state = 1",
        "task.status.CopyFrom(other)",
        "Task(id='t', desired_state=1)",
        "a, task.desired_state = 1, 2",
    ):
        assert list(writes_of_states(ast.parse(line))) == [1], line
    assert not list(writes_of_states(ast.parse("x = task.status.state == 1")))
