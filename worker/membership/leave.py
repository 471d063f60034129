"""When a node may not just leave its cluster, and what it is told then (A1.18).

What a leave does is ``Participation.leave``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proto.control_pb2 import ListNodesRequest
from proto.objects_pb2 import Node, Reachability

if TYPE_CHECKING:
    from proto.control_pb2_grpc import ControlAsyncStub

_COUNT_TIMEOUT_S = 5.0
_UNUSABLE = (
    "This node is a manager whose files cannot be used ({error}). Leaving erases its copy of the swarm's state. "
    "Use `--force` to ignore this message."
)


def unusable_warning(error: str) -> str:
    """Why a manager whose files are damaged should not just leave."""
    return _UNUSABLE.format(error=error)


async def leave_warning(control: ControlAsyncStub) -> str:
    """Why a manager should not just leave, in Docker's words (moby daemon/cluster/swarm.go, Leave)."""
    text = "You are attempting to leave the swarm on a node that is participating as a manager. "
    counts = await _manager_counts(control)
    if counts is None:
        text += "Doing so may lose the consensus of your cluster. "
    else:
        reachable, unreachable = counts
        if reachable - 1 <= (reachable + unreachable) // 2 and reachable + unreachable == 1:
            return text + (
                "Removing the last manager erases all current state of the swarm. "
                "Use `--force` to ignore this message. "
            )
        if reachable - 1 <= (reachable + unreachable) // 2:
            text += (
                f"Removing this node leaves {reachable - 1} managers out of {reachable + unreachable}. "
                "Without a Raft quorum your swarm will be inaccessible. "
            )
    return text + (
        "The only way to restore a swarm that has lost consensus is to reinitialize it with "
        "`--force-new-cluster`. Use `--force` to suppress this message."
    )


async def _manager_counts(control: ControlAsyncStub) -> tuple[int, int] | None:
    """Managers that can be reached and that cannot, None when nobody could say."""
    try:
        answer = await control.ListNodes(ListNodesRequest(), timeout=_COUNT_TIMEOUT_S)
    except Exception:
        return None
    nodes = map(Node.FromString, answer.nodes)
    states = [node.manager_status.reachability for node in nodes if node.HasField("manager_status")]
    reachable = sum(state == Reachability.REACHABILITY_REACHABLE for state in states)
    return reachable, len(states) - reachable
