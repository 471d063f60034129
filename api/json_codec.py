"""Engine API JSON to protobuf messages and back, driven by the messages' descriptors.

One rule book for every message, so that no handler knows both spellings:

- A field's JSON key is its ``json_name``; a field without one of its own, or with ``(internal)``, has no place in
  the API. ``(write_only)`` is read, never written.
- Reading: keys in any case (Go matches so, docker-py relies on it), unknown keys ignored, ``null`` as absent, types
  and ranges checked, two members of a ``oneof`` refused. Errors name the path of what is wrong.
- Writing: Go's ``omitempty``; ``(always)`` fields are written with their default.
- Enums are spelled by their ``(api)`` option (read in any case, ``""`` as absent), bytes are base64, timestamps
  RFC 3339 with up to nine digits of a second.

A plan per message type is compiled once, on first use. Features W03, W14, W15.
"""

from __future__ import annotations

import base64
import binascii
import functools
import keyword
import operator
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from api.errors import BadRequestError
from base.json_text import read_json
from proto import options_pb2

M = TypeVar("M", bound=Message)
_Encode = Callable[[Any], object]  # what upb hands out has no useful static type
_Decode = Callable[[object], Any]
_Assign = Callable[[Message, object], None]

ZERO_TIME = "0001-01-01T00:00:00Z"
"""Go's zero time, which it writes for a time that was never set."""


class JSONError(BadRequestError):
    """The body is no JSON, or not what the message wants; ``str`` is ``Path.To.Field: what is wrong``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""

    def under(self, name: str) -> JSONError:
        """The same error seen from one level up, where the value was at ``name`` (a key or ``[index]``)."""
        self.path = f"{name}.{self.path}" if self.path and not self.path.startswith("[") else f"{name}{self.path}"
        return self

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


# ---------------------------------------------------------------- entry points


def parse_json(body: bytes) -> object:
    """The value in ``body``. Raises: JSONError."""
    if not body.strip():
        raise JSONError("invalid JSON: got EOF while reading request body")
    try:
        return read_json(body, type=object)
    except msgspec.DecodeError as error:
        raise JSONError(f"invalid JSON: {error}") from error


def decode_json(kind: type[M], body: bytes) -> M:
    """A message from a request body. Raises: JSONError."""
    return decode(kind, parse_json(body))


def decode(kind: type[M], value: object) -> M:
    """A message from a JSON value as ``parse_json`` gives it; ``null`` is the empty message. Raises: JSONError."""
    message = kind()
    _merge(message, {} if value is None else value)
    return message


def encode(message: Message) -> dict[str, object]:
    """The message as a value for ``msgspec.json.encode``; the nested values must not be changed by the caller."""
    return _writer(message.DESCRIPTOR)(message)


def encode_json(message: Message) -> bytes:
    """The message as JSON text."""
    return msgspec.json.encode(encode(message))


def json_text(value: object) -> bytes:
    """What ``encode`` gave as JSON text."""
    return msgspec.json.encode(value)


def enum_from_api(enum: EnumDescriptor, text: str) -> int:
    """The number of an enum value by its API spelling, in any case; ``""`` is 0. Raises: JSONError."""
    number = _enum_numbers(enum).get(text.lower())
    if number is None:
        choices = ", ".join(name for name in _enum_numbers(enum) if name)
        raise JSONError(f'invalid value "{text}", want one of: {choices}')
    return number


# ---------------------------------------------------------------- schema


def _api_fields(descriptor: Descriptor) -> list[FieldDescriptor]:
    return [
        field
        for field in descriptor.fields
        if field.json_name[0].isupper() and not field.GetOptions().Extensions[options_pb2.internal]
    ]


@functools.cache
def _enum_names(enum: EnumDescriptor) -> dict[int, str]:
    return {value.number: value.GetOptions().Extensions[options_pb2.api] for value in enum.values}


@functools.cache
def _enum_numbers(enum: EnumDescriptor) -> dict[str, int]:
    return {"": 0} | {name: number for number, name in _enum_names(enum).items() if name}


def _map_value(field: FieldDescriptor) -> FieldDescriptor | None:
    """The field of a map's values; None for what is no map."""
    entry = field.message_type
    return entry.fields_by_name["value"] if entry is not None and entry.GetOptions().map_entry else None


# ---------------------------------------------------------------- writing


@functools.cache
def _writer(descriptor: Descriptor) -> Callable[[Message], dict[str, object]]:
    """A function of its own for each message type, compiled from a line or two a field.

    Lists have tens of thousands of messages to write: reading fields by name takes two thirds of the time of asking each
    message what it has (``ListFields``) and looking the fields up.
    """
    scope: dict[str, Any] = {}
    lines = ["def write(m):", " has = m.HasField", " r = {}"]
    for field in sorted(_api_fields(descriptor), key=lambda field: field.number):
        if not field.GetOptions().Extensions[options_pb2.write_only]:
            lines += _written(field, scope)
    source = "\n".join([*lines, " return r"])
    exec(compile(source, f"<writer of {descriptor.full_name}>", "exec"), scope)
    write: Callable[[Message], dict[str, object]] = scope["write"]
    return write


def _written(field: FieldDescriptor, scope: dict[str, Any]) -> list[str]:
    """The lines that put a field of the message ``m`` into the result ``r``; what they call is put into ``scope``."""
    number, target = field.number, f"r[{field.json_name!r}]"
    value = f"getattr(m, {field.name!r})" if keyword.iskeyword(field.name) else f"m.{field.name}"
    encode_field = _field_encoder(field)
    scope[f"e{number}"] = encode_field
    encoded = "{}" if encode_field is _same else f"e{number}({{}})"
    always = field.GetOptions().Extensions[options_pb2.always] or _zero_has_name(field)
    if always and field.message_type is not None and not field.is_repeated:
        scope[f"d{number}"] = _default(field)
        return [f" {target} = {encoded.format(value)} if has({field.name!r}) else d{number}"]
    if always:
        return [f" {target} = {encoded.format(value)}"]
    if field.has_presence:
        return [f" if has({field.name!r}): {target} = {encoded.format(value)}"]
    return [f" v = {value}", f" if v: {target} = {encoded.format('v')}"]


def _zero_has_name(field: FieldDescriptor) -> bool:
    """An enum whose zero is a word of the API ("unknown") is never left out."""
    return (
        field.enum_type is not None
        and not field.is_repeated
        and not field.has_presence
        and bool(_enum_names(field.enum_type)[0])
    )


def _default(field: FieldDescriptor) -> object:
    """What stands for a message that is not there but always shown."""
    assert field.message_type is not None
    if field.message_type is Timestamp.DESCRIPTOR:
        return ZERO_TIME
    return encode(GetMessageClass(field.message_type)())


def _field_encoder(field: FieldDescriptor) -> _Encode:
    values = _map_value(field)
    if values is not None:
        return _map_encoder(values)
    one = _value_encoder(field)
    if not field.is_repeated:
        return one
    if one is _same:
        return list
    return lambda values: [one(value) for value in values]


def _map_encoder(value_field: FieldDescriptor) -> _Encode:
    """Keys in order, as Go writes them; a protobuf map has none of its own, not even the same in two equal messages."""
    one = _value_encoder(value_field)
    return lambda values: {key: one(value) for key, value in sorted(values.items(), key=_key)}


_key = operator.itemgetter(0)


def _value_encoder(field: FieldDescriptor) -> _Encode:
    if field.message_type is Timestamp.DESCRIPTOR:
        return format_timestamp
    if field.message_type is not None:
        return _writer(field.message_type)
    return _scalar_encoder(field)


def _scalar_encoder(field: FieldDescriptor) -> _Encode:
    if field.enum_type is not None:
        names = _enum_names(field.enum_type)
        return lambda number: names.get(number, "")
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda data: base64.b64encode(data).decode()
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return lambda number: int(number) if number.is_integer() else number
    return _same


def _same(value: object) -> object:
    return value


# ---------------------------------------------------------------- reading


@functools.cache
def _reader(descriptor: Descriptor) -> dict[str, tuple[str, _Assign]]:
    """By lower-case key: the key as the API spells it, and what puts a value into a message."""
    return {field.json_name.lower(): (field.json_name, _assigner(field)) for field in _api_fields(descriptor)}


def _merge(message: Message, value: object) -> None:
    if not isinstance(value, dict):
        raise JSONError(f"want an object, got {_shown(value)}")
    fields = _reader(message.DESCRIPTOR)
    for key, item in value.items():
        entry = fields.get(key.lower())
        if entry is None or item is None:
            continue
        try:
            entry[1](message, item)
        except JSONError as error:
            raise error.under(entry[0]) from error.__cause__


def _assigner(field: FieldDescriptor) -> _Assign:
    values = _map_value(field)
    if values is not None:
        assign = _map_assigner(field, values)
    elif field.is_repeated:
        assign = _list_assigner(field)
    elif field.message_type is not None:
        assign = _message_assigner(field)
    else:
        assign = _scalar_assigner(field)
    oneof = field.containing_oneof
    if oneof is None or len(oneof.fields) == 1:  # `optional` is a oneof of one
        return assign
    return _oneof_assigner(oneof.name, [member.json_name for member in oneof.fields], field.name, assign)


def _oneof_assigner(oneof: str, choices: list[str], name: str, assign: _Assign) -> _Assign:
    def assign_once(message: Message, value: object) -> None:
        if message.WhichOneof(oneof) not in (None, name):
            raise JSONError(f"only one of {', '.join(choices)} may be given")
        assign(message, value)

    return assign_once


def _scalar_assigner(field: FieldDescriptor) -> _Assign:
    name, decode_one = field.name, _scalar_decoder(field)
    return lambda message, value: setattr(message, name, decode_one(value))


def _message_assigner(field: FieldDescriptor) -> _Assign:
    name = field.name
    if field.message_type is Timestamp.DESCRIPTOR:
        return lambda message, value: getattr(message, name).CopyFrom(parse_timestamp(value))

    def assign(message: Message, value: object) -> None:
        child = getattr(message, name)
        child.SetInParent()
        _merge(child, value)

    return assign


def _list_assigner(field: FieldDescriptor) -> _Assign:
    name = field.name
    decode_one = None if field.message_type is not None else _scalar_decoder(field)

    def assign(message: Message, value: object) -> None:
        if not isinstance(value, list):
            raise JSONError(f"want a list, got {_shown(value)}")
        target = getattr(message, name)
        del target[:]
        for index, item in enumerate(value):
            try:
                if decode_one is not None:
                    target.append(decode_one(item))
                else:
                    _merge(target.add(), item)
            except JSONError as error:
                raise error.under(f"[{index}]") from error.__cause__

    return assign


def _map_assigner(field: FieldDescriptor, value_field: FieldDescriptor) -> _Assign:
    name = field.name
    if value_field.message_type is not None or value_field.type != FieldDescriptor.TYPE_STRING:
        raise TypeError(f"{field.full_name}: the Engine API has no maps but of strings")

    def assign(message: Message, value: object) -> None:
        if not isinstance(value, dict):
            raise JSONError(f"want an object, got {_shown(value)}")
        target = getattr(message, name)
        target.clear()
        for key, item in value.items():
            try:
                target[_text(key)] = "" if item is None else _text(item)
            except JSONError as error:
                raise error.under(f"[{key!r}]") from error.__cause__

    return assign


_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def _scalar_decoder(field: FieldDescriptor) -> _Decode:
    kind, enum = field.cpp_type, field.enum_type
    if kind in _RANGES:
        low, high = _RANGES[kind]
        return lambda value: _integer(value, low, high)
    if enum is not None:
        return lambda value: enum_from_api(enum, _text(value))
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return _bytes if field.type == FieldDescriptor.TYPE_BYTES else _text
    return _boolean if kind == FieldDescriptor.CPPTYPE_BOOL else _number


def _integer(value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise JSONError(f"want an integer, got {_shown(value)}")
    if not low <= value <= high:
        raise JSONError(f"out of range: {value}, want {low}..{high}")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise JSONError(f"want a number, got {_shown(value)}")
    return float(value)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise JSONError(f"want true or false, got {_shown(value)}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise JSONError(f"want a string, got {_shown(value)}")
    return value


def _bytes(value: object) -> bytes:
    try:
        return base64.b64decode(_text(value).replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError) as error:
        raise JSONError("want base64") from error


def _shown(value: object) -> str:
    """The value for an error message: short, and never the content of something large."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---------------------------------------------------------------- time

_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def format_timestamp(stamp: Timestamp) -> str:
    """RFC 3339 in UTC, the fraction without trailing zeros, as Go's ``time.RFC3339Nano``."""
    return _moment_text(stamp.seconds, stamp.nanos)


@functools.lru_cache(maxsize=4096)
def _moment_text(seconds: int, nanos: int) -> str:
    """Objects of one entry were made at the same moment."""
    if not nanos:
        return f"{_seconds_text(seconds)}Z"
    return f"{_seconds_text(seconds)}.{nanos:09d}".rstrip("0") + "Z"


@functools.lru_cache(maxsize=4096)
def _seconds_text(seconds: int) -> str:
    """Objects made together share the second; formatting one is the dearest part of a moment."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def parse_timestamp(value: object) -> Timestamp:
    """The reverse of ``format_timestamp``, any zone offset. Raises: JSONError."""
    match = _RFC3339.fullmatch(_text(value))
    if match is None:
        raise JSONError(f"want a time (RFC 3339), got {_shown(value)}")
    day, clock, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{zone.upper().replace('Z', '+00:00')}")
    except ValueError as error:
        raise JSONError(f"want a time (RFC 3339), got {_shown(value)}") from error
    return Timestamp(seconds=int(moment.timestamp()), nanos=int((fraction or "0").ljust(9, "0")))
