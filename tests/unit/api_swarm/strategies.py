"""Any message, in what of it the Engine API carries in both directions."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st

from proto import options_pb2

_CHARACTERS = st.characters(codec="utf-8")


def _scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        names = [v.number for v in field.enum_type.values if v.GetOptions().Extensions[options_pb2.api]]
        return st.sampled_from(names)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=8)
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return st.text(_CHARACTERS, max_size=6)
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return st.floats(allow_nan=False, allow_infinity=False)
        case FieldDescriptor.CPPTYPE_UINT32:
            return st.integers(0, 2**32 - 1)
        case FieldDescriptor.CPPTYPE_UINT64:
            return st.integers(0, 2**64 - 1)
        case _:
            return st.integers(-(2**63), 2**63 - 1)


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor) -> Message:
    """Any message in what of it the API carries in both directions."""
    message = GetMessageClass(descriptor)()
    if descriptor is Timestamp.DESCRIPTOR:
        return Timestamp(seconds=draw(st.integers(-(10**10), 10**11)), nanos=draw(st.integers(0, 10**9 - 1)))
    for field in descriptor.fields:
        options = field.GetOptions().Extensions
        if not field.json_name[0].isupper() or options[options_pb2.internal] or options[options_pb2.write_only]:
            continue
        always_message = field.message_type is not None and options[options_pb2.always]
        oneof = field.containing_oneof
        if oneof is not None and len(oneof.fields) > 1 and message.WhichOneof(oneof.name) is not None:
            continue
        if not always_message and not draw(st.booleans()):
            continue
        _fill(draw, message, field)
    return message


def _fill(draw: st.DrawFn, message: Message, field: FieldDescriptor) -> None:
    kind = field.message_type
    target = getattr(message, field.name)
    if kind is not None and kind.GetOptions().map_entry:
        target.update(draw(st.dictionaries(st.text(_CHARACTERS, max_size=4), st.just("v"), max_size=2)))
    elif field.is_repeated and kind is not None:
        target.extend(draw(st.lists(messages(kind), max_size=2)))
    elif field.is_repeated:
        target.extend(draw(st.lists(_scalars(field), max_size=2)))
    elif kind is not None:
        target.CopyFrom(draw(messages(kind)))
        target.SetInParent()
    else:
        setattr(message, field.name, draw(_scalars(field)))
