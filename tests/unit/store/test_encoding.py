"""Actions and objects in the log are protobuf's own bytes, and nothing else is taken for them."""

from __future__ import annotations

import gc

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from manager.store import CONFIGS, KINDS, TASKS
from manager.store.encoding import (
    decode_object,
    decode_removal,
    decode_written,
    encode_create,
    encode_object,
    encode_removal,
    encode_update,
)
from manager.store.frames import read_varint, varint
from manager.store.kinds import UnknownKindError
from manager.store.machine import Machine
from proto.objects_pb2 import Config, Task
from proto.store_pb2 import StoreAction, StoreObject, StoreRemoval, Transaction


def config(size_bytes: int) -> Config:
    made = Config(id="c1")
    made.spec.name, made.spec.data = "motd", bytes(size_bytes)
    made.spec.labels.update({"b": "2", "a": "1"})
    return made


@pytest.mark.parametrize("size_bytes", [0, 60, 120, 200, 16_000, 16_384, 500_000, 3_000_000])
def test_an_action_is_the_bytes_that_protobuf_makes_of_it(size_bytes: int) -> None:
    obj = config(size_bytes)
    whole = StoreObject(config=obj)
    assert encode_object(CONFIGS, obj) == whole.SerializeToString(deterministic=True)
    assert encode_create(CONFIGS, obj) == StoreAction(create=whole).SerializeToString(deterministic=True)
    assert encode_update(CONFIGS, obj) == StoreAction(update=whole).SerializeToString(deterministic=True)
    assert decode_written(KINDS, encode_update(CONFIGS, obj)) == (CONFIGS, obj)
    assert decode_object(KINDS, encode_object(CONFIGS, obj)) == (CONFIGS, obj)


def test_a_removal_is_too() -> None:
    removal = StoreRemoval(kind="task", id="t1", version_index=7)
    assert encode_removal(TASKS, "t1", 7) == StoreAction(remove=removal).SerializeToString()
    assert decode_removal(encode_removal(TASKS, "t1", 7)) == removal


@given(value=st.integers(0, 2**63), before=st.binary(max_size=3), after=st.binary(max_size=3))
def test_numbers_read_back(value: int, before: bytes, after: bytes) -> None:
    data = before + varint(value)
    assert read_varint(data + after, len(before)) == (value, len(data))


@pytest.mark.parametrize("cut", range(1, 12))
def test_an_action_that_is_cut_or_has_more_behind_it_is_none(cut: int) -> None:
    action = encode_update(TASKS, Task(id="t1", slot=3))
    with pytest.raises(DecodeError):
        decode_written(KINDS, action[: len(action) - cut] if cut < len(action) else b"\x12")
    with pytest.raises(DecodeError):
        decode_written(KINDS, action + bytes(cut))


def test_a_kind_of_a_later_version_is_not_read_over() -> None:
    with pytest.raises(UnknownKindError):
        decode_object(KINDS, bytes(((15 << 3) | 2, 0)))


@pytest.mark.parametrize("action", [b"", b"\x22\x00", b"\x08\x01"])
def test_an_action_of_a_later_version_ends_the_member(action: bytes) -> None:
    with pytest.raises(ValueError, match="does not know"):
        Machine().apply(1, Transaction(id="tx", actions=[action]).SerializeToString())


def test_a_stored_task_is_one_object_to_the_garbage_collector() -> None:
    """A full collection stops every thread of a manager, for as long as it has objects to look at."""
    machine = Machine()

    def entry(number: int) -> bytes:
        tasks = (Task(id=f"t{number}-{slot}", service_id="s", slot=slot + number * 100) for slot in range(100))
        return Transaction(id=f"tx{number}", actions=[encode_create(TASKS, task) for task in tasks]).SerializeToString()

    machine.apply(1, entry(1))
    gc.collect()
    before = len(gc.get_objects())
    for number in range(2, 12):
        machine.apply(number, entry(number))
    gc.collect()
    assert len(gc.get_objects()) - before < 1100
