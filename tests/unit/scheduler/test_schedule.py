"""Placement with plain values: ranking, spread, resources, explanations (features A7)."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.model.constraints import parse
from manager.model.needs import Needs, needs_of
from manager.scheduler import nodes as nodes_module
from manager.scheduler.nodes import NodeSet, Round
from manager.scheduler.schedule import Decision, Placed, Unplaced, schedule_bound, schedule_group
from proto.objects_pb2 import (
    NODE_STATE_DOWN,
    NODE_STATE_READY,
    TASK_STATE_ASSIGNED,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    Node,
    Task,
)
from proto.specs_pb2 import DiscreteGenericResource, GenericResource, NamedGenericResource, ServiceSpec

NOW = 1_000.0


def node(name: str, **labels: str) -> Node:
    made = Node(id=name)
    made.status.state = NODE_STATE_READY
    made.description.platform.os = "linux"
    made.description.platform.architecture = "x86_64"
    made.description.resources.nano_cpus = 4_000_000_000
    made.description.resources.memory_bytes = 8 << 30
    made.spec.labels.update(labels)
    return made


def task(number: int, *, service: str = "s1", on: str = "", state: int = TASK_STATE_PENDING) -> Task:
    made = Task(id=f"{service}-{number}", service_id=service, spec_version=1, slot=number, node_id=on)
    made.desired_state = TASK_STATE_RUNNING
    made.status.state = state  # type: ignore[assignment]  # an enum's value
    return made


class Field:
    """Nodes and the needs of services, without a store."""

    def __init__(self, *nodes: Node, needs: dict[str, Needs] | None = None) -> None:
        self.needs = needs or {}
        self.nodes = NodeSet(self.needs_of)
        for each in nodes:
            self.nodes.put_node(each)

    def needs_of(self, task: Task) -> Needs:
        return self.needs.get(task.service_id, Needs())

    def bear(self, *tasks: Task) -> Field:
        for each in tasks:
            self.nodes.change_task(None, each)
        return self

    def place(self, count: int, service: str = "s1", now: float = NOW) -> list[Decision]:
        waiting = [task(100 + number, service=service) for number in range(count)]
        return schedule_group(waiting, self.needs.get(service, Needs()), Round(self.nodes, self.needs_of, now))


def on_nodes(decisions: list[Decision]) -> dict[str, int]:
    return dict(Counter(each.node_id for each in decisions if isinstance(each, Placed)))


def errs(decisions: list[Decision]) -> set[str]:
    return {each.err for each in decisions if isinstance(each, Unplaced)}


def test_tasks_of_the_service_count_before_all_tasks() -> None:
    field = Field(node("a"), node("b"), node("c"))
    field.bear(task(1, on="a", state=TASK_STATE_RUNNING), task(1, service="other", on="b", state=TASK_STATE_RUNNING))
    assert on_nodes(field.place(1)) == {"c": 1}
    assert on_nodes(field.place(2)) == {"b": 1, "c": 1}
    assert on_nodes(field.place(5)) == {"a": 1, "b": 2, "c": 2}


def test_tasks_on_their_way_out_do_not_count_but_hold_their_resources() -> None:
    field = Field(node("a"), node("b"), needs={"s1": Needs(memory_bytes=6 << 30)})
    leaving = task(1, on="a", state=TASK_STATE_RUNNING)
    leaving.desired_state = TASK_STATE_SHUTDOWN
    field.bear(leaving)
    assert field.nodes.infos["a"].active == 0
    decisions = field.place(2)
    assert on_nodes(decisions) == {"b": 1}
    assert errs(decisions) == {"no suitable node (insufficient resources on 2 nodes)"}


def test_nodes_follow_their_tasks() -> None:
    field = Field(node("a"), needs={"s1": Needs(memory_bytes=1 << 30, nano_cpus=1, host_ports=((1, 80),))})
    running = task(1, on="a", state=TASK_STATE_ASSIGNED)
    field.bear(running)
    info = field.nodes.infos["a"]
    assert (info.memory_bytes, info.host_ports[1, 80], info.active_by_service) == (7 << 30, 1, {"s1": 1})
    ended = Task()
    ended.CopyFrom(running)
    ended.status.state = TASK_STATE_FAILED
    field.nodes.change_task(running, ended)
    assert (info.memory_bytes, info.host_ports[1, 80], info.active_by_service) == (8 << 30, 0, {})
    field.nodes.change_task(ended, None)
    larger = node("a")
    larger.description.resources.memory_bytes = 16 << 30
    field.bear(running)
    field.nodes.put_node(larger)
    assert info.memory_bytes == 15 << 30


def test_a_round_leaves_the_nodes_as_they_were() -> None:
    field = Field(node("a"), needs={"s1": Needs(memory_bytes=5 << 30)})
    assert on_nodes(field.place(1)) == {"a": 1}
    assert on_nodes(field.place(1)) == {"a": 1}


def test_recent_failures_put_a_node_last() -> None:
    """Features A3.11: from five in five minutes on, of this version alone."""
    field = Field(node("a"), node("b"))
    failed = task(1, on="a", state=TASK_STATE_FAILED)
    for _ in range(4):
        field.nodes.note_failure(failed, NOW - 10)
    assert on_nodes(field.place(1)) == {"a": 1}
    field.nodes.note_failure(failed, NOW - 10)
    assert on_nodes(field.place(4)) == {"b": 4}
    assert on_nodes(field.place(1, service="other")) == {"a": 1}
    assert on_nodes(field.place(2, now=NOW + 291)) == {"a": 1, "b": 1}


def test_failures_seen_by_a_clock_that_was_ahead_are_forgotten() -> None:
    field = Field(node("a"), node("b"))
    failed = task(1, on="a", state=TASK_STATE_FAILED)
    for _ in range(5):
        field.nodes.note_failure(failed, NOW + 7200)
    assert on_nodes(field.place(1)) == {"a": 1}


def test_a_kind_that_is_asked_for_twice_is_asked_for_in_sum() -> None:
    spec = ServiceSpec()
    for count in (1, 2):
        spec.task_template.resources.reservations.generic_resources.append(
            GenericResource(discrete=DiscreteGenericResource(kind="gpu", value=count))
        )
    assert needs_of(spec).generic == (("gpu", 3),)


def test_the_memory_of_failures_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes_module, "FAILURE_MEMORY_MAX", 10)
    field = Field(node("a"))
    for number in range(100):
        field.nodes.note_failure(task(1, service=f"s{number}", on="a", state=TASK_STATE_FAILED), NOW + number)
        assert len(field.nodes._failures) <= 10


def spread(*descriptors: str) -> Needs:
    spec = ServiceSpec()
    for each in descriptors:
        spec.task_template.placement.preferences.add().spread.spread_descriptor = each
    return needs_of(spec)


def test_spread_is_even_over_values_not_nodes() -> None:
    """Features A7.03: nine on three, two and one node are three each."""
    zones = {"a1": "a", "a2": "a", "a3": "a", "b1": "b", "b2": "b", "c1": "c"}
    field = Field(*(node(name, zone=zone) for name, zone in zones.items()), needs={"s1": spread("node.labels.zone")})
    by_zone = Counter(zones[name] for name, count in on_nodes(field.place(9)).items() for _ in range(count))
    assert by_zone == {"a": 3, "b": 3, "c": 3}


def test_spread_considers_what_is_there() -> None:
    field = Field(node("a", zone="a"), node("b", zone="b"), needs={"s1": spread("node.labels.zone")})
    field.bear(*(task(number, on="a", state=TASK_STATE_RUNNING) for number in range(3)))
    assert on_nodes(field.place(5)) == {"a": 1, "b": 4}


def test_spread_overflows_to_others_when_full() -> None:
    needs = needs_of(ServiceSpec())
    field = Field(node("a", zone="a"), node("b", zone="b"), node("n"))
    field.needs["s1"] = Needs(memory_bytes=4 << 30, spread=("node.labels.zone",))
    decisions = field.place(7)
    assert on_nodes(decisions) == {"a": 2, "b": 2, "n": 2}
    assert errs(decisions) == {"no suitable node (insufficient resources on 3 nodes)"}
    assert needs == Needs(platforms=())


def test_spread_in_levels() -> None:
    names = {"x1": ("x", "1"), "x2": ("x", "2"), "y1": ("y", "1"), "y2": ("y", "2"), "y3": ("y", "2")}
    field = Field(
        *(node(name, dc=dc, rack=rack) for name, (dc, rack) in names.items()),
        needs={"s1": spread("node.labels.dc", "node.labels.rack", "nonsense")},
    )
    placed = on_nodes(field.place(8))
    assert (placed["x1"], placed["x2"], placed["y1"]) == (2, 2, 2)
    assert placed["y2"] + placed["y3"] == 2


@given(
    nodes=st.lists(st.sampled_from("abc"), min_size=1, max_size=8),
    borne=st.lists(st.integers(0, 7), max_size=10),
    count=st.integers(0, 30),
)
def test_spread_places_everything_and_no_branch_gets_too_much(nodes: list[str], borne: list[int], count: int) -> None:
    names = {f"n{position}": zone for position, zone in enumerate(nodes)}
    field = Field(*(node(name, zone=zone) for name, zone in names.items()), needs={"s1": spread("node.labels.zone")})
    there = [f"n{position}" for position in borne if position < len(nodes)]
    field.bear(*(task(number, on=name, state=TASK_STATE_RUNNING) for number, name in enumerate(there)))
    placed = on_nodes(field.place(count))
    assert sum(placed.values()) == count
    zones = Counter(dict.fromkeys(names.values(), 0))
    zones.update(names[name] for name in there)
    before = dict(zones)
    zones.update(dict.fromkeys(zones, 0))
    for name, got in placed.items():
        zones[names[name]] += got
    for zone, total in zones.items():
        if total > before[zone]:
            assert total <= min(zones.values()) + 1, (before, dict(zones))


@given(capacities=st.lists(st.integers(0, 5), min_size=1, max_size=8), count=st.integers(0, 30))
def test_no_node_bears_more_than_it_can(capacities: list[int], count: int) -> None:
    nodes = []
    for position, capacity in enumerate(capacities):
        made = node(f"n{position}")
        made.description.resources.memory_bytes = capacity << 30
        nodes.append(made)
    field = Field(*nodes, needs={"s1": Needs(memory_bytes=1 << 30)})
    decisions = field.place(count)
    placed = on_nodes(decisions)
    assert all(got <= capacities[int(name[1:])] for name, got in placed.items())
    assert sum(placed.values()) == min(count, sum(capacities))
    assert len(decisions) == count


def test_every_reason_has_its_text() -> None:
    """Features A6.06; texts of swarmkit ``manager/scheduler/filter.go``."""
    down = node("down")
    down.status.state = NODE_STATE_DOWN
    field = Field(node("a"), node("b"), down)
    cases = {
        Needs(nano_cpus=9_000_000_000): "insufficient resources on 2 nodes",
        Needs(volume_plugins=("flocker",)): "missing plugin on 2 nodes",
        Needs(constraints=parse(["node.id==x"])): "scheduling constraints not satisfied on 2 nodes",
        Needs(platforms=(("arm64", "linux"),)): "unsupported platform on 2 nodes",
    }
    for needs, reason in cases.items():
        field.needs["s1"] = needs
        assert errs(field.place(1)) == {f"no suitable node ({reason}; 1 node not available for new tasks)"}
    assert errs(Field().place(1)) == {"no suitable node"}


def test_several_reasons_most_frequent_first() -> None:
    small = node("small")
    small.description.resources.memory_bytes = 1
    needs = Needs(memory_bytes=2, constraints=parse(["node.id==x"]))
    field = Field(small, node("a"), node("b"), needs={"s1": needs})
    assert errs(field.place(1)) == {
        "no suitable node (scheduling constraints not satisfied on 2 nodes; insufficient resources on 1 node)"
    }


def test_platforms_are_normalised() -> None:
    """Features A7.11."""
    spec = ServiceSpec()
    spec.task_template.placement.platforms.add(architecture="amd64", os="linux")
    field = Field(node("a"), needs={"s1": needs_of(spec)})
    assert on_nodes(field.place(1)) == {"a": 1}


def test_the_log_driver_none_needs_no_plugin() -> None:
    """X20: a node tells of the drivers it has, and none is not one of them."""
    spec = ServiceSpec()
    spec.task_template.log_driver.name = "none"
    bearer = node("a")
    bearer.description.engine.plugins.add(type="Log", name="json-file")
    field = Field(bearer, needs={"s1": needs_of(spec)})
    assert on_nodes(field.place(1)) == {"a": 1}
    spec.task_template.log_driver.name = "gelf"
    field.needs["s1"] = needs_of(spec)
    assert errs(field.place(1)) == {"no suitable node (missing plugin on 1 node)"}


@pytest.mark.parametrize("kind", ["discrete", "named"])
def test_generic_resources_are_claimed_and_given_back(kind: str) -> None:
    """Features A7.09."""
    bearer = node("a")
    resources = bearer.description.resources.generic_resources
    if kind == "discrete":
        resources.append(GenericResource(discrete=DiscreteGenericResource(kind="gpu", value=3)))
    else:
        for name in ("u1", "u2", "u3"):
            resources.append(GenericResource(named=NamedGenericResource(kind="gpu", value=name)))
    field = Field(bearer, needs={"s1": Needs(generic=(("gpu", 2),))})
    first, second = field.place(2)
    assert isinstance(first, Placed)
    assert isinstance(second, Unplaced)
    if kind == "discrete":
        assert first.generic_resources[0].discrete.value == 2
    else:
        assert [each.named.value for each in first.generic_resources] == ["u1", "u2"]
    running = task(1, on="a", state=TASK_STATE_RUNNING)
    running.assigned_generic_resources.extend(first.generic_resources)
    field.bear(running)
    assert errs(field.place(1)) == {"no suitable node (insufficient resources on 1 node)"}
    field.nodes.change_task(running, None)
    assert on_nodes(field.place(1)) == {"a": 1}


def test_a_bound_task_is_checked_against_its_node() -> None:
    field = Field(node("a"), needs={"s1": Needs(memory_bytes=5 << 30)})
    around = Round(field.nodes, field.needs_of, NOW)
    first, second = task(1, on="a"), task(2, on="a")
    assert isinstance(schedule_bound(first, field.needs["s1"], around), Placed)
    refused = schedule_bound(second, field.needs["s1"], around)
    assert isinstance(refused, Unplaced)
    assert refused.err == "insufficient resources on 1 node"
    assert schedule_bound(task(3, on="gone"), field.needs["s1"], around) is None
