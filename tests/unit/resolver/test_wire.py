"""Messages and answers against dnspython, which reads and writes them by other code."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.resolver import wire
from runtime.resolver.port import Asker, Attachment, Holder, NamedPort, Zone
from runtime.resolver.tables import AskerTable, ZoneTable

pytest.importorskip("dns", reason="scripts/setup --dev installs it")
import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype

LABELS = st.text("abcXYZ019-_é", min_size=1, max_size=20)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
ADDRESSES = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str))
KINDS = st.sampled_from(["A", "AAAA", "MX", "TXT", "SRV", "PTR", "HTTPS", "ANY"])
HOLDERS = st.builds(
    Holder,
    id=st.uuids().map(str),
    names=st.lists(st.one_of(NAMES, st.sampled_from(["web", "db"])), min_size=1, max_size=3).map(tuple),
    addresses=st.lists(ADDRESSES, max_size=3).map(tuple),
    ports=st.lists(st.builds(NamedPort, st.just("http"), st.just("tcp"), st.integers(1, 65535)), max_size=1).map(tuple),
)


def table(*holders: Holder, aliases: dict[str, str] | None = None, options: tuple[str, ...] = ()) -> AskerTable:
    zone = ZoneTable()
    zone.put(Zone(network_id="n", name="front", holders=holders))
    networks = (Attachment(network_id="n", aliases=aliases or {}),)
    return AskerTable(Asker(container_id="c", namespace="", networks=networks, options=options), {"n": zone})


def answered(asked: AskerTable, query: dns.message.Message, *, tcp: bool = False) -> dns.message.Message:
    """Its answer, which the oracle takes for one to this question."""
    answer = asked.respond(query.to_wire(), tcp=tcp)
    assert isinstance(answer, bytes)
    message = dns.message.from_wire(answer)
    assert query.is_response(message)
    assert message.flags & dns.flags.RA
    assert bool(message.flags & dns.flags.RD) == bool(query.flags & dns.flags.RD)
    return message


def in_text(message: dns.message.Message) -> list[str]:
    return sorted(str(record) for answer in message.answer for record in answer)


def name_of(text: str) -> dns.name.Name:
    return (
        dns.name.from_unicode(text, idna_codec=None)
        if text.isascii()
        else dns.name.Name([label.encode() for label in text.split(".")] + [b""])
    )


@given(holders=st.lists(HOLDERS, max_size=4), data=st.data(), kind=KINDS, edns=st.sampled_from([None, 0, 4096]))
def test_a_known_name_is_answered_with_what_its_holders_have(
    holders: list[Holder], data: st.DataObject, kind: str, edns: int | None
) -> None:
    known = sorted({name for holder in holders for name in holder.names})
    name = data.draw(st.sampled_from([*known, "nobody"]))
    query = dns.message.make_query(name_of(name), kind, use_edns=False if edns is None else edns, payload=4096)
    asked = table(*holders)
    if name.lower() not in {each.lower() for each in known}:
        assert isinstance(asked.respond(query.to_wire()), wire.Query)
        return
    message = answered(asked, query)
    assert message.rcode() == dns.rcode.NOERROR
    assert (message.edns >= 0) == (edns is not None)
    mine = [holder for holder in holders if name.lower() in {each.lower() for each in holder.names}]
    found = {str(ipaddress.ip_address(address)) for holder in mine for address in holder.addresses}
    of_kind = {"A": {each for each in found if ":" not in each}, "AAAA": {each for each in found if ":" in each}}
    assert {str(ipaddress.ip_address(each)) for each in in_text(message)} == of_kind.get(
        kind, found if kind == "ANY" else set()
    )


@given(address=ADDRESSES, others=st.lists(HOLDERS, max_size=2))
def test_a_reverse_question_gets_the_first_name_with_its_network(address: str, others: list[Holder]) -> None:
    asked = table(Holder(id="first", names=("web", "www"), addresses=(address,)), *others)
    message = answered(asked, dns.message.make_query(ipaddress.ip_address(address).reverse_pointer, "PTR"))
    assert in_text(message) == ["web.front."]


@given(st.binary(max_size=120))
@example(b"\0\0\1\0\0\1\0\0\0\0\0\0" + b"\x01a" * 130 + b"\0\0\1\0\1")
@example(b"\0\0\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1")
@example(b"\0\0\1\0\0\1\0\0\0\0\0\1\0\0\1\0\1\0\0\x29")
def test_no_message_upsets_it(message: bytes) -> None:
    asked = table(Holder(id="h", names=("web",), addresses=("10.0.0.2",)))
    for sent in (message, b"\0\0\1\0\0\1\0\0\0\0\0\0" + message, b"\0\0\1\0\0\1\0\0\0\0\0\1\3web\0\0\1\0\1" + message):
        answer = asked.respond(sent)
        if isinstance(answer, bytes):
            assert answer[:2] == sent[:2]
            assert dns.message.from_wire(answer).flags & dns.flags.QR
            assert len(answer) <= max(512, len(sent) + 64)
        elif answer is None:
            assert len(sent) < 12 or sent[2] & 0x80
        else:
            dns.message.from_wire(sent, question_only=True)  # what is passed on is well-formed


@given(name=NAMES, kind=KINDS, data=st.data())
def test_a_question_cut_or_changed_is_refused_passed_on_or_answered_as_what_it_is(
    name: str, kind: str, data: st.DataObject
) -> None:
    whole = dns.message.make_query(name_of(name), kind, use_edns=data.draw(st.sampled_from([False, 0]))).to_wire()
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + bytes((data.draw(st.integers(0, 255)),)) + whole[at + 1 :]
    for sent in (cut, changed):
        answer = table().respond(sent)
        if isinstance(answer, wire.Query):
            name_in_wire = dns.message.from_wire(sent, question_only=True).question[0].name.to_wire()
            assert name_in_wire is not None
            assert name_in_wire.lower() == answer.name
        elif answer is not None:
            dns.message.from_wire(answer)


@pytest.mark.parametrize(
    ("kind", "class_", "opcode", "edns", "rcode"),
    [
        ("A", "IN", dns.opcode.STATUS, False, dns.rcode.NOTIMP),
        ("A", "IN", dns.opcode.UPDATE, False, dns.rcode.NOTIMP),
        ("AXFR", "IN", dns.opcode.QUERY, False, dns.rcode.REFUSED),
        ("TKEY", "IN", dns.opcode.QUERY, False, dns.rcode.REFUSED),
        ("TXT", "CH", dns.opcode.QUERY, False, dns.rcode.REFUSED),
        ("A", "IN", dns.opcode.QUERY, 1, dns.rcode.BADVERS),
    ],
)
def test_what_we_do_not_do_is_said_so(
    kind: str, class_: str, opcode: dns.opcode.Opcode, edns: int | bool, rcode: dns.rcode.Rcode
) -> None:
    query = dns.message.make_query("web", kind, class_, use_edns=edns)
    query.set_opcode(opcode)
    answer = table().respond(query.to_wire())
    assert isinstance(answer, bytes)
    assert dns.message.from_wire(answer).rcode() == rcode


def test_a_response_is_not_answered() -> None:
    query = dns.message.make_query("web", "A")
    assert table().respond(dns.message.make_response(query).to_wire()) is None


@pytest.mark.parametrize(("payload", "fit"), [(0, 31), (1232, 75), (65535, 300)])
def test_what_does_not_fit_is_cut_off_and_said_so(payload: int, fit: int) -> None:
    addresses = tuple(f"10.0.{number // 200}.{number % 200 + 1}" for number in range(300))
    asked = table(*(Holder(id=each, names=("web",), addresses=(each,)) for each in addresses))
    query = dns.message.make_query("web", "A", use_edns=0 if payload else False, payload=payload)
    message = answered(asked, query)
    found = in_text(message)
    assert bool(message.flags & dns.flags.TC) == (fit < 300)
    assert fit - 2 <= len(found) <= fit
    assert {*found} <= {*addresses}
    assert len(message.to_wire()) <= max(payload, 512)
    whole = answered(asked, query, tcp=True)
    assert {*in_text(whole)} == {*addresses}
    assert not whole.flags & dns.flags.TC


def test_answers_are_kept_for_seconds() -> None:
    asked = table(Holder(id="h", names=("web",), addresses=("10.0.0.2",)))
    message = answered(asked, dns.message.make_query("web", "A"))
    assert [answer.ttl for answer in message.answer] == [2]


def test_several_addresses_come_in_changing_order() -> None:
    asked = table(
        *(Holder(id=each, names=("web",), addresses=(each,)) for each in ("10.0.0.1", "10.0.0.2", "10.0.0.3"))
    )
    query = dns.message.make_query("web", "A").to_wire()
    firsts = {wire_answer[-4 - 32 : -32] for _ in range(200) if isinstance(wire_answer := asked.respond(query), bytes)}
    assert len(firsts) == 3


def test_services_are_found_by_port_name() -> None:
    ports = (NamedPort("http", "tcp", 8080), NamedPort("dns", "udp", 53))
    asked = table(
        Holder(id="1", names=("web",), addresses=("10.0.0.2", "fd00::2"), ports=ports),
        Holder(id="2", names=("other", "web"), addresses=("10.0.0.3",), ports=ports[:1]),
    )
    message = answered(asked, dns.message.make_query("_http._tcp.WEB", "SRV"))
    assert in_text(message) == ["0 0 8080 other.front.", "0 0 8080 web.front."]
    extra = sorted(f"{each.name} {record}" for each in message.additional for record in each)
    assert extra == ["other.front. 10.0.0.3", "web.front. 10.0.0.2", "web.front. fd00::2"]
    assert in_text(answered(asked, dns.message.make_query("_dns._udp.web.front", "SRV"))) == ["0 0 53 web.front."]
    assert not in_text(answered(asked, dns.message.make_query("_http._tcp.web", "A")))


def test_an_alias_of_the_container_hides_what_is_so_called_on_the_network() -> None:
    holders = [
        Holder(id="1", names=("web",), addresses=("10.0.0.2",)),
        Holder(id="2", names=("db",), addresses=("10.0.0.3",)),
    ]
    asked = table(*holders, aliases={"web": "db", "gone": "nobody"})
    for name in ("web", "web.front"):
        assert in_text(answered(asked, dns.message.make_query(name, "A"))) == ["10.0.0.3"]
    assert isinstance(asked.respond(dns.message.make_query("gone", "A").to_wire()), wire.Query)


def test_a_name_with_a_dot_counts_before_one_on_a_network() -> None:
    holders = [
        Holder(id="1", names=("a.front",), addresses=("10.0.0.2",)),
        Holder(id="2", names=("a",), addresses=("10.0.0.3",)),
    ]
    assert in_text(answered(table(*holders), dns.message.make_query("a.front", "A"))) == ["10.0.0.2"]


@given(
    before=st.lists(HOLDERS, max_size=4), after=st.lists(HOLDERS, max_size=4), name=st.sampled_from(["front", "Back"])
)
def test_a_zone_that_changed_step_by_step_is_one_made_anew(
    before: list[Holder], after: list[Holder], name: str
) -> None:
    changed, anew = ZoneTable(), ZoneTable()
    changed.put(Zone(network_id="n", name="front", holders=tuple(before)))
    changed.put(Zone(network_id="n", name=name, holders=tuple(after)))
    anew.put(Zone(network_id="n", name=name, holders=tuple(after)))
    assert changed.suffix == anew.suffix
    assert {key: {*entry.holdings} | {*entry.services} for key, entry in changed.names.items()} == {
        key: {*entry.holdings} | {*entry.services} for key, entry in anew.names.items()
    }
    assert {key: {*each} for key, each in changed.reverse.items()} == {
        key: {*each} for key, each in anew.reverse.items()
    }
    for holder in after:
        changed.drop_holder(holder.id)
    assert not changed.names
    assert not changed.reverse


@given(st.text(max_size=70))
def test_a_name_is_wire_or_an_error(text: str) -> None:
    try:
        found = wire.name_bytes(text)
    except ValueError:
        return
    labels = dns.name.from_wire(found, 0)[0].labels[:-1]
    assert [*labels] == [label.encode().lower() for label in text.removesuffix(".").split(".")]


@given(others=st.lists(HOLDERS, max_size=4, unique_by=lambda holder: holder.id))
def test_a_holder_that_comes_or_goes_touches_its_own_names_alone(others: list[Holder]) -> None:
    zone = ZoneTable()
    zone.put(Zone(network_id="n", name="front", holders=tuple(others)))
    asked = AskerTable(Asker(container_id="c", namespace="", networks=(Attachment(network_id="n"),)), {"n": zone})
    mine = {wire.name_bytes(name) for name in ("web", "mine")}
    ready = {name: entry[b"\0\1\0\1"] for name, entry in zone.names.items() if name not in mine}
    zone.put_holder(Holder(id="mine", names=("web", "mine"), addresses=("10.0.0.9",)))
    assert in_text(answered(asked, dns.message.make_query("mine", "A"))) == ["10.0.0.9"]
    zone.put(Zone(network_id="n", name="front", holders=tuple(others)))  # as a node tells that came back
    assert all(zone.names[name][b"\0\1\0\1"] is answer for name, answer in ready.items())
