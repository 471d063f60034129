"""The story that a failed multi-host test tells."""

from __future__ import annotations

import json
from typing import Any

from tests.multihost.timeline import read, story

TASK, OTHER, CONTAINER = "t" * 25, "o" * 25, "c" * 64


def line(second: int, event: str, level: str = "info", **fields: Any) -> str:
    return json.dumps({"timestamp": f"2026-01-02T03:04:{second:02}.000000Z", "event": event, "level": level, **fields})


MANAGER = "\n".join(
    [
        line(1, "leader.changed", process="manager", term=2),
        line(2, "task.created", process="manager", task_id=TASK, service_id="s" * 25),
        line(3, "task.created", process="manager", task_id=OTHER, service_id="s" * 25),
        line(9, "node.went_down", "warning", process="manager", node_ids=["n" * 25]),
    ]
)
WORKER = "\n".join(
    [
        line(4, "container.created", container_id=CONTAINER, task_id=TASK),
        line(5, "container.started", container_id=CONTAINER, state="running"),
        line(6, "container.started", container_id="d" * 64),
        line(7, "request.served", "debug", path="/_ping"),
        line(8, "disk.full", "error", container_id="d" * 64),
        "Traceback (most recent call last):",
    ]
)
ENTRIES = read(1, MANAGER) + read(2, WORKER)


def test_entries_of_all_hosts_stand_in_order_of_time() -> None:
    assert [entry.at for entry in story(reversed(ENTRIES))] == sorted(entry.at for entry in ENTRIES)


def test_an_object_is_followed_into_what_belongs_to_it_and_not_into_its_neighbours() -> None:
    assert [entry.event for entry in story(ENTRIES, {TASK[:12]})] == [
        "leader.changed",
        "task.created",
        "container.created",
        "container.started",
        "disk.full",
        "Traceback (most recent call last):",
        "node.went_down",
    ]


def test_nothing_is_told_of_the_time_before() -> None:
    assert [entry.event for entry in story(ENTRIES, {TASK}, since="2026-01-02T03:04:09")] == ["node.went_down"]


def test_a_line_reads_from_left_to_right() -> None:
    (created,) = [entry for entry in ENTRIES if entry.event == "container.created"]
    assert str(created) == "03:04:04.000 h2 node     container.created container_id=cccccccccccc task_id=tttttttttttt"
    (down,) = [entry for entry in ENTRIES if entry.event == "node.went_down"]
    assert str(down) == "03:04:09.000 h1 manager  ! node.went_down node_ids=nnnnnnnnnnnn"
