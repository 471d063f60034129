"""What managers say to each other: typed messages and their frames. Sans-IO.

A frame is a length (4 bytes, big-endian) and one msgpack array whose first element names the message. A
message that does not fit its type exactly is refused, whatever it is; nothing is ever unpickled.
"""

from __future__ import annotations

import struct
from typing import Annotated

import msgspec

from manager.consensus.port import ENTRY_SIZE_BYTES_MAX, ConsensusError

PROTOCOL_VERSION = 3
FRAME_SIZE_BYTES_MAX = 2 * ENTRY_SIZE_BYTES_MAX
"""Hostile or broken peers cannot make us hold more than this; a batch is far smaller, one entry always fits."""

HELLO_SIZE_BYTES_MAX = 64 * 1024
"""Of the first frame: before it nobody knows how many streams a peer opens."""

ENTRIES_MAX = 4096
"""In one message: a frame full of the smallest entries would become a hundred times its size."""

COMMAND_SIZE_BYTES_MAX = ENTRY_SIZE_BYTES_MAX + 1024
HEAD_SIZE_BYTES_MAX = 1024 * 1024
NAME_LENGTH_MAX, ADDRESS_LENGTH_MAX, CLAIM_SIZE_BYTES_MAX, ANCESTORS_MAX = 128, 512, 16 * 1024, 1024

_LENGTH = struct.Struct(">I")


class ProtocolError(ConsensusError):
    """The peer sent what no correct member sends; its connection is closed."""


Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
"""Also what comes after it fits into the 64 bits of a message and of a file."""

Name = Annotated[str, msgspec.Meta(max_length=NAME_LENGTH_MAX)]
Command = Annotated[bytes, msgspec.Meta(min_length=1, max_length=COMMAND_SIZE_BYTES_MAX)]


class _Message(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    pass


class Hello(_Message, tag="hello"):
    """First frame each way. ``node_id`` must be that of the certificate; ``group_id`` is empty before the admission.

    ``ancestors``: the groups that the sender's was forced from. ``superseded_by``: the group that was forced from the
    sender's, as far as it knows. ``instance``: another one for each start of the member. ``claim``: what the sender's
    owner says of the machine.
    """

    version: Count
    node_id: Name
    group_id: Name
    address: Annotated[str, msgspec.Meta(max_length=ADDRESS_LENGTH_MAX)]
    ancestors: Annotated[tuple[Name, ...], msgspec.Meta(max_length=ANCESTORS_MAX)]
    superseded_by: Name
    instance: Name
    claim: Annotated[bytes, msgspec.Meta(max_length=CLAIM_SIZE_BYTES_MAX)]


class Ping(_Message, tag="ping"):
    """Sent on an idle connection, so that silence means death."""


class PreVote(_Message, tag="pv"):
    """Would you vote for me in ``term``? (Raft thesis, 9.6.) ``attempt`` tells rounds of one candidate apart."""

    term: Count
    attempt: Count
    last_index: Count
    last_term: Count


class PreVoteReply(_Message, tag="pvr"):
    """``term`` is the voter's own; ``removed``: the candidate is not in the voter's committed configuration."""

    term: Count
    attempt: Count
    granted: bool
    removed: bool


class Vote(_Message, tag="v"):
    """RequestVote (Raft, figure 2). ``transfer``: the leader asked for this election."""

    term: Count
    last_index: Count
    last_term: Count
    transfer: bool


class VoteReply(_Message, tag="vr"):
    term: Count
    granted: bool


class Append(_Message, tag="a"):
    """AppendEntries. Entries are (term, command) from ``prev_index`` + 1 on; none: a heartbeat.

    ``seq`` rises with every message of a leader and comes back in the reply.
    """

    term: Count
    seq: Count
    commit_index: Count
    prev_index: Count
    prev_term: Count
    entries: Annotated[list[tuple[Count, Command]], msgspec.Meta(max_length=ENTRIES_MAX)]


class AppendReply(_Message, tag="ar"):
    """``success``: everything before ``next_index`` is on this member's disk and equal to the leader's log.

    ``reset``: send from ``next_index`` on instead. Neither: only a sign of life.
    """

    term: Count
    seq: Count
    next_index: Count
    success: bool
    reset: bool


class InstallSnapshot(_Message, tag="s"):
    """One piece of a snapshot. ``head`` (see ``snapshots.encode_head``) comes with the first, at ``number`` 0.

    ``more``: the next piece continues the state machine's chunk.
    """

    term: Count
    seq: Count
    index: Count
    number: Count
    head: Annotated[bytes, msgspec.Meta(max_length=HEAD_SIZE_BYTES_MAX)]
    data: bytes
    more: bool
    last: bool


class TimeoutNow(_Message, tag="tn"):
    """Stand for election at once (Raft thesis, 3.10)."""

    term: Count


Message = Hello | Ping | PreVote | PreVoteReply | Vote | VoteReply | Append | AppendReply | InstallSnapshot | TimeoutNow

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode_frame(message: Message) -> bytes:
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def decode_body(body: bytes | memoryview) -> Message:
    """Raises ProtocolError."""
    try:
        message: Message = _decoder.decode(body)
    except (ValueError, RecursionError) as error:  # DecodeError is a ValueError, and so is bad UTF-8
        raise ProtocolError(f"not a message: {error}") from None
    return message


class FrameDecoder:
    """Bytes in, messages out, whatever the split. The first frame is a Hello's, and may be no larger than one."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._size_bytes_max = HELLO_SIZE_BYTES_MAX

    def feed(self, data: bytes) -> list[Message]:
        """Messages completed by ``data``.

        Raises:
            ProtocolError: the stream is of no further use.
        """
        self._buffer += data
        messages: list[Message] = []
        start, size = 0, len(self._buffer)
        while size - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > self._size_bytes_max:
                raise ProtocolError(f"frame of {length} bytes, largest is {self._size_bytes_max}")
            end = start + _LENGTH.size + length
            if size < end:
                break
            messages.append(decode_body(bytes(memoryview(self._buffer)[start + _LENGTH.size : end])))
            start, self._size_bytes_max = end, FRAME_SIZE_BYTES_MAX
        del self._buffer[:start]
        return messages
