"""docs/design/agent.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from proto.objects_pb2 import TaskState
from worker.agent.images import FRESH_S, STALL_S, STALL_S_WITH_LOCAL, UNREACHABLE_S
from worker.agent.managers import BACKOFF_S_FIRST, BACKOFF_S_MAX
from worker.agent.session import QUIET_S, REGISTRATION_TIMEOUT_S, RPC_TIMEOUT_S
from worker.agent.task_machine import ORPHANED, TRANSITIONS, UNHEALTHY, exit_error

PAGE = (Path(__file__).parents[3] / "docs/design/agent.md").read_text()


def test_the_table_has_the_states_of_the_machine() -> None:
    states = set(re.findall(r"^\| ([A-Z]+) \|", PAGE, re.MULTILINE))
    assert states == {TaskState.Name(state).removeprefix("TASK_STATE_") for state in TRANSITIONS if state != ORPHANED}


def test_texts_and_times_are_those_of_the_code() -> None:
    assert UNHEALTHY in PAGE
    assert exit_error(7).replace("7", "N") in PAGE
    assert f"then {BACKOFF_S_FIRST} s, doubling to {BACKOFF_S_MAX:.0f} s" in PAGE
    assert f"{RPC_TIMEOUT_S:.0f} s to take the connection, then {REGISTRATION_TIMEOUT_S:.0f} s to let us in" in PAGE
    assert f"its outcome holds for {FRESH_S:.0f} s" in PAGE
    assert f"left alone for {UNREACHABLE_S:.0f} s" in PAGE
    assert f"acknowledged nothing for {QUIET_S:.0f} s" in PAGE
    assert f"given up after {STALL_S:.0f} s, after {STALL_S_WITH_LOCAL:.0f} s when" in PAGE
