"""Messages without the fields that the schema marks with an option, such as ``(write_only)``."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FieldOptions

    # The only name that the type stubs have for the key of `Extensions`.
    from google.protobuf.internal.extension_dict import _ExtensionFieldDescriptor

    Option = _ExtensionFieldDescriptor[FieldOptions, bool]

M = TypeVar("M")
"""A message; not bound to ``Message``, for callers that know it by a protocol of theirs."""


def without_marked(message: M, option: Option) -> M:
    """A copy of ``message`` without the fields that have ``option``; the message itself when none of them can be there.

    Fields in repeated fields and in maps are not looked at: an option of this kind belongs to a field outside of them.
    """
    assert isinstance(message, Message)
    paths = [path for path in _marked(message.DESCRIPTOR, option) if _has(message, path[:-1])]
    if not paths:
        return message
    copy = type(message)()
    copy.CopyFrom(message)
    for *parents, name in paths:
        inner: Message = copy
        for parent in parents:
            inner = getattr(inner, parent)
        inner.ClearField(name)
    return copy


def _has(message: Message, path: Sequence[str]) -> bool:
    for name in path:
        if not message.HasField(name):
            return False
        message = getattr(message, name)
    return True


@functools.cache
def _marked(message: Descriptor, option: Option) -> tuple[Sequence[str], ...]:
    """Paths of the marked fields of a message."""

    def walk(here: Descriptor, path: Sequence[str], above: Sequence[Descriptor]) -> Iterator[Sequence[str]]:
        for field in here.fields:
            below = field.message_type
            if field.GetOptions().Extensions[option]:
                yield (*path, field.name)
            elif below is not None and not field.is_repeated and below not in above:
                yield from walk(below, (*path, field.name), (*above, below))

    return tuple(walk(message, (), (message,)))
