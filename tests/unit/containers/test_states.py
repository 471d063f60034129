"""The states of a container: the table, that it is the only way, and that docs/design/runtime.md shows it as it is."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from runtime.containers.container import Container
from runtime.containers.record import Record, RunState
from runtime.containers.states import OWNERS, TRANSITIONS, UNDOING, Event, IllegalMoveError, Status
from runtime.types import ContainerConfig, HostConfig

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/design/runtime.md").read_text()
SOURCES = sorted((ROOT / "runtime").rglob("*.py"))


def make_container(status: Status = Status.CREATED, labels: dict[str, str] | None = None) -> Container:
    record = Record(
        ID="ab" * 32,
        Name="web",
        CreatedNs=0,
        Created="",
        ImageID="",
        Config=ContainerConfig(Labels=labels),
        HostConfig=HostConfig(),
        Endpoints={},
        Mounts=[],
    )
    return Container(record, RunState(Status=status), Path("/nowhere"))


def words(cell: str) -> list[str]:
    return [word.strip(" `") for word in cell.split(",")]


def test_the_page_has_the_table() -> None:
    shown, owners = {}, {}
    for line in re.findall(r"^\| [a-z, ]+ \| `container\..*$", PAGE, re.MULTILINE):
        before, event, after, by = line.strip("| ").split(" | ")
        owners[words(event)[0]] = tuple(words(by))
        shown.update({(status, words(event)[0]): after for status in words(before)})
    assert shown == {(before.value, event.value): after.value for (before, event), after in TRANSITIONS.items()}
    assert owners == {event.value: by for event, by in OWNERS.items()}


@pytest.mark.parametrize(("before", "event"), TRANSITIONS)
def test_every_move_is_reachable(before: Status, event: Event) -> None:
    container = make_container()
    for step in path_to(before):
        container.move(step)
    assert container.state.Status is before
    container.move(event)
    assert container.state.Status is TRANSITIONS[before, event]


def path_to(wanted: Status) -> list[Event]:
    """The shortest story of a new container that ends in this state."""
    paths: dict[Status, list[Event]] = {Status.CREATED: []}
    while wanted not in paths:
        for (before, event), after in TRANSITIONS.items():
            if before in paths and after not in paths:
                paths[after] = [*paths[before], event]
    return paths[wanted]


@pytest.mark.parametrize(("before", "event"), sorted(set(itertools.product(Status, Event)) - set(TRANSITIONS)))
def test_an_illegal_move_raises_with_the_story_and_changes_nothing(before: Status, event: Event) -> None:
    container = make_container()
    for step in path_to(before):
        container.move(step)
    with pytest.raises(
        IllegalMoveError, match=f"{event} while {before} is no legal move; story: created at "
    ) as caught:
        container.move(event)
    assert all(f"({step.value})" in str(caught.value) for step in path_to(before))
    assert container.state.Status is before


def test_a_start_that_fails_goes_back_to_where_it_began() -> None:
    startable = {before for before, event in TRANSITIONS if event is Event.STARTED}
    assert {before: TRANSITIONS[Status.RUNNING, event] for before, event in UNDOING.items()} == dict(
        zip(startable, startable, strict=True)
    )


def test_a_move_is_logged_with_its_container_and_task() -> None:
    with capture_logs() as lines:
        make_container(labels={"com.docker.swarm.task.id": "t1"}).move(Event.STARTED, pid=7)
        make_container(Status.RUNNING).move(Event.EXITED, exit_code=3)
    common = {"container_id": "ab" * 32, "log_level": "info"}
    assert lines == [
        {**common, "task_id": "t1", "event": "container.started", "before": "created", "state": "running", "pid": 7},
        {**common, "event": "container.exited", "before": "running", "state": "exited", "exit_code": 3},
    ]


def assignments(tree: ast.AST) -> Iterator[ast.AST]:
    """Where an attribute ``Status`` of something's state is set, by whatever statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "Status" and isinstance(node.ctx, ast.Store | ast.Del):
            yield node
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("setattr", "RunState"):
            yield from (key for key in node.keywords if key.arg == "Status")
            yield from (item for item in node.args if isinstance(item, ast.Constant) and item.value == "Status")


def test_nobody_else_sets_the_status() -> None:
    found = [path.name for path in SOURCES for _ in assignments(ast.parse(path.read_text()))]
    assert found == ["container.py", "store.py"]  # ``move``, and what a state file that cannot be read stands for


def test_each_event_is_told_by_its_owners_alone() -> None:
    told: dict[Event, set[str]] = {event: set() for event in Event}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "move":
                for name in ast.walk(node.args[0]):
                    if isinstance(name, ast.Attribute) and getattr(name.value, "id", "") == "Event":
                        told[Event[name.attr]].add(path.stem)
                    elif isinstance(name, ast.Name) and name.id == "UNDOING":
                        for event in UNDOING.values():
                            told[event].add(path.stem)
    assert told == {event: set(by) for event, by in OWNERS.items()}
