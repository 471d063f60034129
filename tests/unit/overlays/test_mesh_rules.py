"""The routing mesh as rules: who is led where, what a change costs, and that nothing grows with nodes times ports."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.kernel.network import FlowPattern
from worker.network.mesh_rules import NOWHERE, Key, MeshPlace, MeshRules, Spread, departures, spread_of
from worker.network.types import IngressBackend, IngressPort

NET = ipaddress.IPv4Network("10.0.0.0/16")
HERE, THERE, ELSEWHERE = NET[2], NET[3], NET[4]
A, B = (ipaddress.IPv4Address(f"172.18.0.{number}") for number in (2, 3))
PLACE = MeshPlace(HERE, NET, NET[1])


def port(
    *backends: IngressBackend,
    protocol: str = "tcp",
    local_first: bool = False,
    addresses: tuple[ipaddress.IPv4Address, ...] = (),
) -> IngressPort:
    return IngressPort(
        protocol=protocol, published=8080, target=80, backends=backends, addresses=addresses, local_first=local_first
    )


def test_a_node_has_as_many_places_as_tasks_and_our_own_are_named() -> None:
    spread = spread_of(port(IngressBackend(HERE, A), IngressBackend(THERE), IngressBackend(THERE)), PLACE)
    assert Counter(spread.places) == {(A, 80): 1, (THERE, 8080): 2}
    assert spread.here == ((A, 80),)


def test_who_is_sent_here_is_served_while_any_task_is_here() -> None:
    leaving = IngressBackend(HERE, A, 0)
    assert spread_of(port(leaving, IngressBackend(THERE)), PLACE).here == ((A, 80),)
    assert spread_of(port(leaving, IngressBackend(THERE)), PLACE).places == ((THERE, 8080),)


def test_local_first_is_for_nodes_with_a_task_that_gets_connections() -> None:
    tasks = (IngressBackend(HERE, A), IngressBackend(THERE))
    assert spread_of(port(*tasks, local_first=True), PLACE).places == ((A, 80),)
    assert spread_of(port(*tasks[1:], local_first=True), PLACE).places == ((THERE, 8080),)
    assert spread_of(port(IngressBackend(HERE, A, 0), tasks[1], local_first=True), PLACE).places == ((THERE, 8080),)


def test_flows_to_a_node_end_with_its_last_task_and_those_without_connection_when_it_drains() -> None:
    key = ("udp", 8080)
    before = spread_of(
        port(IngressBackend(THERE), IngressBackend(THERE), IngressBackend(HERE, A), protocol="udp"), PLACE
    )
    fewer = spread_of(
        port(IngressBackend(THERE, weight=0), IngressBackend(THERE), IngressBackend(HERE, A), protocol="udp"),
        PLACE,
        before,
    )
    assert departures(key, before, fewer) == []
    drained = spread_of(port(IngressBackend(THERE, weight=0), IngressBackend(HERE, A), protocol="udp"), PLACE, fewer)
    assert departures(key, fewer, drained) == [FlowPattern(target=THERE, protocol=17, port=8080)]
    assert departures(("tcp", 8080), fewer, drained) == []
    gone = spread_of(port(IngressBackend(HERE, A), protocol="udp"), PLACE, drained)
    assert departures(key, drained, gone) == [FlowPattern(target=THERE, protocol=17, port=8080)]
    assert departures(key, gone, NOWHERE) == [FlowPattern(target=A, protocol=17, port=8080)]


class Kernel:
    """What the tables hold after commands."""

    def __init__(self) -> None:
        self.elements: dict[tuple[str, str, str], str] = {}
        self.chains: set[tuple[str, str]] = set()
        self.last = 0

    def run(self, commands: str) -> None:
        self.last = 0
        for line in commands.splitlines():
            if found := re.fullmatch(r"delete table (\w+ \S+)", line):
                self.elements = {key: value for key, value in self.elements.items() if key[0] != found[1]}
                self.chains = {each for each in self.chains if each[0] != found[1]}
            if found := re.fullmatch(r"add chain (\w+ \S+) (\S+)", line):
                assert (found[1], found[2]) not in self.chains
                self.chains.add((found[1], found[2]))
            if found := re.fullmatch(r"(add|delete) element (\w+ \S+) (\w+) \{ (.*) \}", line):
                for element in found[4].split(", "):
                    key, _, value = element.partition(" : ")
                    self.last += 1
                    if found[1] == "delete":
                        del self.elements[found[2], found[3], key]
                    else:
                        assert (found[2], found[3], key) not in self.elements
                        assert not value.startswith("goto ") or (found[2], value.removeprefix("goto ")) in self.chains
                        self.elements[found[2], found[3], key] = value


backends = st.builds(
    lambda number, weight: IngressBackend(NET[2 + number], A + number if number == 0 else None, weight),
    st.integers(0, 3),
    st.integers(0, 2),
)
ports = st.builds(
    lambda tasks, local_first, addresses: port(*tasks, local_first=local_first, addresses=tuple(addresses)),
    st.lists(backends, max_size=5),
    st.booleans(),
    st.lists(st.sampled_from([A, B]), max_size=2, unique=True),
)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from([("tcp", 1), ("tcp", 2), ("udp", 1)]), st.none() | ports, st.sets(st.integers(3, 6)))
    )
)
def test_the_tables_have_what_was_told_last(steps: list[tuple[Key, IngressPort | None, set[int]]]) -> None:
    rules, kernel, nodes = MeshRules(PLACE), Kernel(), set[int]()
    kernel.run(rules.whole())
    for key, wanted, now in steps:
        spread = spread_of(wanted, PLACE, rules.spread(key)) if wanted else None
        kernel.run(rules.change({key: spread}, [NET[each] for each in now], [NET[each] for each in nodes - now]))
        nodes = now
    after = dict(kernel.elements)
    assert sum(name == "zones" for _, name, _ in after) == len(nodes)
    kernel.run(rules.whole())
    assert kernel.elements == after


@pytest.mark.parametrize(("nodes", "count"), [(3, 10), (20, 500)])
def test_one_task_more_costs_the_same_and_no_rule_is_of_a_node_or_a_port(nodes: int, count: int) -> None:
    rules, kernel = MeshRules(PLACE), Kernel()
    kernel.run(rules.whole())
    spread = Spread(places=((A, 80), (THERE, 8080)), here=((A, 80),), known=frozenset({(A, 80), (THERE, 8080)}))
    empty = rules.whole().count("\n")
    kernel.run(
        rules.change(
            {("tcp", number + 1): spread for number in range(count)}, [NET[n] for n in range(3, 3 + nodes)], []
        )
    )
    assert len(kernel.chains) == 2
    assert rules.whole().count("\n") < empty + 20
    more = spread_of(port(IngressBackend(HERE, A), IngressBackend(THERE), IngressBackend(ELSEWHERE)), PLACE, spread)
    kernel.run(rules.change({("tcp", 5): more}, [], []))
    assert kernel.last <= 3
    assert len(kernel.elements) <= 3 * nodes + 5 * count + 1
