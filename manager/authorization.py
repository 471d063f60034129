"""Who may call what: one table for every RPC, and the interceptors that hold every call to it (features A2.01, A2.09).

A call is let in when all of this is true, checked in this order on every call, not only when the connection was made
(a peer that was removed or has expired meanwhile keeps its connection):

1. the method has a row in the table; what has none is nobody's;
2. the peer showed a certificate by a root in force, within its validity now: else UNAUTHENTICATED;
3. of this cluster, of a node that was not removed, in a role of the row: else PERMISSION_DENIED; what only managers
   may call is closed to a node that was demoted, whatever certificate it has kept.

Nothing of a request is read before that: what gRPC takes in meanwhile is its window of a stream, not a message. Then the
node must not have too many calls under way, and a single request has to come in time, so that what a node sends by halves
is bounded, over however many connections.

Metadata counts for nothing. The manager's unix socket (the node process of the same host, root only) has no TLS; its
calls are a manager's by ``LocalInterceptor``.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog

from base.rate_limit import RateLimit
from manager.log_limit import LogLimit
from pki.certificates import Identity, Role, TrustRoot
from pki.errors import PKIError
from pki.node_certificate import utc_now

log = structlog.get_logger(__name__)

_MANAGERS = frozenset({Role.MANAGER})
_EVERYBODY = frozenset({Role.MANAGER, Role.WORKER})


def _rows(service: str, roles: frozenset[Role], *methods: str) -> dict[str, frozenset[Role]]:
    return {f"/swarm.v1.{service}/{method}": roles for method in methods}


def _object_methods(kind: str) -> tuple[str, ...]:
    """The RPCs of a kind of objects that users manage."""
    return f"Create{kind}", f"Get{kind}", f"List{kind}s", f"Update{kind}", f"Remove{kind}"


ROLES_BY_METHOD: Mapping[str, frozenset[Role]] = {
    **_rows(
        "Control",
        _MANAGERS,
        "GetCluster",
        "UpdateCluster",
        "GetNode",
        "ListNodes",
        "UpdateNode",
        "RemoveNode",
        "CreateService",
        "GetService",
        "ListServices",
        "UpdateService",
        "RemoveService",
        "GetTask",
        "ListTasks",
        *_object_methods("Secret"),
        *_object_methods("Config"),
        *_object_methods("Network"),
        "GetManagerInfo",
    ),
    # A manager is a worker, too. What a node sees there is cut down to itself by the dispatcher, by the caller's ID.
    **_rows("Dispatcher", _EVERYBODY, "Session", "Assignments"),
    # For a node that joins, its manager asks the leader; the token in the request decides, not the caller.
    **_rows("NodeCA", _MANAGERS, "IssueNodeCertificate"),
    **_rows("NodeCA", _EVERYBODY, "RenewCertificate"),
    **_rows("RaftMembership", _MANAGERS, "Join", "Leave"),
    **_rows("Health", _MANAGERS, "Check", "Look"),
}
"""Full gRPC method name -> the roles that may call it. A test holds it against the descriptors in ``proto/``."""


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a call is refused.

    Attributes:
        code: UNAUTHENTICATED or PERMISSION_DENIED.
        message: one line for the caller; it tells nothing that the caller did not show.
    """

    code: grpc.StatusCode
    message: str


IsRemoved = Callable[[str, int], bool]
"""(node ID, serial number of the certificate) -> whether the node was removed from the cluster."""


IsDemoted = Callable[[str], bool]
"""Node ID -> whether the cluster's state says that the node neither is nor is to be a manager, or is not there."""


def authorize(
    method: str, caller: Identity, *, cluster_id: str, is_removed: IsRemoved, is_demoted: IsDemoted
) -> Denial | None:
    """Decide about one call of a peer whose certificate was verified.

    Args:
        method: full gRPC method name, ``/swarm.v1.Service/Method``.
        caller: who calls.
        cluster_id: the cluster we are.
        is_removed, is_demoted: see ``IsRemoved`` and ``IsDemoted``.

    Returns:
        None when the caller may.
    """
    roles = ROLES_BY_METHOD.get(method)
    if roles is None:
        return _unlisted(method)
    if caller.cluster_id != cluster_id:
        return Denial(
            grpc.StatusCode.PERMISSION_DENIED,
            f"node {caller.node_id} belongs to cluster {caller.cluster_id}, this is {cluster_id}",
        )
    if is_removed(caller.node_id, caller.serial):
        return Denial(grpc.StatusCode.PERMISSION_DENIED, f"node {caller.node_id} was removed from the cluster")
    if caller.role not in roles:
        wanted = " or ".join(sorted(role.value for role in roles))
        return Denial(
            grpc.StatusCode.PERMISSION_DENIED,
            f"node {caller.node_id} is a {caller.role.value}, {method} may be called by: {wanted}",
        )
    if Role.WORKER not in roles and is_demoted(caller.node_id):
        return Denial(grpc.StatusCode.PERMISSION_DENIED, f"node {caller.node_id} is not a manager any more")
    return None


def _unlisted(method: str) -> Denial:
    return Denial(grpc.StatusCode.PERMISSION_DENIED, f"no role may call {method}")


_caller: ContextVar[Identity] = ContextVar("swarm_caller")


def caller() -> Identity:
    """Who made the call that is being served.

    Raises:
        LookupError: not inside a call that came through one of the interceptors.
    """
    return _caller.get()


REFUSALS_BURST, REFUSALS_RATE_S = 60, 10.0
"""Refusals that one address has at once, and how many more a second ..."""

REFUSAL_DELAY_S = 2.0
"""... beyond them each is answered after that: with ``STREAMS_MAX`` a connection cannot ask in a tight loop."""

CALLS_AT_ONCE_MAX: Mapping[Role, int] = {Role.WORKER: 24, Role.MANAGER: 256}
"""Of one node. An agent has three at most, and some more on connections that broke and that gRPC has not given up yet."""

REQUEST_TIMEOUT_S = 20.0
"""For a single request to come as a whole, from when its call was let in."""

# Any: of the messages of whatever RPC.
Context = grpc.aio.ServicerContext[Any, Any]
LetIn = Callable[[str, Context], AbstractAsyncContextManager[None]]
"""Around the work of a call: lets it in, or aborts it."""


class _Interceptor(grpc.aio.ServerInterceptor):
    """Runs ``_check`` before every handler and sets ``caller()`` for it."""

    def __init__(self, *, refusal_delay: Callable[[], Awaitable[None]]) -> None:
        self._lines = LogLimit()
        self._refusals, self._refusal_delay = RateLimit(REFUSALS_BURST, REFUSALS_RATE_S), refusal_delay

    def _check(self, method: str, context: Context) -> Identity | Denial:
        raise NotImplementedError

    @asynccontextmanager
    async def _let_in(self, method: str, context: Context) -> AsyncIterator[None]:
        await self._admit(method, context)
        yield

    async def _admit(self, method: str, context: Context) -> Identity:
        verdict = self._check(method, context)
        if isinstance(verdict, Denial):
            await self._refuse(verdict, method, context)
        _caller.set(verdict)
        return verdict

    async def _refuse(self, denial: Denial, method: str, context: Context) -> NoReturn:
        peer = context.peer()
        if (left_out := self._lines.due((method, denial.message))) is not None:
            code = denial.code.name
            log.warning("call.refused", method=method, peer=peer, code=code, reason=denial.message, left_out=left_out)
        if not self._refusals.take(peer.rpartition(":")[0], asyncio.get_running_loop().time()):
            await self._refusal_delay()
        await context.abort(denial.code, denial.message)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # grpc answers UNIMPLEMENTED
        return self._guarded(handler, handler_call_details.method)

    def _guarded(self, handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
        return _guarded(handler, method, self._let_in)


class AuthorizationInterceptor(_Interceptor):
    """For the server on 7946, where every peer showed a certificate in the handshake."""

    def __init__(
        self,
        *,
        trust_root: Callable[[], TrustRoot],
        cluster_id: str,
        is_removed: IsRemoved,
        is_demoted: IsDemoted,
        clock: Callable[[], datetime] = utc_now,
        refusal_delay: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(REFUSAL_DELAY_S),
    ) -> None:
        """
        Args:
            trust_root: the roots in force, the same object as long as they are the same (it caches).
            cluster_id: the cluster we are.
            is_removed, is_demoted: see ``IsRemoved`` and ``IsDemoted``; quick, they are asked on every call.
            clock: aware time.
            refusal_delay: awaited before the answer to who is refused again and again.
        """
        super().__init__(refusal_delay=refusal_delay)
        self._trust_root, self._cluster_id = trust_root, cluster_id
        self._is_removed, self._is_demoted, self._clock = is_removed, is_demoted, clock
        self._calls = Counter[str]()

    @asynccontextmanager
    async def _let_in(self, method: str, context: Context) -> AsyncIterator[None]:
        identity = await self._admit(method, context)
        node_id, most = identity.node_id, CALLS_AT_ONCE_MAX[identity.role]
        if self._calls[node_id] >= most:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
            await self._refuse(Denial(code, f"node {node_id} has {most} calls under way"), method, context)
        self._calls[node_id] += 1
        try:
            yield
        finally:
            self._calls[node_id] -= 1
            if not self._calls[node_id]:
                del self._calls[node_id]

    def _guarded(self, handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
        return _guarded(_reading_late(handler), method, self._let_in)

    def _check(self, method: str, context: Context) -> Identity | Denial:
        # The leaf is the one that the handshake proved; the chain holds only what the peer sent besides, in its order.
        properties = context.auth_context()
        leaf = next(iter(properties.get("x509_pem_cert", ())), None)
        if leaf is None:
            return Denial(grpc.StatusCode.UNAUTHENTICATED, "peer showed no certificate")
        between = b"".join(properties.get("x509_pem_cert_chain", ()))
        try:
            identity = self._trust_root().verify_pem(leaf + between, self._clock())
        except PKIError as error:
            return Denial(grpc.StatusCode.UNAUTHENTICATED, str(error))
        denial = authorize(
            method, identity, cluster_id=self._cluster_id, is_removed=self._is_removed, is_demoted=self._is_demoted
        )
        return denial or identity


class LocalInterceptor(_Interceptor):
    """For the manager's unix socket: file permissions let root in alone, and a call there is this manager's own."""

    def __init__(self, identity: Callable[[], Identity]) -> None:
        """
        Args:
            identity: this node's own, as its certificate says at the moment.
        """
        super().__init__(refusal_delay=lambda: asyncio.sleep(0))
        self._identity = identity

    def _check(self, method: str, context: Context) -> Identity | Denial:
        if method not in ROLES_BY_METHOD:
            return _unlisted(method)
        return self._identity()


def _reading_late(handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
    """The same RPC to who calls it, but the handler itself reads a single request: gRPC would do it before the handler."""
    if handler.request_streaming:
        return handler
    behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
    assert inspect.iscoroutinefunction(behaviour)  # streams of answers are written, see ``Dispatcher.Assignments``

    async def call(requests: AsyncIterator[Any], context: Context) -> Any:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                request = await anext(requests)
        except (TimeoutError, StopAsyncIteration):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request did not come")
        return await behaviour(request, context)

    make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
    return make(call, handler.request_deserializer, handler.response_serializer)


def _guarded(handler: grpc.RpcMethodHandler[Any, Any], method: str, let_in: LetIn) -> grpc.RpcMethodHandler[Any, Any]:
    """The same handler behind ``let_in``."""

    def unary(behaviour: Any) -> Callable[..., Any]:
        async def call(request: Any, context: Context) -> Any:
            async with let_in(method, context):
                answer = behaviour(request, context)
                return await answer if inspect.isawaitable(answer) else answer

        return call

    def stream(behaviour: Any) -> Callable[..., Any]:
        if not inspect.isasyncgenfunction(behaviour):
            return unary(behaviour)  # a coroutine that writes by context.write

        async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
            async with let_in(method, context):
                answers = behaviour(request, context)
                try:
                    async for answer in answers:
                        yield answer
                finally:
                    await answers.aclose()

        return generate

    serializers = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    match handler.request_streaming, handler.response_streaming:
        case False, False:
            return grpc.unary_unary_rpc_method_handler(unary(handler.unary_unary), **serializers)
        case False, True:
            return grpc.unary_stream_rpc_method_handler(stream(handler.unary_stream), **serializers)
        case True, False:
            return grpc.stream_unary_rpc_method_handler(unary(handler.stream_unary), **serializers)
        case _:
            return grpc.stream_stream_rpc_method_handler(stream(handler.stream_stream), **serializers)
