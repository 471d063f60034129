"""The one table of statuses: every engine, membership and gRPC error has its place, and the text comes through."""

from __future__ import annotations

import json

import grpc
import grpc.aio
import pytest

from api import errors
from runtime import errors as engine
from runtime.images import errors as images
from worker.membership import cluster_member


def rpc_error(code: grpc.StatusCode, details: str = "why") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (engine.ContainerNotFoundError("x"), 404),
        (engine.NameConflictError(name="x", container_id="y"), 409),
        (engine.StartError("no such file", exit_code=127), 400),
        (engine.StartError("out of memory", exit_code=128), 500),
        (engine.HostError("mount: broken"), 500),
        (images.ImageNotFoundError("x"), 404),
        (cluster_member.NotInSwarmError("x"), 503),
        (cluster_member.MembershipError("x"), 500),
        (errors.NotServedError("x"), 501),
        (rpc_error(grpc.StatusCode.INVALID_ARGUMENT), 400),
        (rpc_error(grpc.StatusCode.FAILED_PRECONDITION), 400),
        (rpc_error(grpc.StatusCode.NOT_FOUND), 404),
        (rpc_error(grpc.StatusCode.ALREADY_EXISTS), 409),
        (rpc_error(grpc.StatusCode.UNIMPLEMENTED), 501),
        (rpc_error(grpc.StatusCode.UNAVAILABLE), 503),
        (rpc_error(grpc.StatusCode.UNKNOWN), 500),
        (KeyError("x"), 500),
    ],
)
def test_every_error_has_a_status(error: Exception, status: int) -> None:
    assert errors.status_of(error) == status


def test_a_managers_text_is_not_touched() -> None:
    response = errors.error_response(rpc_error(grpc.StatusCode.NOT_FOUND, "service web not found"))
    assert isinstance(response.body, bytes)
    assert json.loads(response.body) == {"message": "service web not found"}


def test_a_deadline_reads_as_docker_users_know_it() -> None:
    error = rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
    assert errors.message_of(error) == "rpc error: code = DeadlineExceeded desc = context deadline exceeded"
    assert errors.message_of(ValueError()) == "ValueError"


def test_not_modified_has_no_body() -> None:
    response = errors.error_response(engine.NotModifiedError("started already"))
    assert (response.status, response.body) == (304, None)
