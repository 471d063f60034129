"""What is kept for lists against what it is derived from, after any history: counts of tasks, JSON texts, filters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from api.json_codec import encode
from api.swarm_routes.parts import PartCache
from api.swarm_routes.tasks import spec_part, task_part
from manager.control.counts import TaskCounts, fresh_counts
from manager.control.filters import task_name
from manager.control.parts import encoded
from manager.control.tasks import matching, select
from manager.model.versions import first_version, present_version
from manager.store import NODES, SERVICES, SPEC_VERSIONS, TASKS, StoredObject, View, Working
from manager.store.kinds import AnyKind
from manager.store.machine import Machine
from manager.store.mutation import MutationDetector
from proto.objects_pb2 import Node, NodeState, SpecVersion, Task, TaskState
from proto.specs_pb2 import ServiceSpec
from proto.store_pb2 import Transaction
from proto.task_states import state_name

NODE_IDS = ["n1", "n2"]
TASK_IDS = [f"t{number}".ljust(25, "x") for number in range(5)]
"""As long as IDs are: what is kept of objects goes by these."""
SERVICE_NAMES = {"s1": "web", "s2": "web.2", "s3": "db"}
STATES = [
    TaskState.TASK_STATE_NEW,
    TaskState.TASK_STATE_RUNNING,
    TaskState.TASK_STATE_SHUTDOWN,
]

Write = tuple[AnyKind, str, StoredObject | None]
"""The object of that kind and ID is to be this; None removes it."""


@st.composite
def written_tasks(draw: st.DrawFn) -> Write:
    task = Task(
        id=draw(st.sampled_from(TASK_IDS)),
        service_id=draw(st.sampled_from(["s1", "s2", "s3"])),
        spec_version=draw(st.integers(1, 2)),
        slot=draw(st.integers(0, 2)),
        node_id=draw(st.sampled_from(["", *NODE_IDS])),
        desired_state=draw(st.sampled_from(STATES)),
    )
    task.status.state = draw(st.sampled_from(STATES))
    if draw(st.booleans()):
        task.networks_attachments.add(network_id="bridge", addresses=["172.17.0.2/16"])
    return TASKS, task.id, draw(st.sampled_from([task, task, task, None]))


@st.composite
def written_nodes(draw: st.DrawFn) -> Write:
    node = Node(id=draw(st.sampled_from(NODE_IDS)))
    node.status.state = draw(st.sampled_from([NodeState.NODE_STATE_READY, NodeState.NODE_STATE_DOWN]))
    return NODES, node.id, draw(st.sampled_from([node, node, None]))


def spec(service_id: str, version: int) -> ServiceSpec:
    made = ServiceSpec(name=SERVICE_NAMES[service_id], labels={"b": service_id, "a": str(version)})
    made.task_template.container_spec.image = f"busybox:{version}"
    return made


@st.composite
def written_services(draw: st.DrawFn) -> Write:
    service_id, version = draw(st.sampled_from(sorted(SERVICE_NAMES))), draw(st.integers(1, 2))
    service = first_version(service_id, spec(service_id, version))
    service.spec_version = version
    return SERVICES, service_id, draw(st.sampled_from([service, service, None]))


def version_of(service_id: str, version: int) -> SpecVersion:
    service = first_version(service_id, spec(service_id, version))
    service.spec_version = version
    return present_version(service)


@st.composite
def written_versions(draw: st.DrawFn) -> Write:
    """A version that is there never changes; it may be forgotten and come again."""
    kept = version_of(draw(st.sampled_from(sorted(SERVICE_NAMES))), draw(st.integers(1, 2)))
    return SPEC_VERSIONS, kept.id, draw(st.sampled_from([kept, kept, None]))


def every_version() -> list[Write]:
    """All that there can be, so that few tasks are without theirs."""
    versions = [version_of(service_id, number) for service_id in SERVICE_NAMES for number in (1, 2)]
    return [(SPEC_VERSIONS, version.id, version) for version in versions]


writes = st.one_of(written_tasks(), written_tasks(), written_nodes(), written_services(), written_versions())
histories = st.lists(st.lists(writes, max_size=6), min_size=1, max_size=6)
FILTERS: list[dict[str, list[str]]] = [
    {},
    {"desired-state": ["running"]},
    {"desired-state": ["new", "shutdown"], "label": ["a=1"]},
    {"id": ["t1", TASK_IDS[2]]},
    {"label": ["a", "b=s2"]},
    {"label": ["c"]},
    *({"name": [name]} for name in ("w", "web", "web.2", "web.2.", "web.2.t1", "web.2.1", "db.n1.t")),
    {"name": ["web.1", "db"], "desired-state": ["running", "new"], "id": ["t"]},
]


def write(working: Working, writes: Sequence[Write]) -> None:
    """As far as the store allows: what is removed does not come back in the same entry."""
    gone: set[tuple[AnyKind, str]] = set()
    for kind, object_id, wanted in writes:
        there = working.of(kind).get(object_id)
        if wanted is None:
            if there is not None:
                working.remove(there)
                gone.add((kind, object_id))
        elif (kind, object_id) in gone:
            continue
        elif there is None:
            working.create(copy(wanted))
        elif kind is not SPEC_VERSIONS:
            changed = copy(wanted)
            changed.version.CopyFrom(there.version)
            working.update(changed)


def copy(obj: StoredObject) -> StoredObject:
    made = type(obj)()
    made.CopyFrom(obj)
    return made


def apply(machine: Machine, index: int, writes: Sequence[Write]) -> Any:
    working = machine.begin()
    write(working, writes)
    _, changes = machine.apply(index, Transaction(id=str(index), actions=working.actions).SerializeToString())
    return changes


@settings(max_examples=100, deadline=None)
@given(history=histories, back_to=st.integers(0, 5))
def test_counts_that_follow_the_changes_equal_those_of_the_state(history: list[list[Write]], back_to: int) -> None:
    machine, counts = Machine(MutationDetector()), TaskCounts()
    snapshots = []
    for index, entry in enumerate(history, start=1):
        counts.apply(apply(machine, index, entry))
        assert counts == fresh_counts(machine.view)
        assert not any(0 in kept.values() for kept in (counts.wanted, counts.running)), (
            "nothing is kept of what is gone"
        )
        snapshots.append(b"".join(machine.snapshot()()))
    # A member that is sent a snapshot is told of the difference to what it had.
    counts.apply(machine.load([snapshots[back_to % len(snapshots)]], len(history) + 1)())
    assert counts == fresh_counts(machine.view)


def plainly_listed(view: View, values: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Every task asked for itself, and encoded afresh."""
    listed = []
    for task in view.tasks:
        version = view.spec_versions.of(task.service_id, task.spec_version)
        its_spec = version.spec if version is not None else SpecVersion().spec
        tests: Mapping[str, Callable[[str], bool]] = {
            "desired-state": lambda value, task=task: state_name(task.desired_state).lower() == value,  # type: ignore[misc]
            "id": lambda value, task=task: task.id.startswith(value),  # type: ignore[misc]
            "name": lambda value, task=task, name=its_spec.name: task_name(task, name).startswith(value),  # type: ignore[misc]
        }
        wanted_labels = [label.partition("=") for label in values.get("label", ())]
        if all(
            key in its_spec.labels and value in ("", its_spec.labels[key]) for key, _, value in wanted_labels
        ) and all(any(map(test, values[key])) for key, test in tests.items() if key in values):
            listed.append(plain_json(task, version))
    return sorted(listed, key=lambda value: str(value["ID"]))


def plain_json(task: Task, version: SpecVersion | None) -> dict[str, Any]:
    value: dict[str, Any] = encode(task) | {"Spec": {}, "Labels": {}}
    if version is not None:
        value |= {"Spec": encode(version.spec.task_template), "Labels": dict(version.spec.labels)}
    if task.networks_attachments:
        value["NetworksAttachments"] = [{"Network": {"ID": "bridge"}, "Addresses": ["172.17.0.2/16"]}]
    return value


@settings(max_examples=60, deadline=None)
@given(history=histories, turns=st.lists(st.booleans(), min_size=6, max_size=6), room=st.integers(0, 3000))
def test_lists_from_kept_parts_equal_fresh_ones(history: list[list[Write]], turns: list[bool], room: int) -> None:
    async def follow() -> None:
        machine = Machine(MutationDetector())
        tasks, specs = PartCache(task_part, bytes_max=room), PartCache(spec_part, bytes_max=room)
        apply(machine, 1, every_version())
        for index, entry in enumerate(history, start=2):
            apply(machine, index, entry)
            for asked in FILTERS:
                found, versions = await matching(select(machine.view, asked))
                parts = specs.parts(await encoded(list(versions.values())))
                ends = {part.ref: part.text for part in parts}
                texts = [
                    json.loads(part.text + ends.get(part.ref, b',"Spec":{},"Labels":{}}'))
                    for part in tasks.parts(await encoded(found))
                ]
                assert sorted(texts, key=lambda value: str(value["ID"])) == plainly_listed(machine.view, asked)
                assert {part.ref for part in parts} <= {f"{task.service_id}.{task.spec_version}" for task in found}
            if turns[index - 2]:
                tasks.turn()
                specs.turn()
            assert tasks.size_bytes <= room

    asyncio.run(follow())
