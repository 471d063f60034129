"""What the process makes of what it is told: after any changes each name has the answer that the last of them gives it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.resolver import wire
from runtime.resolver.forwarding import Room
from runtime.resolver.loop import Loop
from runtime.resolver.port import (
    CONTAINERS,
    Asker,
    Attachment,
    Change,
    Directory,
    DropHolder,
    DropZone,
    Everything,
    Holder,
    NameZone,
    PutAsker,
    PutHolder,
    PutZone,
    Zone,
)
from runtime.resolver.server import Server
from runtime.resolver.tables import AskerTable
from tests.unit.resolver.places import AAAA, A, addresses, question

NETWORKS, NAMES = ("n1", "n2"), ("web", "a.B")
IDS = st.sampled_from(["1", "2", "3"])
HOLDERS = st.builds(
    Holder,
    id=IDS,
    names=st.sampled_from([("web",), ("web", "A.b"), ()]),
    addresses=st.lists(st.sampled_from(["10.0.0.2", "10.0.0.3", "fd00::2"]), max_size=2).map(tuple),
    source=st.sampled_from([CONTAINERS, "services"]),
)
WEB = [Holder(id=each, names=("web",), addresses=(f"10.0.0.{each}",)) for each in ("1", "2")]
ZONES = st.builds(
    Zone,
    network_id=st.sampled_from(NETWORKS),
    name=st.sampled_from(["front", "back"]),
    holders=st.lists(HOLDERS, max_size=3, unique_by=lambda holder: holder.id).map(tuple),
)
CHANGES: st.SearchStrategy[Change | Everything] = st.one_of(
    st.builds(PutZone, ZONES),
    st.builds(NameZone, st.sampled_from(NETWORKS), st.sampled_from(["front", "back"])),
    st.builds(DropZone, st.sampled_from(NETWORKS)),
    *2
    * [st.builds(PutHolder, st.sampled_from(NETWORKS), HOLDERS), st.builds(DropHolder, st.sampled_from(NETWORKS), IDS)],
    st.builds(
        Everything,
        zones=st.lists(ZONES, max_size=2, unique_by=lambda zone: zone.network_id).map(tuple),
        sources=st.sampled_from([(CONTAINERS,), ("services",), (CONTAINERS, "services")]),
    ),
)


@pytest.fixture
def server() -> Iterator[Server]:
    loop = Loop()
    made = Server(loop, Room(1))
    yield made
    made.close()
    loop.close()


def found(asked: AskerTable, name: str) -> set[str] | None:
    """Both address families; None: somebody else has to know."""
    answers = [asked.respond(question(name, kind)) for kind in (A, AAAA)]
    if all(isinstance(answer, wire.Query) for answer in answers):
        return None
    return set(itertools.chain.from_iterable(addresses(each) for each in answers if isinstance(each, bytes)))


@given(changes=st.lists(CHANGES, min_size=4, max_size=20))
@example([PutHolder("n1", WEB[0]), PutHolder("n1", WEB[1]), DropHolder("n1", "1"), DropHolder("n1", "2")])
def test_no_answer_is_older_than_the_last_change(changes: list[Change | Everything]) -> None:
    loop, directory = Loop(), Directory()
    server = Server(loop, Room(1))
    networks = tuple(Attachment(network_id=each) for each in NETWORKS)
    asker = Asker(container_id="c", namespace="", networks=networks)
    asked = AskerTable(asker, server.zones)
    directory.apply(PutAsker(asker))
    try:
        for change in changes:
            if isinstance(change, Everything):
                directory.replace(Everything(change.zones, (asker,), change.sources))
            else:
                directory.apply(change)
            noted: list[str] = []
            server.apply(change, noted.append)
            assert noted == [""]
            for name in NAMES:
                first = next(
                    (
                        {address for holder in holders.values() if holds(holder, name) for address in holder.addresses}
                        for holders in (directory.holders.get(each, {}) for each in NETWORKS)
                        if any(holds(holder, name) for holder in holders.values())
                    ),
                    None,
                )
                assert found(asked, name) == found(asked, name.swapcase()) == first
    finally:
        server.close()
        loop.close()


def holds(holder: Holder, name: str) -> bool:
    return name.lower() in (each.lower() for each in holder.names)


def test_zones_that_nobody_has_or_asks_in_are_not_kept(server: Server) -> None:
    asked = AskerTable(Asker(container_id="c", namespace="", networks=(Attachment(network_id="n1"),)), server.zones)
    server.apply(DropZone("n1"), lambda failure: None)
    server.apply(NameZone("n2", "back"), lambda failure: None)
    assert set(server.zones) == {"n1", "n2"}
    asked.close()
    server.apply(DropZone("n1"), lambda failure: None)
    server.apply(Everything(), lambda failure: None)
    assert not server.zones
