"""What a node is told: exactly what its tasks need (features A2.08, A6.02)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from manager.dispatcher.assignments import CONFIG, SECRET, SPEC_VERSION, AssignmentSet, Key, MessagePacker
from proto.dispatcher_pb2 import AssignmentChange, AssignmentKind, AssignmentsMessage
from proto.objects_pb2 import Config, NetworkAttachment, Secret, SpecVersion, Task, TaskState, Version
from proto.specs_pb2 import ConfigReference, SecretReference
from tests.unit.dispatcher.support import make_spec_version, make_task
from worker.agent.assignments import ReceivedAssignments
from worker.agent.contents import change_of

RUNNING = TaskState.TASK_STATE_RUNNING
FAILED = TaskState.TASK_STATE_FAILED


@dataclass
class FakeTables:
    """Rows by ID."""

    tasks: dict[str, Task] = field(default_factory=dict)
    spec_versions: dict[str, SpecVersion] = field(default_factory=dict)
    secrets: dict[str, Secret] = field(default_factory=dict)
    configs: dict[str, Config] = field(default_factory=dict)

    def task(self, task_id: str) -> Task | None:
        return self.tasks.get(task_id)

    def tasks_of_node(self, node_id: str) -> Iterable[Task]:
        return [task for task in self.tasks.values() if task.node_id == node_id]

    def spec_version(self, spec_version_id: str) -> SpecVersion | None:
        return self.spec_versions.get(spec_version_id)

    def secret(self, secret_id: str) -> Secret | None:
        return self.secrets.get(secret_id)

    def config(self, config_id: str) -> Config | None:
        return self.configs.get(config_id)

    def put(self, *tasks: Task) -> None:
        for task in tasks:
            self.tasks[task.id] = task


def make_tables() -> FakeTables:
    """A service ``db`` with a secret and a config, a service ``web`` with neither."""
    tables = FakeTables()
    tables.secrets["s1"] = Secret(id="s1", version=Version(index=1))
    tables.configs["c1"] = Config(id="c1", version=Version(index=1))
    for version in (
        make_spec_version("db", secrets=[SecretReference(secret_id="s1")], configs=[ConfigReference(config_id="c1")]),
        make_spec_version("web"),
    ):
        version.version.index = 1
        tables.spec_versions[version.id] = version
    return tables


def kinds(changes: Iterable[AssignmentChange]) -> list[str]:
    """``secret s1``, ``task t1``, ``-task t1``, in order."""
    words = []
    for change in changes:
        name = AssignmentKind.Name(change.kind).removeprefix("ASSIGNMENT_KIND_").lower()
        content = change.WhichOneof("object")
        assert content in (None, name)
        assert content is None or getattr(change, content).id == change.id
        words.append(f"{'' if content else '-'}{name} {change.id}")
    return words


def test_a_task_comes_after_what_it_needs_and_leaves_before() -> None:
    tables, known = make_tables(), AssignmentSet("n1")
    tables.put(make_task("t1", "n1", service_id="db"), make_task("other", "n2", service_id="web"))
    assert kinds(known.complete(tables)) == ["spec_version db.1", "secret s1", "config c1", "task t1"]
    del tables.tasks["t1"]
    assert kinds(known.update(["t1"], [], tables)) == ["-task t1", "-spec_version db.1", "-secret s1", "-config c1"]


def test_a_secret_goes_with_its_last_user() -> None:
    tables, known = make_tables(), AssignmentSet("n1")
    tables.put(make_task("t1", "n1", service_id="db"), make_task("t2", "n1", service_id="db"))
    known.complete(tables)
    tables.put(make_task("t1", "n1", service_id="db", state=FAILED))
    assert kinds(known.update(["t1"], [], tables)) == ["task t1"]  # the end is told, whoever decided it
    assert known.uses(SECRET, "s1")
    tables.put(make_task("t2", "n1", service_id="db", state=FAILED))
    assert kinds(known.update(["t2"], [], tables)) == ["task t2", "-spec_version db.1", "-secret s1", "-config c1"]
    assert not known.uses(SECRET, "s1")


def test_what_the_agent_reported_is_not_sent_back() -> None:
    tables, known = make_tables(), AssignmentSet("n1")
    tables.put(make_task("t1", "n1"))
    known.complete(tables)
    running = make_task("t1", "n1", state=RUNNING)
    running.networks_attachments.append(NetworkAttachment(network_id="bridge", addresses=["172.17.0.2"]))
    running.version.index = 7
    tables.put(running)
    assert known.update(["t1"], [], tables) == []
    stopping = make_task("t1", "n1", state=RUNNING, desired_state=TaskState.TASK_STATE_SHUTDOWN)
    tables.put(stopping)
    assert kinds(known.update(["t1"], [], tables)) == ["task t1"]


def test_a_task_that_is_not_assigned_yet_is_nobodys() -> None:
    tables, known = make_tables(), AssignmentSet("n1")
    tables.put(make_task("t1", "n1", state=TaskState.TASK_STATE_PENDING))
    assert known.complete(tables) == []


def test_a_changed_secret_is_sent_to_its_users_only() -> None:
    tables, known = make_tables(), AssignmentSet("n1")
    tables.put(make_task("t1", "n1", service_id="db"))
    known.complete(tables)
    tables.secrets["s1"] = Secret(id="s1", version=Version(index=9))
    assert kinds(known.update([], [(SECRET, "s1")], tables)) == ["secret s1"]
    assert kinds(known.update([], [(SECRET, "s1")], tables)) == []
    assert not known.uses(CONFIG, "another")
    assert known.uses(SPEC_VERSION, "db.1")


def test_large_sets_are_cut_and_say_where_they_end() -> None:
    packer = MessagePacker(size_bytes_max=1000)
    changes = [change_of(make_task(f"t{number}", "n1")) for number in range(50)]
    messages = packer.complete(changes)
    assert len(messages) > 1
    assert [message.last_part for message in messages] == [False] * (len(messages) - 1) + [True]
    assert all(message.ByteSize() < 1100 for message in messages)
    assert [change for message in messages for change in message.changes] == changes
    increments = packer.incremental(changes)
    assert increments[0].applies_to == messages[-1].results_in
    assert all(one.results_in == two.applies_to for one, two in itertools.pairwise(increments))
    assert packer.incremental([]) == []
    assert len(MessagePacker().complete([])) == 1


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
    tables, known, packer, agent = (
        make_tables(),
        AssignmentSet("n1"),
        MessagePacker(size_bytes_max=150),
        ReceivedAssignments("n1"),
    )
    messages: list[AssignmentsMessage] = packer.complete(known.complete(tables))
    for batch in batches:
        touched: list[str] = []
        keys: list[Key] = []
        for task_id, node_id, service_id, state, desired in batch:
            touched.append(task_id)
            if node_id:
                tables.put(make_task(task_id, node_id, service_id=service_id, state=state, desired_state=desired))
            else:
                tables.tasks.pop(task_id, None)
        messages += packer.incremental(known.update(touched, keys, tables))
    for message in messages:
        agent.apply(message)
    fresh = ReceivedAssignments("n1")
    for message in MessagePacker().complete(AssignmentSet("n1").complete(tables)):
        fresh.apply(message)
    assert set(agent.contents.tasks) == set(fresh.contents.tasks)
    assert {task.id: task.desired_state for task in agent.contents.tasks.values()} == {
        task.id: task.desired_state for task in fresh.contents.tasks.values()
    }
    assert agent.contents.of(Secret) == fresh.contents.of(Secret)
    assert agent.contents.of(Config) == fresh.contents.of(Config)
    assert agent.contents.of(SpecVersion) == fresh.contents.of(SpecVersion)
