"""What the control API refuses, and the one table from exceptions to gRPC codes and texts.

The text that crosses the wire is what ``docker`` prints. Docker's daemon passes a manager's refusal through as gRPC
formats it (``rpc error: code = InvalidArgument desc = ...``), but words failed look-ups itself; both forms are kept,
because scripts match on them. Features W05; source: moby ``daemon/cluster/helpers.go``, swarmkit ``manager/controlapi``.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from base.grpc_codes import go_text
from manager.consensus.port import (
    EntryTooLargeError,
    NoQuorumError,
    NotLeaderError,
    ProposalUnknownError,
)
from manager.store import (
    AmbiguousReferenceError,
    NameConflictError,
    ObjectExistsError,
    ObjectInUseError,
    ObjectNotFoundError,
    SequenceConflictError,
    TransactionTooLargeError,
)

NO_LEADER_TEXT = (
    "The swarm does not have a leader. It's possible that too few managers are online. "
    "Make sure more than half of the managers are online."
)
"""Features A3.06, D02."""

NOT_LEADER_TEXT = "this manager does not lead the swarm"
"""Said between managers only: nothing was done, ask the leader (``manager.control.forward`` does)."""


@dataclass(frozen=True, slots=True)
class WireError:
    """What ends an RPC: the code, and the text as the user reads it."""

    code: grpc.StatusCode
    text: str


class ControlError(Exception):
    """Base of what this package refuses. ``str`` is the reason alone."""

    code = grpc.StatusCode.UNKNOWN
    bare = False
    """The text is the user's as it stands, without gRPC's prefix."""


class InvalidArgumentError(ControlError):
    """The request cannot be right whatever the state of the cluster (400)."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class InvalidRequestError(InvalidArgumentError):
    """The same, where Docker's daemon words it before a manager sees it."""

    bare = True


class NotFoundError(ControlError):
    """No object has this ID, name or unique ID prefix (404)."""

    code = grpc.StatusCode.NOT_FOUND
    bare = True

    def __init__(self, kind: str, ref: str) -> None:
        super().__init__(f"{kind} {ref} not found")
        self.kind, self.ref = kind, ref


class AlreadyExistsError(ControlError):
    """Another object has the name (409)."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPreconditionError(ControlError):
    """The state of the cluster forbids it now (400, as in dockerd)."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class OutOfSequenceError(ControlError):
    """The caller read another version of the object than there is now: read again, then retry (500, W06)."""

    def __init__(self) -> None:
        super().__init__("update out of sequence")


class UnimplementedError(ControlError):
    """The API has it, this version does not do it (501): said, never dropped in silence."""

    code = grpc.StatusCode.UNIMPLEMENTED


def to_wire(error: BaseException) -> WireError | None:
    """How ``error`` ends an RPC; None when it is nobody's refusal but a defect (the caller lets it crash the call)."""
    if isinstance(error, ControlError):
        return WireError(error.code, str(error)) if error.bare else _prefixed(error.code, str(error))
    for kind, make in _TABLE.items():
        if isinstance(error, kind):
            return make(error)
    return None


def _prefixed(code: grpc.StatusCode, reason: str) -> WireError:
    return WireError(code, go_text(code, reason))


def _ambiguous(error: BaseException) -> WireError:
    return WireError(grpc.StatusCode.INVALID_ARGUMENT, str(error))


def _missing(error: BaseException) -> WireError:
    return WireError(grpc.StatusCode.NOT_FOUND, str(error))


def _out_of_sequence(error: BaseException) -> WireError:
    return _prefixed(grpc.StatusCode.UNKNOWN, "update out of sequence")


def _name_conflict(error: BaseException) -> WireError:
    return _prefixed(grpc.StatusCode.ALREADY_EXISTS, str(error))


def _in_use(error: BaseException) -> WireError:
    return _prefixed(grpc.StatusCode.INVALID_ARGUMENT, str(error))


def _too_large(error: BaseException) -> WireError:
    return _prefixed(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))


def _not_leader(error: BaseException) -> WireError:
    return WireError(grpc.StatusCode.UNAVAILABLE, NOT_LEADER_TEXT)


def _no_quorum(error: BaseException) -> WireError:
    return _prefixed(grpc.StatusCode.UNAVAILABLE, NO_LEADER_TEXT)


def _unknown_outcome(error: BaseException) -> WireError:
    return _prefixed(
        grpc.StatusCode.UNKNOWN,
        "leadership was lost while the change was under way; it may or may not have been made, look before you retry",
    )


def _timed_out(error: BaseException) -> WireError:
    return _prefixed(grpc.StatusCode.DEADLINE_EXCEEDED, "context deadline exceeded")


_TABLE = {
    ObjectNotFoundError: _missing,
    AmbiguousReferenceError: _ambiguous,
    SequenceConflictError: _out_of_sequence,
    NameConflictError: _name_conflict,
    ObjectExistsError: _name_conflict,
    ObjectInUseError: _in_use,
    TransactionTooLargeError: _too_large,
    EntryTooLargeError: _too_large,
    NotLeaderError: _not_leader,
    NoQuorumError: _no_quorum,
    ProposalUnknownError: _unknown_outcome,
    TimeoutError: _timed_out,
}
