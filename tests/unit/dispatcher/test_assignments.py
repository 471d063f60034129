"""What a node is told: exactly what its tasks need (features A2.08, A6.02)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.dispatcher.assignments import AssignmentSet, Key, MessagePacker, SharedChanges
from manager.store import CONFIGS, KINDS, SECRETS, SPEC_VERSIONS, TASKS, StoredObject, View
from manager.store.kinds import AnyKind
from manager.store.kinds.kind import Assigned
from manager.store.views import empty_state
from proto.dispatcher_pb2 import AssignmentChange, AssignmentKind, AssignmentsMessage
from proto.objects_pb2 import Config, NetworkAttachment, Secret, SpecVersion, TaskState, Version
from proto.specs_pb2 import ConfigReference, SecretReference
from tests.unit.dispatcher.support import make_spec_version, make_task
from worker.agent.assignments import ReceivedAssignments
from worker.agent.contents import change_of

RUNNING = TaskState.TASK_STATE_RUNNING
FAILED = TaskState.TASK_STATE_FAILED


class State:
    """A store's rows that are written as they come."""

    def __init__(self) -> None:
        self._rows = empty_state(KINDS)
        self.view = View(KINDS, self._rows)

    def put(self, *objects: StoredObject) -> None:
        for obj in objects:
            self._rows[KINDS.of(obj).name].put(obj.id, obj)

    def drop(self, kind: AnyKind, object_id: str) -> None:
        self._rows[kind.name].drop(object_id)


def make_state() -> State:
    """A service ``db`` with a secret and a config, a service ``web`` with neither."""
    state = State()
    state.put(Secret(id="s1", version=Version(index=1)), Config(id="c1", version=Version(index=1)))
    for version in (
        make_spec_version("db", secrets=[SecretReference(secret_id="s1")], configs=[ConfigReference(config_id="c1")]),
        make_spec_version("web"),
    ):
        version.version.index = 1
        state.put(version)
    return state


def kinds(changes: Iterable[bytes]) -> list[str]:
    """``secret s1``, ``task t1``, ``-task t1``, in order."""
    words = []
    for change in map(AssignmentChange.FromString, changes):
        name = AssignmentKind.Name(change.kind).removeprefix("ASSIGNMENT_KIND_").lower()
        content = change.WhichOneof("object")
        assert content in (None, name)
        assert content is None or getattr(change, content).id == change.id
        words.append(f"{'' if content else '-'}{name} {change.id}")
    return words


def test_a_task_comes_after_what_it_needs_and_leaves_before() -> None:
    state, known = make_state(), AssignmentSet("n1")
    state.put(make_task("t1", "n1", service_id="db"), make_task("other", "n2", service_id="web"))
    assert kinds(known.complete(state.view)) == ["spec_version db.1", "secret s1", "config c1", "task t1"]
    state.drop(TASKS, "t1")
    assert kinds(known.update(["t1"], [], state.view)) == ["-task t1", "-spec_version db.1", "-secret s1", "-config c1"]


def test_a_secret_goes_with_its_last_user() -> None:
    state, known = make_state(), AssignmentSet("n1")
    state.put(make_task("t1", "n1", service_id="db"), make_task("t2", "n1", service_id="db"))
    known.complete(state.view)
    state.put(make_task("t1", "n1", service_id="db", state=FAILED))
    assert kinds(known.update(["t1"], [], state.view)) == ["task t1"]  # the end is told, whoever decided it
    assert known.uses(SECRETS, "s1")
    state.put(make_task("t2", "n1", service_id="db", state=FAILED))
    assert kinds(known.update(["t2"], [], state.view)) == ["task t2", "-spec_version db.1", "-secret s1", "-config c1"]
    assert not known.uses(SECRETS, "s1")


def test_what_the_agent_reported_is_not_sent_back() -> None:
    state, known = make_state(), AssignmentSet("n1")
    state.put(make_task("t1", "n1"))
    known.complete(state.view)
    running = make_task("t1", "n1", state=RUNNING)
    running.networks_attachments.append(NetworkAttachment(network_id="bridge", addresses=["172.17.0.2"]))
    running.version.index = 7
    state.put(running)
    assert known.update(["t1"], [], state.view) == []
    stopping = make_task("t1", "n1", state=RUNNING, desired_state=TaskState.TASK_STATE_SHUTDOWN)
    state.put(stopping)
    assert kinds(known.update(["t1"], [], state.view)) == ["task t1"]


def test_a_task_that_is_not_assigned_yet_is_nobodys() -> None:
    state, known = make_state(), AssignmentSet("n1")
    state.put(make_task("t1", "n1", state=TaskState.TASK_STATE_PENDING))
    assert known.complete(state.view) == []


def test_a_changed_secret_is_sent_to_its_users_only() -> None:
    state, known = make_state(), AssignmentSet("n1")
    state.put(make_task("t1", "n1", service_id="db"))
    known.complete(state.view)
    state.put(Secret(id="s1", version=Version(index=9)))
    assert kinds(known.update([], [(SECRETS, "s1")], state.view)) == ["secret s1"]
    assert kinds(known.update([], [(SECRETS, "s1")], state.view)) == []
    assert not known.uses(CONFIGS, "another")
    assert known.uses(SPEC_VERSIONS, "db.1")


def test_who_needs_an_object_is_known_by_its_key() -> None:
    state, shared = make_state(), SharedChanges()
    first, second = AssignmentSet("n1", shared=shared), AssignmentSet("n2", shared=shared)
    state.put(make_task("t1", "n1", service_id="db"), make_task("t2", "n2", service_id="db"))
    state.put(make_task("t3", "n2", service_id="db"))
    first.complete(state.view)
    second.complete(state.view)
    assert [*shared.users((SECRETS, "s1"))] == [first, second]
    assert [*shared.users((CONFIGS, "another"))] == []
    state.put(make_task("t2", "n2", service_id="db", state=FAILED))
    second.update(["t2"], [], state.view)
    assert second in shared.users((SECRETS, "s1"))
    state.put(make_task("t3", "n2", service_id="db", state=FAILED))
    second.update(["t3"], [], state.view)
    assert [*shared.users((SECRETS, "s1"))] == [first]
    first.close()
    assert not shared._users


def test_a_change_of_what_was_never_needed_makes_nobody_its_user() -> None:
    state, shared = make_state(), SharedChanges()
    known = AssignmentSet("n1", shared=shared)
    known.complete(state.view)
    assert known.update([], [(SECRETS, "s1")], state.view) == []
    assert not known.uses(SECRETS, "s1")
    known.close()


def test_large_sets_are_cut_and_say_where_they_end() -> None:
    packer = MessagePacker(size_bytes_max=1000)
    changes = [change_of(make_task(f"t{number}", "n1")) for number in range(50)]
    encoded = [change.SerializeToString() for change in changes]
    messages = decoded(packer.complete(encoded))
    assert len(messages) > 1
    assert [message.last_part for message in messages] == [False] * (len(messages) - 1) + [True]
    assert all(message.ByteSize() < 1100 for message in messages)
    assert [change for message in messages for change in message.changes] == changes
    increments = decoded(packer.incremental(encoded))
    assert increments[0].applies_to == messages[-1].results_in
    assert all(one.results_in == two.applies_to for one, two in itertools.pairwise(increments))
    assert packer.incremental([]) == []
    assert len(MessagePacker().complete([])) == 1
    (large,) = decoded(packer.incremental([change_of(make_task("t" * 300_000, "n1")).SerializeToString()]))
    assert len(large.changes[0].id) == 300_000


def test_what_several_nodes_need_is_encoded_once_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    state, shared, made = make_state(), SharedChanges(), list[str]()
    change = Assigned.change

    def counted(self: Assigned[Any], obj: StoredObject) -> AssignmentChange:
        made.append(obj.id)
        return change(self, obj)

    monkeypatch.setattr(Assigned, "change", counted)
    nodes = [f"n{number}" for number in range(10)]
    state.put(*(make_task(f"t-{node_id}", node_id, service_id="db") for node_id in nodes))
    agents = [AssignmentSet(node_id, shared=shared) for node_id in nodes]
    for known in agents:
        assert len(known.complete(state.view)) == 4
    assert sorted(made) == ["c1", "db.1", "s1"]
    state.put(Secret(id="s1", version=Version(index=2)))
    for known in agents:
        assert kinds(known.update([], [(SECRETS, "s1")], state.view)) == ["secret s1"]
    assert sorted(made) == ["c1", "db.1", "s1", "s1"]


def test_what_is_kept_encoded_is_bounded() -> None:
    shared = SharedChanges(size_bytes_max=1000)
    for number in range(100):
        data = b"x" * 300
        config = Config(id=f"c{number}", version=Version(index=1))
        config.spec.data = data
        assert data in shared.encoded(CONFIGS, config)
        assert shared.encoded(CONFIGS, config) is shared.encoded(CONFIGS, config)
    assert sum(len(change) for _, change in shared._known.values()) == shared._size_bytes <= 1000
    shared.forget((CONFIGS, "c99"))
    assert (CONFIGS, "c99") not in shared._known
    assert sum(len(change) for _, change in shared._known.values()) == shared._size_bytes
    giant = Config(id="giant", version=Version(index=1))
    giant.spec.data = b"x" * 5000
    assert len(shared.encoded(CONFIGS, giant)) > 5000
    assert shared._size_bytes <= 1000


def decoded(messages: Iterable[bytes]) -> list[AssignmentsMessage]:
    return [AssignmentsMessage.FromString(message) for message in messages]


STATES = [TaskState.TASK_STATE_PENDING, TaskState.TASK_STATE_ASSIGNED, RUNNING, FAILED]


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(["t1", "t2", "t3"]),
                st.sampled_from(["n1", "n2", ""]),
                st.sampled_from(["db", "web"]),
                st.sampled_from(STATES),
                st.sampled_from([RUNNING, TaskState.TASK_STATE_SHUTDOWN]),
            ),
            max_size=4,
        ),
        max_size=8,
    )
)
def test_an_agent_that_follows_the_stream_knows_what_a_new_one_is_told(
    batches: list[list[tuple[str, str, str, TaskState.ValueType, TaskState.ValueType]]],
) -> None:
    """Increments, cut into messages, through the agent's own code, lead to the same as a complete set."""
    stored, known = make_state(), AssignmentSet("n1")
    packer, agent = MessagePacker(size_bytes_max=150), ReceivedAssignments("n1")
    messages = packer.complete(known.complete(stored.view))
    for batch in batches:
        touched: list[str] = []
        keys: list[Key] = []
        for task_id, node_id, service_id, state, desired in batch:
            touched.append(task_id)
            if node_id:
                stored.put(make_task(task_id, node_id, service_id=service_id, state=state, desired_state=desired))
            else:
                stored.drop(TASKS, task_id)
        messages += packer.incremental(known.update(touched, keys, stored.view))
    for message in decoded(messages):
        agent.apply(message)
    fresh = ReceivedAssignments("n1")
    for message in decoded(MessagePacker().complete(AssignmentSet("n1").complete(stored.view))):
        fresh.apply(message)
    assert set(agent.contents.tasks) == set(fresh.contents.tasks)
    assert {task.id: task.desired_state for task in agent.contents.tasks.values()} == {
        task.id: task.desired_state for task in fresh.contents.tasks.values()
    }
    assert agent.contents.of(Secret) == fresh.contents.of(Secret)
    assert agent.contents.of(Config) == fresh.contents.of(Config)
    assert agent.contents.of(SpecVersion) == fresh.contents.of(SpecVersion)
