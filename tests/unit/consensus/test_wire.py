"""Frames and messages: any split, nothing but what is defined, bounded."""

from __future__ import annotations

import contextlib
import pickle
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.consensus import wire

MESSAGES: list[wire.Message] = [
    wire.Hello(1, "a", "group", "a:2377", ("older", "old"), "newer", "process", b"claim"),
    wire.Ping(),
    wire.PreVote(3, 1, 10, 2),
    wire.PreVoteReply(3, 1, True, False),
    wire.Vote(3, 10, 2, False),
    wire.VoteReply(3, True),
    wire.Append(3, 7, 9, 10, 2, [(2, b"\x00one"), (3, b"\x01")]),
    wire.AppendReply(3, 7, 13, True, False),
    wire.InstallSnapshot(3, 8, 100, 0, b"head", b"data", True, False),
    wire.TimeoutNow(3),
]
STREAM = b"".join(wire.encode_frame(message) for message in MESSAGES)


def test_round_trip_in_one_piece() -> None:
    assert wire.FrameDecoder().feed(STREAM) == MESSAGES


def test_round_trip_split_at_every_offset() -> None:
    for offset in range(len(STREAM) + 1):
        decoder = wire.FrameDecoder()
        assert decoder.feed(STREAM[:offset]) + decoder.feed(STREAM[offset:]) == MESSAGES


def test_round_trip_byte_by_byte() -> None:
    decoder = wire.FrameDecoder()
    assert [m for byte in STREAM for m in decoder.feed(bytes([byte]))] == MESSAGES


@pytest.mark.parametrize("value", [{"type": "append_entries", "term": 1}, ("a", 1, 2), ["add", "host:1"], b"x", 1])
@pytest.mark.parametrize("protocol", range(6))
def test_pickle_is_refused(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    with pytest.raises(wire.ProtocolError):
        wire.decode_body(data)
    with pytest.raises(wire.ProtocolError):
        wire.FrameDecoder().feed(struct.pack(">I", len(data)) + data)


def test_pysyncobjs_own_frame_is_refused() -> None:
    """Its length is little-endian, so ours reads it as a giant."""
    data = pickle.dumps({"type": "request_vote"}, 2)
    with pytest.raises(wire.ProtocolError, match="largest is"):
        wire.FrameDecoder().feed(struct.pack("<I", len(data)) + data)


def test_a_giant_is_refused_from_its_length_alone() -> None:
    with pytest.raises(wire.ProtocolError, match="largest is"):
        wire.FrameDecoder().feed(struct.pack(">I", wire.HELLO_SIZE_BYTES_MAX + 1))
    greeted = wire.FrameDecoder()
    greeted.feed(wire.encode_frame(MESSAGES[0]) + struct.pack(">I", wire.FRAME_SIZE_BYTES_MAX))
    with pytest.raises(wire.ProtocolError, match="largest is"):
        wire.FrameDecoder().feed(STREAM + struct.pack(">I", wire.FRAME_SIZE_BYTES_MAX + 1))


@pytest.mark.parametrize(
    "value",
    [
        ["a", -1, 1, 1, 1, 1, []],
        ["a", 1, 1, 1, 1, 1, [[1, b""]]],
        ["a", 1, 1, 1, 1, 1, [[1, "text"]]],
        ["a", 1, 1, 1, 1, 1],
        ["a", 1, 1, 1, 1, 1, [], 1],
        ["v", 1, 1, 1, 1],
        ["v", 1, 2**62 + 1, 1, True],
        ["a", 1, 1, 1, 1, 1, [[1, b"\x01"]] * (wire.ENTRIES_MAX + 1)],
        ["a", 1, 1, 1, 1, 1, [[1, bytes(wire.COMMAND_SIZE_BYTES_MAX + 1)]]],
        ["s", 1, 1, 1, 0, bytes(wire.HEAD_SIZE_BYTES_MAX + 1), b"", False, True],
        ["hello", 1, "a" * 129, "group", "a:2377", [], "", "", b""],
        ["hello", 1, "a", "group", "a:2377", ["g"] * (wire.ANCESTORS_MAX + 1), "", "", b""],
        ["hello", 1, "a", "group", "a:2377", [], "", "", bytes(wire.CLAIM_SIZE_BYTES_MAX + 1)],
        ["apply_command", b"x"],
        [],
        {},
        None,
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_does_not_fit_its_type_is_refused(value: object) -> None:
    with pytest.raises(wire.ProtocolError):
        wire.decode_body(msgspec.msgpack.encode(value))


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_understood_but_never_crash(data: bytes) -> None:
    with contextlib.suppress(wire.ProtocolError):
        wire.decode_body(data)
