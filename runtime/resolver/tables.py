"""Which answer a question gets: the names of networks, ready as bytes, and what each container may ask for. No I/O.

A name has its records by holder, so that a holder comes and goes at the same cost on a network of ten and of ten thousand.
They are put together at the first question after a change and kept until the next one. Most questions then take two
lookups in dictionaries: one for the name as it came, one for its type. What a dictionary has as a key is a well-formed
name, so that a message that hits needs no parsing.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Collection, Iterable

from runtime.resolver import wire
from runtime.resolver.port import Asker, Attachment, Holder, NamedPort, Zone

_IN_A, _IN_AAAA, _IN_SRV, _IN_ANY = (bytes((0, kind, 0, wire.IN)) for kind in (wire.A, wire.AAAA, wire.SRV, wire.ANY))
_PLAIN = frozenset((b"\x01\x00\0\1\0\0\0\0\0\0", b"\x01\x20\0\1\0\0\0\0\0\0"))
"""The header behind the ID of nearly all questions: recursion desired, perhaps AD (dig), one question and nothing else."""
_HEAD = b"\x81\x80\0\1"

_FULL_NAME_BYTES_MAX = 255


class _Holding:
    """What a holder has, as bytes: under each of its names it is a part of the answers."""

    __slots__ = ("addresses", "full", "holder", "names", "ports")

    def __init__(self, holder: Holder, suffix: bytes) -> None:
        self.holder = holder
        self.names = _wire_names(holder.names)
        self.addresses = _wire_addresses(holder.addresses)
        self.ports = _wire_ports(holder.ports)
        full = self.names[0][:-1] + suffix if self.names else b""
        self.full = full if suffix and len(full) <= _FULL_NAME_BYTES_MAX else self.names[0] if self.names else b""

    def addresses_of(self, size: int, owner: bytes = b"") -> list[bytes]:
        """A records for 4 bytes, AAAA for 16; of the question's name unless of another."""
        kind, owners = (wire.A if size == 4 else wire.AAAA), (owner,) if owner else ()
        return [wire.record(kind, each, *owners) for each in self.addresses if len(each) == size]


class _Answer:
    """Records of one type. ``head`` and ``body`` are all of a message but ID and question, when there is no choice."""

    __slots__ = ("body", "extra", "head", "records")

    def __init__(self, records: list[bytes], extra: list[bytes]) -> None:
        self.records, self.extra = records, extra
        self.head = _HEAD + len(records).to_bytes(2, "big") + b"\0\0\0\0"
        body = b"".join(records)
        self.body = body if len(records) < 2 and not extra and len(body) < wire.UDP_BYTES_MIN // 2 else None


_NOTHING = _Answer([], [])


class _Name(dict[bytes, _Answer]):
    """Answers by type and class as in the question, made when they are first asked for."""

    __slots__ = ("holdings", "services")

    def __init__(self) -> None:
        self.holdings: dict[str, _Holding] = {}
        self.services: dict[str, tuple[_Holding, int]] = {}

    def __missing__(self, what: bytes) -> _Answer:
        """A type we have none of is answered all the same, with nothing: the name is ours, nobody else knows it."""
        if what == _IN_ANY:
            return _Answer(self._addresses(4) + self._addresses(16) + self._srv(), [])
        if what == _IN_A:
            answer = _Answer(self._addresses(4), [])
        elif what == _IN_AAAA:
            answer = _Answer(self._addresses(16), [])
        elif what == _IN_SRV and self.services:
            extra = [
                record
                for holding, _ in self.services.values()
                for size in (4, 16)
                for record in holding.addresses_of(size, holding.full)
            ]
            answer = _Answer(self._srv(), extra)
        else:
            return _NOTHING
        self[what] = answer
        return answer

    def _addresses(self, size: int) -> list[bytes]:
        found = (record for holding in self.holdings.values() for record in holding.addresses_of(size))
        return [*dict.fromkeys(found)]

    def _srv(self) -> list[bytes]:
        return [wire.record(wire.SRV, wire.srv_data(port, holding.full)) for holding, port in self.services.values()]


class ZoneTable:
    """One network's names. ``names`` is one object for as long as somebody asks in it."""

    def __init__(self) -> None:
        self.names: dict[bytes, _Name] = {}
        self.reverse: dict[bytes, dict[str, _Holding]] = {}
        self.suffix = b""
        self.askers = 0
        self.is_put = False
        self._holdings: dict[str, _Holding] = {}

    def put(self, zone: Zone, sources: Collection[str] | None = None) -> None:
        """All of it, of some sources or (None) of all. What is as it was stays untouched: a node that comes back tells
        everything anew."""
        self.call(zone.name)
        self.keep({holder.id for holder in zone.holders}, sources)
        for holder in zone.holders:
            known = self._holdings.get(holder.id)
            if known is None or known.holder != holder:
                self.put_holder(holder)

    def call(self, name: str) -> None:
        """Give it a name, or another one; "" is none."""
        try:
            suffix = wire.name_bytes(name)
        except ValueError:  # a network may be called what no name of the DNS can be: it has no full names then
            suffix = b""
        self.is_put = True
        if suffix != self.suffix:
            self.suffix = suffix
            for holding in tuple(self._holdings.values()):
                self.put_holder(holding.holder)

    def keep(self, holder_ids: Collection[str], sources: Collection[str] | None) -> None:
        """No others of these sources (None: of all)."""
        for holding in tuple(self._holdings.values()):
            if holding.holder.id not in holder_ids and (sources is None or holding.holder.source in sources):
                self.drop_holder(holding.holder.id)

    def __len__(self) -> int:
        """How many holders it has."""
        return len(self._holdings)

    def drop(self) -> None:
        """Nothing of it."""
        self.names.clear()
        self.reverse.clear()
        self._holdings.clear()
        self.suffix, self.is_put = b"", False

    def put_holder(self, holder: Holder) -> None:
        """In place of one with its ID. A name or an address that cannot be one is passed over."""
        self.is_put = True
        self.drop_holder(holder.id)
        self._holdings[holder.id] = holding = _Holding(holder, self.suffix)
        for name in holding.names:
            self._name(name).holdings[holder.id] = holding
            for prefix, port in holding.ports:
                self._name(prefix + name).services[holder.id] = holding, port
        for address in holding.addresses:
            self.reverse.setdefault(address, {})[holder.id] = holding

    def drop_holder(self, holder_id: str) -> None:
        """Gone already is fine."""
        holding = self._holdings.pop(holder_id, None)
        if holding is None:
            return
        for name in holding.names:
            self._leave(name, holder_id)
            for prefix, _ in holding.ports:
                self._leave(prefix + name, holder_id)
        for address in set(holding.addresses):
            owners = self.reverse[address]
            del owners[holder_id]
            if not owners:
                del self.reverse[address]

    def _name(self, name: bytes) -> _Name:
        """About to change."""
        entry = self.names.get(name)
        if entry is None:
            entry = self.names[name] = _Name()
        entry.clear()
        return entry

    def _leave(self, name: bytes, holder_id: str) -> None:
        entry = self._name(name)
        entry.holdings.pop(holder_id, None)
        entry.services.pop(holder_id, None)
        if not entry.holdings and not entry.services:
            del self.names[name]


def _wire_names(names: Iterable[str]) -> list[bytes]:
    """Those that can be names, each once."""
    found: dict[bytes, None] = {}
    for name in names:
        with contextlib.suppress(ValueError):
            found[wire.name_bytes(name)] = None
    return [*found]


def _wire_addresses(addresses: Iterable[str]) -> list[bytes]:
    found: dict[bytes, None] = {}
    for address in addresses:
        with contextlib.suppress(OSError, ValueError):
            found[wire.address_bytes(address)] = None
    return [*found]


def _wire_ports(ports: Iterable[NamedPort]) -> list[tuple[bytes, int]]:
    """What stands before the holder's names, and the port."""
    found: dict[bytes, int] = {}
    for port in ports:
        with contextlib.suppress(ValueError):
            found[wire.name_bytes(f"_{port.name}._{port.protocol}")[:-1]] = port.number & 0xFFFF
    return [*found.items()]


class AskerTable:
    """What one container may ask for, over the zones it is on."""

    def __init__(self, asker: Asker, zones: dict[str, ZoneTable]) -> None:
        """``zones``: by network ID; one that was not put yet is made there."""
        self.asker = asker
        self._places = [(zones.setdefault(each.network_id, ZoneTable()), _aliases(each)) for each in asker.networks]
        for zone, _ in self._places:
            zone.askers += 1
        self._names = (
            () if any(aliases for _, aliases in self._places) else tuple(zone.names for zone, _ in self._places)
        )
        self._roots_stay = any(option.partition(":")[0] == "ndots" for option in asker.options)

    def close(self) -> None:
        """It asks no more in the zones."""
        for zone, _ in self._places:
            zone.askers -= 1

    def respond(self, message: bytes, *, tcp: bool = False) -> bytes | wire.Query | None:
        """The answer; a question that others have to answer; None for what gets none."""
        if message[2:12] in _PLAIN:
            end = message.find(b"\0", 12) + 1
            if end + 4 == len(message):
                name = message[12:end]
                for names in self._names:
                    entry = names.get(name)
                    if entry is not None:
                        answer = entry[message[end:]]
                        if answer.body is not None:
                            return message[:2] + answer.head + message[12:] + answer.body
                        break
        query = wire.parse(message)
        if query is None:
            return None
        if isinstance(query, wire.Refusal):
            return query.answer
        found = self._find(query)
        if found is not None:
            records = found.records
            if len(records) > 1:
                records = random.sample(records, len(records))
            return wire.reply(query, records, found.extra, tcp=tcp)
        if self._roots_stay and query.kind in (wire.A, wire.AAAA) and len(query.name) == query.name[0] + 2:
            return wire.reply(query)  # the client goes on with its search list (moby libnetwork/resolver.go, serveDNS)
        return query

    def _find(self, query: wire.Query) -> _Answer | None:
        if query.kind == wire.PTR and (address := wire.reversed_address(query.name)):
            for zone, _ in self._places:
                for holding in zone.reverse.get(address, {}).values():
                    if holding.full:
                        return _Answer([wire.record(wire.PTR, holding.full)], [])
        name = self._name(query.name)
        return None if name is None else name[query.question[-4:]]

    def _name(self, asked: bytes) -> _Name | None:
        """A name as it stands in all zones, then before the name of a zone (moby libnetwork/sandbox.go, ResolveName)."""
        for zone, aliases in self._places:
            if asked in aliases and (found := zone.names.get(aliases[asked])) is not None:
                return found
        for zone, aliases in self._places:
            if asked not in aliases and (found := zone.names.get(asked)) is not None:
                return found
        for zone, aliases in self._places:
            if zone.suffix and asked.endswith(zone.suffix):
                short = asked[: -len(zone.suffix)] + b"\0"
                if (found := zone.names.get(aliases.get(short, short))) is not None:
                    return found
        return None


def _aliases(attachment: Attachment) -> dict[bytes, bytes]:
    found = {}
    for alias, name in attachment.aliases.items():
        with contextlib.suppress(ValueError):
            found[wire.name_bytes(alias)] = wire.name_bytes(name)
    return found
