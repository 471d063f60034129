"""``Swarm`` of /info and the ``Swarm`` header of /_ping: what this host knows of its cluster."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
import structlog

from api.errors import message_of
from api.swarm_routes.cluster import cluster_info_json
from proto.control_pb2 import GetManagerInfoRequest, GetManagerInfoResponse
from worker.membership.cluster_member import ClusterMember, LocalNodeState, MembershipError, SwarmInfo

log = structlog.get_logger(__name__)

MANAGER_TIMEOUT_S = 2.0

TWO_MANAGERS_WARNING = """WARNING: Running Swarm in a two-manager configuration. This configuration provides
         no fault tolerance, and poses a high risk to lose control over the cluster.
         Refer to https://docs.docker.com/engine/swarm/admin_guide/ to configure the
         Swarm for fault-tolerance."""
"""dockerd's (D24): either of the two that fails takes the majority with it."""


def swarm_status(info: SwarmInfo) -> str:
    """``inactive``, ``pending``, ``error``, ``locked``, ``active/worker`` or ``active/manager`` (W02)."""
    if info.local_node_state is not LocalNodeState.ACTIVE:
        return str(info.local_node_state)
    return "active/manager" if info.control_available else "active/worker"


async def swarm_block(member: ClusterMember) -> dict[str, object]:
    """``Swarm`` of /info. Never fails and never takes long: a manager that does not answer is named in ``Error``."""
    info = member.info()
    block: dict[str, object] = {
        "NodeID": info.node_id,
        "NodeAddr": info.node_addr,
        "LocalNodeState": str(info.local_node_state),
        "ControlAvailable": info.control_available,
        "Error": info.error,
        "RemoteManagers": [{"NodeID": manager.node_id, "Addr": manager.raft_addr} for manager in info.remote_managers]
        or None,
    }
    if not info.control_available:
        return block
    try:
        answer: GetManagerInfoResponse = await member.control().GetManagerInfo(
            GetManagerInfoRequest(), timeout=MANAGER_TIMEOUT_S
        )
    except (grpc.RpcError, MembershipError) as error:
        log.info("manager.unreachable", error=message_of(error))
        return block | {"Error": message_of(error)}
    fields = _manager_fields(answer)
    if info.local_node_state is LocalNodeState.ERROR:
        fields.pop(
            "Error", None
        )  # the node's own is why: a manager whose certificate has run out hears no leader either
    return block | fields


def warnings_of(block: Mapping[str, object]) -> list[str]:
    """What the block warns of, which dockerd puts among those of the host as well: the CLI prints only these."""
    warnings = block.get("Warnings")
    return warnings if isinstance(warnings, list) else []


def _manager_fields(answer: GetManagerInfoResponse) -> dict[str, object]:
    fields: dict[str, object] = {
        "Nodes": answer.nodes_total,
        "Managers": answer.managers_total,
        "Cluster": cluster_info_json(answer.cluster),
    }
    if answer.remote_managers:
        fields["RemoteManagers"] = [
            {"NodeID": manager.node_id, "Addr": manager.addr} for manager in answer.remote_managers
        ]
    if answer.managers_total == 2:
        fields["Warnings"] = [TWO_MANAGERS_WARNING]
    if answer.error:
        fields["Error"] = answer.error
    elif not answer.has_leader:
        fields["Error"] = (
            "rpc error: code = Unknown desc = The swarm does not have a leader. It's possible that too few managers "
            "are online. Make sure more than half of the managers are online."
        )
    return fields
