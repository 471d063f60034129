"""What is told of names, put together."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from runtime.resolver.port import (
    CONTAINERS,
    Asker,
    Attachment,
    Change,
    Directory,
    DropAsker,
    DropHolder,
    DropZone,
    Everything,
    Holder,
    NameZone,
    PutAsker,
    PutHolder,
    PutZone,
    Resolver,
    Zone,
)
from tests.unit.resolver.fakes import FakeResolver

WEB = Holder(id="w", names=("web", "www"), addresses=("10.0.0.2", "fd00::2"))
IDS = st.sampled_from(["a", "b", "c"])
HOLDERS = st.builds(
    Holder,
    id=IDS,
    names=st.tuples(st.sampled_from(["web", "db"])),
    addresses=st.tuples(st.sampled_from(["10.0.0.2", "fd00::2"])),
    source=st.sampled_from([CONTAINERS, "services"]),
)
ZONES = st.builds(Zone, network_id=IDS, name=st.just("net"), holders=st.lists(HOLDERS, max_size=3).map(tuple))
ASKERS = st.builds(
    Asker,
    container_id=IDS,
    namespace=st.just("/proc/1/ns/net"),
    networks=st.lists(st.builds(Attachment, network_id=IDS), max_size=2).map(tuple),
)
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(PutZone, ZONES),
    st.builds(NameZone, IDS, st.just("net")),
    st.builds(DropZone, IDS),
    st.builds(PutHolder, IDS, HOLDERS),
    st.builds(DropHolder, IDS, IDS),
    st.builds(PutAsker, ASKERS),
    st.builds(DropAsker, IDS),
)


@given(st.lists(CHANGES, max_size=20))
def test_what_was_told_one_by_one_is_what_is_told_anew(changes: list[Change]) -> None:
    told, anew = Directory(), Directory()
    told.sources = {CONTAINERS, "services"}
    for change in changes:
        told.apply(change)
    anew.replace(msgspec.msgpack.decode(msgspec.msgpack.encode(told.everything()), type=Everything))
    assert anew.everything() == told.everything()


def test_a_source_that_tells_everything_takes_nothing_of_another() -> None:
    told = Directory()
    service = Holder(id="s", names=("web",), addresses=("10.0.0.9",), source="services")
    for change in (NameZone("n1", "front"), PutHolder("n1", service), PutHolder("n1", WEB), PutHolder("n2", WEB)):
        told.apply(change)
    told.replace(Everything())
    assert told.holders["n1"] == {"s": service}
    assert told.names["n1"] == "front"
    told.replace(Everything(sources=("services",)))
    assert not told.everything().zones


async def test_a_name_is_known_on_its_network_alone_and_by_an_alias_of_the_asker() -> None:
    fake = FakeResolver()
    resolver: Resolver = fake
    attachment = Attachment(network_id="n1", aliases={"store": "Web"})
    await resolver.tell(
        PutZone(Zone(network_id="n1", name="front")),
        PutZone(Zone(network_id="n2", name="back", holders=(Holder(id="d", names=("db",), addresses=("10.1.0.2",)),))),
        PutHolder("n1", WEB),
        PutAsker(Asker(container_id="c", namespace="/proc/1/ns/net", networks=(attachment,))),
    )
    assert [*fake.told.addresses("c", "WWW")] == [*fake.told.addresses("c", "store")] == ["10.0.0.2", "fd00::2"]
    assert not [*fake.told.addresses("c", "db")]
    await resolver.tell(DropHolder("n1", "w"))
    assert not [*fake.told.addresses("c", "web")]
