"""Nothing that a node says of itself keeps managers from writing its object again, nor a leader from serving."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from manager.dispatcher import nodes
from proto.dispatcher_pb2 import SessionRequest
from proto.objects_pb2 import Machine, NodeDescription, NodeState
from tests.unit.dispatcher.support import AgentHost, Manager, make_node
from tests.waiting import until

NOW = Timestamp(seconds=1_800_000_000)


def unknown_field(size: int) -> bytes:
    """Number 2047, of that many bytes (at least 2**21)."""
    return (
        b"\xfa\x7f" + bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21]) + b"x" * size
    )


@pytest.mark.parametrize("field", ["machine", "description"])
def test_fields_that_nobody_knows_are_refused_when_large_and_never_kept(field: str) -> None:
    def with_unknown(data: bytes) -> SessionRequest:
        request = SessionRequest(description=NodeDescription(hostname="h"), boot_nonce="a", machine=Machine(id="m"))
        part: Message = getattr(request, field)
        part.MergeFromString(data)
        return request

    assert nodes.invalid_request(with_unknown(unknown_field(4_194_130)), first=True)
    small = with_unknown(b"\xfa\x7f\x64" + b"x" * 100)
    assert nodes.invalid_request(small, first=True) == ""
    changed = nodes.registered(make_node("n1"), small, NOW)
    assert changed is not None
    assert getattr(changed, field).ByteSize() < 20


@pytest.mark.parametrize("first", [True, False])
def test_a_message_is_no_larger_than_what_it_may_say(first: bool) -> None:
    """It is kept for as long as the session, or until it is stored."""
    request = SessionRequest(description=NodeDescription(hostname="h"), boot_nonce="a", machine=Machine(id="m"))
    request.MergeFromString(unknown_field(4_194_130))
    assert "at most" in nodes.invalid_request(request, first=first)


async def test_a_node_that_does_not_fit_into_the_log_keeps_no_leader_from_serving(
    manager: Manager, host: AgentHost
) -> None:
    large = make_node("large")
    large.status.state = NodeState.NODE_STATE_READY
    large.machine.MergeFromString(unknown_field(4_194_130))
    await manager.add(large)
    await manager.follow()
    manager.lead()
    host.start()
    await until(lambda: manager.node("n1").status.state == NodeState.NODE_STATE_READY)
