"""The states of tasks by name, as managers and agents log them alike."""

from __future__ import annotations

from collections.abc import Mapping

from proto.objects_pb2 import TaskState

_NAMES: Mapping[int, str] = {number: name.removeprefix("TASK_STATE_") for name, number in TaskState.items()}


def state_name(state: int) -> str:
    """``RUNNING``; the number of one that this version does not know."""
    return _NAMES.get(state) or str(state)
