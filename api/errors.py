"""From an exception to what the client sees: the one table of HTTP status codes.

Handlers raise; the server's outermost layer calls ``error_response``. Everything the engine, the node and the
managers may refuse is in ``STATUS_BY_TYPE`` (the most specific class wins) or, for what a manager answered over
gRPC, in ``STATUS_BY_CODE``. The message is the exception's own text: whoever raises it words it as dockerd does.

Source: moby ``api/server/httpstatus/status.go``; features W05.
"""

from __future__ import annotations

from http import HTTPStatus

import grpc
import msgspec
from aiohttp import web

from base.grpc_codes import go_text
from pki import errors as pki
from runtime import errors as engine
from runtime import images
from worker.membership import cluster_member


class APIError(Exception):
    """A request that the HTTP layer itself refuses; ``status`` is the HTTP code, the text is for the user."""

    status: int = HTTPStatus.INTERNAL_SERVER_ERROR


class BadRequestError(APIError):
    """The request is malformed: body, query, filter (400)."""

    status = HTTPStatus.BAD_REQUEST


class ForbiddenError(APIError):
    """What is asked for is not allowed on this object (403)."""

    status = HTTPStatus.FORBIDDEN


class NotFoundError(APIError):
    """What the request names does not exist (404)."""

    status = HTTPStatus.NOT_FOUND


class ConflictError(APIError):
    """The state of the host stands in the way (409)."""

    status = HTTPStatus.CONFLICT


class NotServedError(APIError):
    """The Engine API has it, this version does not serve it (501)."""

    status = HTTPStatus.NOT_IMPLEMENTED


STATUS_BY_CODE: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
}
"""What a manager's answer becomes; every other code (unknown, aborted, deadline, internal) is 500 as in dockerd."""

STATUS_BY_TYPE: dict[type[BaseException], int] = {
    engine.EngineError: 500,
    engine.NotFoundError: 404,
    engine.InvalidParameterError: 400,
    engine.ConflictError: 409,
    engine.NotModifiedError: 304,
    engine.ForbiddenError: 403,
    engine.UnavailableError: 503,
    images.ImagesError: 500,
    images.InvalidReferenceError: 400,
    images.InvalidArgumentError: 400,
    images.ArchiveError: 400,
    images.ImageNotFoundError: 404,
    images.PlatformMismatchError: 404,
    images.ImageConflictError: 409,
    images.ManifestUnknownError: 404,
    images.AccessDeniedError: 404,
    images.LoginRefusedError: 401,
    cluster_member.MembershipError: 500,
    cluster_member.AlreadyInSwarmError: 503,
    cluster_member.NotInSwarmError: 503,
    cluster_member.NotManagerError: 503,
    cluster_member.InvalidRequestError: 400,
    cluster_member.LeaveRefusedError: 503,
    cluster_member.JoinTimeoutError: 503,
    pki.PKIError: 500,
    pki.InvalidTokenError: 400,
    pki.LockedError: 503,
    pki.NodeCertificateExpiredError: 503,
    pki.InvalidUnlockKeyError: 401,
    msgspec.ValidationError: 400,
    msgspec.DecodeError: 400,
    TimeoutError: 500,
}


def status_of(error: BaseException) -> int:
    """The HTTP status for ``error``; 500 for anything that is in no table."""
    if isinstance(error, APIError):
        return int(error.status)
    if isinstance(error, grpc.RpcError):
        return STATUS_BY_CODE.get(_code_of(error), 500)
    if isinstance(error, engine.StartError) and error.exit_code in (126, 127):
        return 400
    return next((STATUS_BY_TYPE[kind] for kind in type(error).__mro__ if kind in STATUS_BY_TYPE), 500)


def is_expected(error: Exception) -> bool:
    """Whether the error is one that a component raises on purpose; anything else is a defect."""
    return isinstance(error, APIError | grpc.RpcError) or any(kind in STATUS_BY_TYPE for kind in type(error).__mro__)


def message_of(error: BaseException) -> str:
    """What the client reads.

    A manager's words come through as they are; a deadline and an empty text get the form that Docker's users know;
    an exception without text is named by its class.
    """
    if isinstance(error, grpc.RpcError):
        code, details = _code_of(error), _details_of(error)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            details = ""
        return details or go_text(code, _DESCRIPTIONS.get(code, code.value[1]))
    return str(error) or type(error).__name__


_DESCRIPTIONS = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "context deadline exceeded",
    grpc.StatusCode.CANCELLED: "context canceled",
}


def error_response(error: BaseException) -> web.Response:
    """``{"message": ...}`` with the right status; no body where HTTP allows none (304)."""
    status = status_of(error)
    if status == HTTPStatus.NOT_MODIFIED:
        return web.Response(status=status)
    body = msgspec.json.encode({"message": message_of(error)}) + b"\n"
    return web.Response(status=status, body=body, content_type="application/json")


def _details_of(error: grpc.RpcError) -> str:
    return str(error.details() or "") if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else str(error)


def _code_of(error: grpc.RpcError) -> grpc.StatusCode:
    code = error.code() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else None
    return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN
