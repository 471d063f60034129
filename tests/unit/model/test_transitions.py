"""Who may move a task's observed state: one table, one owner each, and only upwards (features A6.01, A6.02)."""

from __future__ import annotations

from itertools import product

import pytest

from manager.model.tasks import InvariantError, set_status
from manager.model.transitions import ON_NODE, TRANSITIONS, UNASSIGNED, Owner
from proto.objects_pb2 import TASK_STATE_RUNNING, Task, TaskState


def test_states_only_rise() -> None:
    for transitions in TRANSITIONS.values():
        assert all(after > before for before, after in transitions)


def test_every_transition_has_one_owner() -> None:
    owned = [transition for transitions in TRANSITIONS.values() for transition in transitions]
    assert len(owned) == len(set(owned))


def test_what_an_agent_has_is_touched_by_two_alone() -> None:
    owners = {
        owner for owner, transitions in TRANSITIONS.items() if any(before in ON_NODE for before, _ in transitions)
    }
    assert owners == {Owner.CONSTRAINT_ENFORCER, Owner.ORPHANER}
    assert max(UNASSIGNED) < min(ON_NODE)
    assert max(ON_NODE) == TASK_STATE_RUNNING


@pytest.mark.parametrize("owner", list(Owner))
def test_everything_else_raises(owner: Owner) -> None:
    for before, after in product(TaskState.values(), TaskState.values()):
        task = Task(id="t1")
        task.status.state = before
        if (before, after) in TRANSITIONS[owner]:
            set_status(task, owner, after, "moved", 1.0)
            assert task.status.state == after
        else:
            with pytest.raises(InvariantError, match=f"the {owner.value} may not move it"):
                set_status(task, owner, after, "moved", 1.0)
            assert task.status.state == before
