"""The control API on gRPC: one handler for all its RPCs, so that a proxy and the service itself are put there alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from manager.control.errors import to_wire
from proto import control_pb2

log = structlog.get_logger(__name__)

SERVICE = control_pb2.DESCRIPTOR.services_by_name["Control"]

ANSWER_SIZE_BYTES_MAX = 128 * 1024 * 1024
"""Lists of a large cluster exceed gRPC's 4 MiB; Docker allows as much here."""

CHANNEL_OPTIONS = (("grpc.max_receive_message_length", ANSWER_SIZE_BYTES_MAX),)
"""For channels that carry the control API. What servers take in is another thing: ``REQUEST_SIZE_BYTES_MAX``."""

FORWARDED = "swarm-forwarded"
"""Metadata key of a call that another manager passed on. It is answered here or not at all: two managers that each
take the other for the leader must not pass it to and fro."""

passed_on: ContextVar[bool] = ContextVar("swarm_passed_on", default=False)
"""Whether the call being served was passed on by another manager."""

Call = Callable[[str, Message], Awaitable[Message]]
"""(name of the RPC, request) -> answer; raises what ``to_wire`` knows."""


def control_handler(call: Call) -> grpc.GenericRpcHandler:
    """What ``server.add_generic_rpc_handlers`` takes.

    Args:
        call: ``LeaderForwarder.call``, or ``ControlService.call`` where only the leader is ever asked.
    """
    return grpc.method_handlers_generic_handler(
        SERVICE.full_name, {method.name: _method_handler(method, call) for method in SERVICE.methods}
    )


def _method_handler(method: MethodDescriptor, call: Call) -> grpc.RpcMethodHandler[Message, Message]:
    name = method.name

    # Any: of the messages of whatever RPC.
    async def handle(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
        metadata = context.invocation_metadata() or ()
        passed_on.set(any(key == FORWARDED for key, _ in metadata))
        try:
            return await call(name, request)
        except Exception as error:
            wire = to_wire(error)
            if wire is None:
                log.exception("control_call.failed", method=name)
                raise
            log.debug("control_call.refused", method=name, code=wire.code.name, reason=wire.text)
            await context.abort(wire.code, wire.text)

    return grpc.unary_unary_rpc_method_handler(
        handle,
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )
