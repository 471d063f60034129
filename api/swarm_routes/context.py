"""What the swarm routes share: the manager they ask, and how they read a request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec
from aiohttp import web
from google.protobuf.message import Message

from api.errors import BadRequestError
from api.json_codec import decode_json, encode_json
from api.requests import filters_of, read_body
from base.numbers import natural
from proto.control_pb2 import Filters, FilterValues
from proto.objects_pb2 import Task
from runtime.types import LogLine
from worker.membership.cluster_member import ClusterMember

if TYPE_CHECKING:
    from proto.control_pb2_grpc import ControlAsyncStub

CONTROL_TIMEOUT_S = 20.0
"""For the manager of this host to come up: while its process starts others lead, and the request can wait."""

TIMEOUT_S = 25.0
"""For one call of the control API: managers give up after 20 s (features A3.06), this is for one that hangs."""

M = TypeVar("M", bound=Message)

_TRUE_WORDS = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE_WORDS = frozenset({"", "0", "f", "F", "FALSE", "false", "False"})


class LogOptions(msgspec.Struct, frozen=True):
    """What of a log is asked for.

    Attributes:
        tail: number of last lines, -1 for all.
        since_ns: Unix time in nanoseconds, 0 for the beginning.
        follow: go on until the container ends.
    """

    stdout: bool
    stderr: bool
    follow: bool = False
    since_ns: int = 0
    tail: int = -1


LocalLogs = Callable[[Task, LogOptions], AsyncIterator[LogLine]]
"""Reads the log of a task whose container is on this host; raises the engine's errors when it is not."""


NetworkName = Callable[[str], str | None]
"""(ID, ID prefix or name) -> name of a network of this host's engine, None when there is none."""


class SwarmContext(msgspec.Struct, frozen=True):
    """What handlers need.

    Attributes:
        member: this host's place in a cluster.
        local_logs: None when nobody reads logs on this host.
        network_name: None when the host has no networks to name.
    """

    member: ClusterMember
    local_logs: LocalLogs | None
    network_name: NetworkName | None = None

    async def control(self) -> ControlAsyncStub:
        """The managers; one that is just starting is waited for. Raises: NotManagerError: none runs here (503)."""
        return await self.member.wait_control(CONTROL_TIMEOUT_S)


async def read_message(request: web.Request, kind: type[M]) -> M:
    """The JSON body as a message. Raises: JSONError, BadRequestError (not JSON at all)."""
    return decode_json(kind, await read_body(request))


def read_version(request: web.Request, kind: str) -> int:
    """``?version=``, the ``Version.Index`` that the client read (features W06). Raises: BadRequestError."""
    text = request.query.get("version", "")
    if not text.isascii() or not text.isdecimal():
        raise BadRequestError(f"invalid {kind} version '{text}': strconv.ParseUint: parsing \"{text}\": invalid syntax")
    version = natural(text, largest=2**64 - 1)
    if version is None:
        shown = text[:64]
        raise BadRequestError(
            f"invalid {kind} version '{shown}': strconv.ParseUint: parsing \"{shown}\": value out of range"
        )
    return version


def read_bool(request: web.Request, name: str) -> bool:
    """A flag of the stricter kind, absent is false. Raises: BadRequestError."""
    text = request.query.get(name, "")
    if text not in _TRUE_WORDS | _FALSE_WORDS:
        raise BadRequestError(f"invalid value for {name}: {text}")
    return text in _TRUE_WORDS


def read_filters(request: web.Request) -> Filters:
    """``?filters=`` in either form (features W04); the managers judge the keys. Raises: BadRequestError."""
    values = filters_of(request)
    return Filters(by_key={key: FilterValues(values=some) for key, some in values.items()})


def message_response(message: Message, *, status: int = 200) -> web.Response:
    """One object as JSON."""
    return json_bytes(encode_json(message), status=status)


def json_bytes(body: bytes, *, status: int = 200) -> web.Response:
    """JSON that is text already."""
    return web.Response(body=body + b"\n", status=status, content_type="application/json")


def empty_response() -> web.Response:
    """200 without a body, as dockerd answers a change."""
    return web.Response(status=200)
