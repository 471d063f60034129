"""What a node says of itself and of its tasks is shown to people: no control character of it reaches the store."""

from __future__ import annotations

from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from base.printable import one_line, text_of_lines
from proto.objects_pb2 import TLSInfo

_OF_LINES = {TLSInfo.DESCRIPTOR.fields_by_name["trust_root"].full_name}
"""A certificate in PEM is compared, byte for byte, with the cluster's."""


@cache
def _fields_with_text(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    """The fields in which a text can be, found once a message type: statuses are cleaned thousands of times a second."""
    return tuple(
        field
        for field in descriptor.fields
        if field.type == FieldDescriptor.TYPE_STRING
        or (field.message_type is not None and field.message_type is not descriptor and _has_text(field.message_type))
    )


def _has_text(descriptor: Descriptor) -> bool:
    return bool(_fields_with_text(descriptor))


def clean(message: Message) -> None:
    """Take control characters out of all texts of a message, in place. Keys of maps that become one are one."""
    for field in _fields_with_text(message.DESCRIPTOR):
        nested = field.message_type
        if nested is not None and not field.is_repeated:
            if message.HasField(field.name):
                clean(getattr(message, field.name))
            continue
        value = getattr(message, field.name)
        if not value:
            continue
        if nested is None:
            _clean_text(message, field, value)
        elif nested.GetOptions().map_entry:
            pairs = {_cleaned(key): _cleaned(item) for key, item in value.items()}
            value.clear()
            value.update(pairs)
        else:
            for part in value:
                clean(part)


def _clean_text(message: Message, field: FieldDescriptor, value: str | list[str]) -> None:
    if not isinstance(value, str):
        value[:] = [one_line(text) for text in value]
    elif not value.isprintable():
        setattr(message, field.name, text_of_lines(value) if field.full_name in _OF_LINES else one_line(value))


def _cleaned(value: object) -> object:
    return one_line(value) if isinstance(value, str) else value
