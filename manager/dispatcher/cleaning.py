"""What a node says of itself is shown to people: no control character of it reaches the store."""

from __future__ import annotations

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from base.printable import one_line, text_of_lines
from proto.objects_pb2 import TLSInfo

_OF_LINES = {TLSInfo.DESCRIPTOR.fields_by_name["trust_root"].full_name}
"""A certificate in PEM is compared, byte for byte, with the cluster's."""


def clean(message: Message) -> None:
    """Take control characters out of all texts of a message, in place. Keys of maps that become one are one."""
    for field, value in message.ListFields():
        nested = field.message_type
        if nested is not None and nested.GetOptions().map_entry:
            if any(entry.type == FieldDescriptor.TYPE_STRING for entry in nested.fields):
                pairs = {_cleaned(key): _cleaned(item) for key, item in value.items()}
                value.clear()
                value.update(pairs)
        elif nested is not None:
            for part in value if field.is_repeated else (value,):
                clean(part)
        elif field.type == FieldDescriptor.TYPE_STRING:
            if field.is_repeated:
                value[:] = [one_line(text) for text in value]
            else:
                setattr(message, field.name, text_of_lines(value) if field.full_name in _OF_LINES else one_line(value))


def _cleaned(value: object) -> object:
    return one_line(value) if isinstance(value, str) else value
