"""JSON bodies read as Go's decoder would read them, into msgspec Structs.

Clients rely on what encoding/json forgives: keys in any case, unknown keys, ``null`` for any zero value. Everything
else stays strict: a wrong type is refused with its path. Protobuf messages have ``api.json_codec`` for the same rules.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from api.errors import BadRequestError
from base.json_text import read_json

S = TypeVar("S", bound=msgspec.Struct)
_Shape = Callable[[Any], Any]  # JSON in, JSON out: any value is possible until msgspec has checked it


def decode_object(body: bytes) -> dict[str, object]:
    """The JSON object in ``body``. Raises: BadRequestError for anything else."""
    try:
        value = read_json(body, type=object)
    except msgspec.DecodeError as error:
        raise BadRequestError(f"invalid JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequestError(f"invalid JSON: want an object, got {type(value).__name__}")
    return value


def convert(value: object, kind: type[S]) -> S:
    """A Struct of ``kind`` from decoded JSON. Raises: BadRequestError naming the path of what does not fit."""
    try:
        return msgspec.convert(normalise(value, kind), kind)
    except msgspec.ValidationError as error:
        raise BadRequestError(f"invalid JSON: {error}") from None


def normalise(value: object, kind: type[msgspec.Struct]) -> object:
    """``value`` with the keys of ``kind`` in their own spelling, without nulls and unknown keys."""
    shape = _shape_of(kind)
    return value if shape is None else shape(value)


@functools.cache
def _shape_of(kind: type[msgspec.Struct]) -> _Shape | None:
    return _shape(inspect.type_info(kind))


def _shape(info: inspect.Type) -> _Shape | None:
    """None where nothing below needs a look, which spares the walk through lists of strings."""
    if isinstance(info, inspect.UnionType):
        shapes = [found for member in info.types if (found := _shape(member)) is not None]
        return shapes[0] if shapes else None
    if isinstance(info, inspect.StructType):
        return _struct_shape(info)
    if isinstance(info, inspect.ListType):
        item = _shape(info.item_type)
        return None if item is None else lambda value: [item(v) for v in value] if isinstance(value, list) else value
    if isinstance(info, inspect.DictType):
        member = _shape(info.value_type)
        if member is None:
            return None
        return lambda value: {k: member(v) for k, v in value.items()} if isinstance(value, dict) else value
    return None


def _struct_shape(info: inspect.StructType) -> _Shape:
    shapes = {field.encode_name: _shape(field.type) for field in info.fields}
    by_lower = {name.lower(): name for name in shapes}

    def shape(value: object) -> object:
        if not isinstance(value, dict):
            return value
        result: dict[str, object] = {}
        for key, member in value.items():
            name = key if key in shapes else by_lower.get(key.lower())
            if name is None or member is None or (name in result and name != key):
                continue
            inner = shapes[name]
            result[name] = member if inner is None else inner(member)
        return result

    return shape
