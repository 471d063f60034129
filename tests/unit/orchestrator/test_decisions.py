"""Decisions called with plain values: stored messages and a time in, actions out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.model.actions import CreateTask, Outcome, RemoveTask, UpdateService, UpdateTask
from manager.model.constraints import parse
from manager.model.defaults import insert_defaults, nanoseconds, restart_rules, update_rules
from manager.model.dirty import DirtyCheck
from manager.model.needs import Needs
from manager.model.tasks import is_live
from manager.model.times import to_timestamp
from manager.model.transitions import InvariantError, with_desired
from manager.orchestrator import reaper, replicated, rollout
from manager.orchestrator.inputs import Judging, ServiceInputs
from manager.orchestrator.nodes import enforce, orphan
from manager.orchestrator.restart import SlotRules, may_restart, reconcile_slot
from manager.orchestrator.slots import Slot, Slots
from proto.objects_pb2 import (
    NODE_STATE_READY,
    TASK_STATE_ASSIGNED,
    TASK_STATE_COMPLETE,
    TASK_STATE_FAILED,
    TASK_STATE_NEW,
    TASK_STATE_ORPHANED,
    TASK_STATE_PENDING,
    TASK_STATE_PREPARING,
    TASK_STATE_READY,
    TASK_STATE_REJECTED,
    TASK_STATE_REMOVE,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    UPDATE_STATE_UPDATING,
    Node,
    Service,
    SpecVersion,
    Task,
    TaskState,
)
from proto.specs_pb2 import (
    ENDPOINT_MODE_VIP,
    FAILURE_ACTION_PAUSE,
    NODE_AVAILABILITY_DRAIN,
    RESTART_CONDITION_ANY,
    RESTART_CONDITION_ON_FAILURE,
    UPDATE_ORDER_STOP_FIRST,
    ServiceSpec,
)

NOW = 10_000.0


def make_service(replicas: int = 1) -> Service:
    service = Service(id="s", spec_version=1)
    service.spec.name = "web"
    service.spec.task_template.container_spec.image = "busybox"
    service.spec.mode.replicated.replicas = replicas
    return service


def make_task(
    slot: int = 1,
    *,
    task_id: str = "",
    state: TaskState.ValueType = TASK_STATE_RUNNING,
    desired: TaskState.ValueType = TASK_STATE_RUNNING,
    node: str = "n1",
    created_at: float = NOW - 100,
) -> Task:
    task = Task(
        id=task_id or f"t{slot}", service_id="s", spec_version=1, slot=slot, node_id=node, desired_state=desired
    )
    task.status.state = state
    task.created_at.CopyFrom(to_timestamp(created_at))
    task.updated_at.CopyFrom(to_timestamp(created_at))
    return task


class Kept:
    """Versions of one service's spec."""

    def __init__(self, *specs: ServiceSpec) -> None:
        self._specs = specs

    def of(self, service_id: str, spec_version: int) -> SpecVersion | None:
        if not 1 <= spec_version <= len(self._specs):
            return None
        return SpecVersion(service_id=service_id, spec_version=spec_version, spec=self._specs[spec_version - 1])


def make_node(name: str = "n1") -> Node:
    node = Node(id=name)
    node.status.state = NODE_STATE_READY
    return node


def slot_rules(service: Service, *nodes: Node) -> SlotRules:
    ids = count(1)
    by_id = {node.id: node for node in nodes or (make_node(),)}
    return SlotRules(service, by_id, lambda task: service.spec, NOW, lambda: f"new{next(ids)}")


def reconcile(service: Service, tasks: list[Task]) -> Outcome:
    """Looks at a service until a look finds no more to do."""
    ids, found, after = count(1), Outcome(), list(tasks)
    for _ in range(5):
        of_slot: dict[Slot, list[Task]] = {}
        for task in after:
            of_slot.setdefault(task.slot, []).append(task)
        check = DirtyCheck(service, Kept(service.spec))
        by, slots = Judging.of(service, check, {}, lambda task: make_service().spec, NOW), Slots()
        for slot, its_tasks in of_slot.items():
            slots.put(slot, replicated.facts_of(by, slot, its_tasks))
        outcome = replicated.reconcile(
            ServiceInputs(
                by=by,
                slots=slots,
                tasks_of=of_slot.__getitem__,
                task_of={task.id: task for task in after}.get,
                missing_of=lambda spec: "",
                new_id=lambda: f"new{next(ids)}",
                limit=1000,
            )
        )
        found.groups.extend(outcome.groups)
        if not outcome.look_at_service:
            return found
        after = committed(after, outcome)
        service = next((each.service for each in outcome.actions if isinstance(each, UpdateService)), service)
    raise AssertionError("every look finds more to do")


def committed(tasks: list[Task], outcome: Outcome) -> list[Task]:
    after = {task.id: task for task in tasks}
    for action in outcome.actions:
        if isinstance(action, CreateTask | UpdateTask):
            after[action.task.id] = action.task
        elif isinstance(action, RemoveTask):
            del after[action.task.id]
    return list(after.values())


@given(
    wanted=st.integers(0, 12),
    states=st.lists(
        st.tuples(
            st.integers(1, 12),
            st.sampled_from([TASK_STATE_PENDING, TASK_STATE_RUNNING, TASK_STATE_FAILED]),
            st.sampled_from([TASK_STATE_READY, TASK_STATE_RUNNING, TASK_STATE_SHUTDOWN, TASK_STATE_REMOVE]),
        ),
        max_size=20,
    ),
)
def test_a_replicated_service_converges_in_one_look(
    wanted: int, states: list[tuple[int, TaskState.ValueType, TaskState.ValueType]]
) -> None:
    service = make_service(wanted)
    tasks = [
        make_task(slot, task_id=f"t{position}", state=state, desired=desired)
        for position, (slot, state, desired) in enumerate(states)
    ]
    after = committed(tasks, reconcile(service, tasks))
    assert len({task.slot for task in after if is_live(task)}) == wanted
    again = reconcile(service, after)
    # Tasks of one slot that live side by side are an update's business, which has its own pace.
    assert not [action for action in again.actions if isinstance(action, CreateTask)]
    assert len({task.slot for task in committed(after, again) if is_live(task)}) == wanted


def test_a_task_of_another_service_is_a_bug() -> None:
    stranger = make_task()
    stranger.service_id = "other"
    with pytest.raises(InvariantError):
        reconcile(make_service(), [stranger])


@pytest.mark.parametrize(
    ("layout", "wanted", "left"),
    [
        # slot -> node, state; the crowded node first, then what does not run, then high slots
        ({1: "a", 2: "a", 3: "b"}, 2, {1, 3}),
        ({1: "a", 2: "b", 3: "c"}, 2, {1, 2}),
        ({1: "a", 2: "a", 3: "a", 4: "b"}, 2, {1, 4}),
        ({1: "", 2: "a", 3: "b"}, 2, {2, 3}),
    ],
)
def test_which_slots_go(layout: dict[int, str], wanted: int, left: set[int]) -> None:
    """Features A7.14."""
    tasks = [
        make_task(slot, node=node, state=TASK_STATE_RUNNING if node else TASK_STATE_PENDING)
        for slot, node in layout.items()
    ]
    after = committed(tasks, reconcile(make_service(wanted), tasks))
    assert {task.slot for task in after if is_live(task)} == left


def test_what_does_not_run_goes_first() -> None:
    tasks = [
        make_task(1, node="a", state=TASK_STATE_PREPARING),
        make_task(2, node="a"),
        make_task(3, node="b", state=TASK_STATE_PREPARING),
        make_task(4, node="b"),
    ]
    after = committed(tasks, reconcile(make_service(2), tasks))
    assert {task.slot for task in after if is_live(task)} == {2, 4}


def test_desired_states_only_rise() -> None:
    with pytest.raises(InvariantError):
        with_desired(make_task(desired=TASK_STATE_SHUTDOWN), TASK_STATE_RUNNING, NOW)


def test_a_task_no_agent_has_is_stopped_by_being_told() -> None:
    stopped = with_desired(make_task(state=TASK_STATE_PENDING, node=""), TASK_STATE_SHUTDOWN, NOW)
    assert stopped.status.state == TASK_STATE_SHUTDOWN


def test_replacement_carries_the_history() -> None:
    service = make_service()
    policy = service.spec.task_template.restart_policy
    policy.max_attempts, policy.window_ns, policy.delay_ns = 3, nanoseconds(100), nanoseconds(7)
    task = make_task(state=TASK_STATE_FAILED)
    task.restart_history.attempts = 2
    task.restart_history.restarted_at.extend([to_timestamp(NOW - 200), to_timestamp(NOW - 150)])
    outcome = reconcile_slot(slot_rules(service), [task])
    ((_, create),) = outcome.groups
    assert isinstance(create, CreateTask)
    new = create.task
    assert (new.id, new.slot, new.replaces_task_id, new.node_id) == ("new1", 1, "t1", "")
    assert new.desired_state == TASK_STATE_READY
    assert new.not_before == to_timestamp(NOW + 7)
    assert outcome.deadline == NOW + 7
    assert new.restart_history.attempts == 3
    assert list(new.restart_history.restarted_at) == [to_timestamp(NOW)], "those outside the window are forgotten"


def test_what_is_remembered_of_restarts_has_a_bound() -> None:
    """However many a policy allows: it is copied from task to task."""
    service = make_service()
    policy = service.spec.task_template.restart_policy
    policy.max_attempts, policy.window_ns, policy.delay_ns = 10**9, nanoseconds(10**6), 0
    task = make_task(state=TASK_STATE_FAILED)
    task.restart_history.restarted_at.extend(to_timestamp(NOW - 2000 + n) for n in range(999))
    for _ in range(3):
        create = reconcile_slot(slot_rules(service), [task]).actions[-1]
        if not isinstance(create, CreateTask):
            break
        task = create.task
        task.status.state = TASK_STATE_FAILED
        task.updated_at.CopyFrom(to_timestamp(NOW + 1))
        assert len(task.restart_history.restarted_at) <= 1000
    assert not isinstance(create, CreateTask), "the thousand within the window have been used up"
    assert reaper.history_limit(service, 5) == 1001
    policy.window_ns = 0
    assert reaper.history_limit(service, 5) == 1001


def test_may_restart_within_a_window() -> None:
    service = make_service()
    policy = service.spec.task_template.restart_policy
    policy.max_attempts, policy.window_ns = 2, nanoseconds(60)
    rules = restart_rules(service.spec.task_template)
    task = make_task(state=TASK_STATE_FAILED, created_at=NOW)
    task.restart_history.attempts = 9
    task.restart_history.restarted_at.extend([to_timestamp(NOW - 61), to_timestamp(NOW - 30)])
    assert may_restart(task, rules)
    task.restart_history.restarted_at.append(to_timestamp(NOW - 10))
    assert not may_restart(task, rules)


def test_on_failure_leaves_a_complete_task() -> None:
    service = make_service()
    service.spec.task_template.restart_policy.condition = RESTART_CONDITION_ON_FAILURE
    outcome = reconcile_slot(slot_rules(service), [make_task(state=TASK_STATE_COMPLETE)])
    (action,) = outcome.actions
    assert isinstance(action, UpdateTask)
    assert action.task.desired_state == TASK_STATE_SHUTDOWN


def test_a_drained_node_is_left_once_its_task_has_stopped() -> None:
    service, node = make_service(), make_node()
    node.spec.availability = NODE_AVAILABILITY_DRAIN
    outcome = reconcile_slot(slot_rules(service, node), [make_task()])
    _stop, create = outcome.actions
    assert isinstance(create, CreateTask)
    assert create.task.desired_state == TASK_STATE_READY
    assert outcome.deadline == NOW + 60


def test_failures_count_once_and_only_for_tasks_of_the_rollout() -> None:
    service = make_service()
    service.update_status.state = UPDATE_STATE_UPDATING
    service.rollout.spec_version = 1
    task = make_task(state=TASK_STATE_FAILED)
    assert not rollout.counts_as_failure(service, task), "made by scaling, not by the update"
    task.replaces_task_id = "old"
    assert rollout.counts_as_failure(service, task)
    assert not rollout.counts_as_failure(rollout.with_failures(service, [task.id]), task)
    task.status.running_since.CopyFrom(to_timestamp(NOW - 6))
    task.updated_at.CopyFrom(to_timestamp(NOW))
    assert not rollout.counts_as_failure(service, task), "it ran for longer than the monitor window"


def test_history_keeps_what_runs_and_the_last_of_a_finished_slot() -> None:
    dead = [
        make_task(task_id=f"d{n}", state=TASK_STATE_FAILED, desired=TASK_STATE_SHUTDOWN, created_at=NOW + n)
        for n in range(4)
    ]
    live = make_task(task_id="live", created_at=NOW + 9)
    assert [each.task.id for each in _removals(reaper.reap_slot([*dead, live], 3, {}))] == ["d0", "d1"]
    assert [each.task.id for each in _removals(reaper.reap_slot([*dead, live], 0, {}))] == ["d0", "d1", "d2", "d3"]
    assert [each.task.id for each in _removals(reaper.reap_slot(dead, 0, {}))] == ["d0", "d1", "d2"]
    assert reaper.reap_slot([*dead, live], None, {}) == []
    stopping = make_task(task_id="stopping", desired=TASK_STATE_SHUTDOWN, created_at=NOW)
    assert reaper.reap_slot([stopping, live], 1, {}) == []


def test_max_attempts_override_the_history_limit() -> None:
    service = make_service()
    assert reaper.history_limit(service, 5) == 5
    assert reaper.history_limit(service, -1) is None
    service.spec.task_template.restart_policy.max_attempts = 7
    assert reaper.history_limit(service, 5) == 8
    assert reaper.history_limit(service, -1) == 8


def test_tasks_of_a_removed_service_go_when_they_have_stopped() -> None:
    nodes = {"n1": make_node()}
    tasks = [make_task(1), make_task(2, state=TASK_STATE_FAILED), make_task(3, state=TASK_STATE_NEW, node="")]
    actions = reaper.reap_removed(tasks, nodes, NOW, 100)
    assert [type(action) for action in actions] == [UpdateTask, RemoveTask, RemoveTask]
    stopped = make_task(1, state=TASK_STATE_SHUTDOWN, desired=TASK_STATE_REMOVE)
    assert [type(action) for action in reaper.reap_removed([stopped], nodes, NOW, 100)] == [RemoveTask]


def test_enforcer_rejects_the_youngest_when_resources_shrink() -> None:
    node = make_node()
    node.description.resources.memory_bytes = 5
    tasks = [make_task(slot, created_at=NOW + slot, state=TASK_STATE_ASSIGNED) for slot in (3, 1, 2)]
    outcome = enforce(node, tasks, lambda task: Needs(memory_bytes=2), lambda task: [Needs()], NOW)
    (action,) = outcome.actions
    assert isinstance(action, UpdateTask)
    assert (action.task.id, action.task.status.state) == ("t3", TASK_STATE_REJECTED)


def test_enforcer_goes_by_the_present_constraints_of_the_service() -> None:
    node, tasks = make_node(), [make_task()]
    wanted = Needs(constraints=parse(["node.labels.a==b"]))
    assert enforce(node, tasks, lambda task: Needs(), lambda task: [wanted], NOW).actions
    assert not enforce(node, tasks, lambda task: wanted, lambda task: [Needs()], NOW).actions


# ---------------------------------------------------------------- dirty tasks (features A5.06)


@pytest.mark.parametrize(
    ("what", "dirty"),
    [
        ("nothing", False),
        ("labels", False),
        ("replicas", False),
        ("update config", False),
        ("defaults written out", False),
        ("privileges that say nothing", False),
        ("no new privileges", True),
        ("another restart delay than the default", True),
        ("image", True),
        ("force", True),
        ("endpoint", True),
        ("constraint that holds", False),
        ("constraint that does not", True),
        ("constraint that holds and image", True),
        ("registry auth", False),
    ],
)
def test_what_makes_a_task_dirty(what: str, dirty: bool) -> None:
    old = make_service().spec
    service = make_service()
    service.spec_version = 2
    spec = service.spec
    if what == "labels":
        spec.labels["a"] = "b"
    elif what == "replicas":
        spec.mode.replicated.replicas = 9
    elif what == "update config":
        spec.update_config.parallelism = 3
    elif what == "defaults written out":
        spec.CopyFrom(insert_defaults(spec))
    elif what == "privileges that say nothing":
        spec.task_template.container_spec.privileges.SetInParent()
    elif what == "no new privileges":
        spec.task_template.container_spec.privileges.no_new_privileges = True
    elif what == "another restart delay than the default":
        spec.task_template.restart_policy.delay_ns = 1
    elif what == "force":
        spec.task_template.force_update = 1
    elif what == "endpoint":
        spec.endpoint_spec.ports.add(target_port=80)
    elif what == "registry auth":
        spec.task_template.registry_auth = "new"
    if "image" in what:
        spec.task_template.container_spec.image = "busybox:2"
    if "constraint" in what:
        spec.task_template.placement.constraints.append("node.id==n2" if "not" in what else "node.id==n1")
    assert DirtyCheck(service, Kept(old, spec)).is_dirty(make_task(), make_node()) is dirty


def test_new_credentials_concern_tasks_that_have_no_image_yet() -> None:
    service = make_service()
    old = ServiceSpec()
    old.CopyFrom(service.spec)
    service.spec_version = 2
    service.spec.task_template.registry_auth = "new"
    assert DirtyCheck(service, Kept(old, service.spec)).is_dirty(make_task(state=TASK_STATE_PREPARING), make_node())


def test_a_task_of_a_version_nobody_kept_is_dirty() -> None:
    service = make_service()
    service.spec_version = 2
    assert DirtyCheck(service, Kept()).is_dirty(make_task(), make_node())


# ---------------------------------------------------------------- tasks whose node is gone


def test_tasks_of_a_node_without_an_object_are_given_up() -> None:
    """Whoever removed it: what had not ended is ORPHANED, what waits for a node or has ended stays as it is."""
    states = (TASK_STATE_PENDING, TASK_STATE_ASSIGNED, TASK_STATE_RUNNING, TASK_STATE_COMPLETE)
    tasks = [make_task(slot, state=state) for slot, state in enumerate(states, 1)]
    after = committed(tasks, orphan(None, tasks, NOW))
    assert {task.slot: task.status.state for task in after} == {
        1: TASK_STATE_PENDING,
        2: TASK_STATE_ORPHANED,
        3: TASK_STATE_ORPHANED,
        4: TASK_STATE_COMPLETE,
    }
    assert orphan(make_node(), tasks, NOW).actions == []


# ---------------------------------------------------------------- defaults


def test_defaults_written_out() -> None:
    full = insert_defaults(make_service().spec)
    policy = full.task_template.restart_policy
    assert (policy.condition, policy.delay_ns, policy.max_attempts) == (RESTART_CONDITION_ANY, 5_000_000_000, 0)
    for config in (full.update_config, full.rollback_config):
        assert config.parallelism == 1
        assert config.failure_action == FAILURE_ACTION_PAUSE
        assert config.monitor_ns == 5_000_000_000
        assert config.order == UPDATE_ORDER_STOP_FIRST
    assert full.task_template.container_spec.stop_grace_period_ns == 10_000_000_000
    assert full.endpoint_spec.mode == ENDPOINT_MODE_VIP
    assert insert_defaults(full) == full


def test_absent_and_zero_parallelism_differ() -> None:
    spec = make_service().spec
    assert update_rules(spec, rollback=False).parallelism == 1
    spec.update_config.SetInParent()
    assert update_rules(spec, rollback=False).parallelism == 0
    assert update_rules(spec, rollback=True).parallelism == 1


def test_zero_delay_is_not_the_default_delay() -> None:
    spec = make_service().spec
    assert restart_rules(spec.task_template).delay_s == 5
    spec.task_template.restart_policy.delay_ns = 0
    assert restart_rules(spec.task_template).delay_s == 0


def _removals(actions: Sequence[object]) -> list[RemoveTask]:
    removals = [action for action in actions if isinstance(action, RemoveTask)]
    assert len(removals) == len(actions)
    return removals
