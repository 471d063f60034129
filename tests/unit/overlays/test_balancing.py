"""Who is behind a virtual address: shares, places that stay, and commands at the cost of what changes."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.kernel.network import FlowPattern, IPAddress
from worker.network.balancing import NOBODY, Balance, Rules, arranged, balance_of, departures, shares
from worker.network.types import Backend, BalancedService

VIP, OTHER_VIP = ipaddress.ip_address("10.0.1.250"), ipaddress.ip_address("10.0.1.251")
A, B, C, D = (ipaddress.ip_address(f"10.0.1.{number}") for number in (2, 3, 4, 5))
addresses = st.sampled_from([A, B, C, D])


def service(*backends: Backend, local_first: bool = False) -> BalancedService:
    return BalancedService(VIP, backends, local_first)


@given(before=st.lists(addresses, max_size=12), wanted=st.dictionaries(addresses, st.integers(1, 4)))
def test_places_are_as_many_as_the_shares_and_as_few_as_can_be_change(
    before: list[IPAddress], wanted: dict[IPAddress, int]
) -> None:
    after = arranged(before, wanted)
    assert Counter(after) == Counter(wanted)
    assert arranged(after, wanted) == after
    stay = sum(min(count, wanted.get(address, 0)) for address, count in Counter(before).items())
    moved = max(0, len(before) - len(after))
    assert sum(old == new for old, new in zip(before, after, strict=False)) >= stay - moved


def test_shares_follow_the_weights_in_lowest_terms() -> None:
    assert shares([Backend(A, 2), Backend(B, 4)]) == {A: 1, B: 2}
    assert shares([Backend(A), Backend(B)]) == {A: 1, B: 1}
    assert shares([]) == {}


def test_a_draining_backend_has_no_place_and_its_connections() -> None:
    before = balance_of(service(Backend(A), Backend(B)), ())
    draining = balance_of(service(Backend(A), Backend(B, 0)), (), before)
    assert draining.places == (A,)
    assert departures(VIP, before, draining) == [FlowPattern(address=VIP, target=B, protocol=17)]
    assert departures(VIP, draining, draining) == []
    gone = balance_of(service(Backend(A)), (), draining)
    assert departures(VIP, draining, gone) == [FlowPattern(address=VIP, target=B)]
    assert departures(VIP, before, NOBODY) == [FlowPattern(address=VIP, target=each) for each in before.known]


def test_local_first_prefers_what_is_here_while_there_is_any_and_ends_no_flow() -> None:
    wanted = service(Backend(A), Backend(B), Backend(C), local_first=True)
    anywhere, here = balance_of(wanted, {D}), balance_of(wanted, {B, D})
    assert set(anywhere.places) == {A, B, C}
    assert here.places == (B,)
    assert departures(VIP, anywhere, here) == []
    assert set(balance_of(service(Backend(A), Backend(B, 0), local_first=True), {B}).places) == {A}


class Kernel:
    """What a table holds after commands."""

    def __init__(self) -> None:
        self.elements: dict[tuple[str, str], str] = {}
        self.chains: set[str] = set()
        self.last = 0

    def run(self, commands: str) -> None:
        self.last = 0
        for line in commands.splitlines():
            if line.startswith("delete table"):
                self.elements, self.chains = {}, set()
            if found := re.fullmatch(r"add chain ip t (\S+)", line):
                assert found[1] not in self.chains
                self.chains.add(found[1])
            if found := re.fullmatch(r"(add|delete) element ip t (\w+) \{ (.*) \}", line):
                for element in found[3].split(", "):
                    key, _, value = element.partition(" : ")
                    self.last += 1
                    if found[1] == "delete":
                        del self.elements[found[2], key]
                    else:
                        assert (found[2], key) not in self.elements
                        assert not value.startswith("goto ") or value.removeprefix("goto ") in self.chains
                        self.elements[found[2], key] = value

    def places(self, vip: IPAddress) -> list[str]:
        """What a packet to the address may be led to."""
        count = int(self.elements.get(("virtual", str(vip)), "goto of-0").removeprefix("goto of-"))
        return [self.elements["places", f"{vip} . {number}"] for number in range(count)]


@given(
    steps=st.lists(
        st.tuples(st.sampled_from([VIP, OTHER_VIP]), st.none() | st.lists(addresses, max_size=5, unique=True))
    )
)
def test_the_table_has_what_was_told_last(
    steps: list[tuple[IPAddress, list[IPAddress] | None]],
) -> None:
    rules, kernel, wanted = Rules("t", 4), Kernel(), dict[IPAddress, list[IPAddress]]()
    kernel.run(rules.whole())
    for vip, backends in steps:
        wanted.pop(vip, None)
        if backends is not None:
            wanted[vip] = backends
        balance = None if backends is None else Balance(arranged(rules.balance(vip).places, Counter(backends)))
        kernel.run(rules.change({vip: balance}))
        for each in (VIP, OTHER_VIP):
            assert Counter(kernel.places(each)) == Counter(map(str, wanted.get(each, ())))
            assert (("refused", str(each)) in kernel.elements) == (each in wanted and not wanted[each])
    assert sum(name == "places" for name, _ in kernel.elements) == sum(map(len, wanted.values()))
    after = dict(kernel.elements)
    kernel.run(rules.whole())
    assert kernel.elements == after


@pytest.mark.parametrize("count", [10, 1000])
def test_one_backend_more_or_less_is_as_much_work_beside_ten_as_beside_a_thousand(count: int) -> None:
    rules, kernel = Rules("t", 4), Kernel()
    many = {VIP + number: Balance((A, B)) for number in range(count)}
    kernel.run(rules.whole())
    kernel.run(rules.change(many))
    for places in ((A, B, C), (A, C), (C,), ()):
        kernel.run(rules.change({VIP: Balance(arranged(rules.balance(VIP).places, Counter(places)))}))
        assert kernel.last <= 6
    assert rules.change({VIP: rules.balance(VIP)}) == ""
    assert len(kernel.chains) == 3
