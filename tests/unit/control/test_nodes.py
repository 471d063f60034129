"""Nodes through the control API: what of the Raft group is shown, roles, removal."""

from __future__ import annotations

import pytest

from manager.consensus.port import Member, NodeID
from manager.control.errors import FailedPreconditionError, InvalidRequestError, NotFoundError, OutOfSequenceError
from proto import control_pb2 as pb
from proto.objects_pb2 import Node, NodeState, Reachability, TaskState
from proto.specs_pb2 import NodeAvailability, NodeRole
from tests.unit.control.builders import node_spec, service_spec
from tests.unit.control.managed import Managed

MANAGER = NodeRole.NODE_ROLE_MANAGER
WORKER = NodeRole.NODE_ROLE_WORKER


async def update(manager: Managed, ref: str, **fields: int) -> Node:
    found = (await manager.control.get_node(pb.GetNodeRequest(ref=ref))).node
    spec = node_spec(role=found.spec.role)
    for name, value in fields.items():
        setattr(spec, name, value)
    request = pb.UpdateNodeRequest(ref=ref, version=found.version.index, spec=spec)
    return (await manager.control.update_node(request)).node


async def test_members_of_the_raft_group_show_their_status(manager: Managed) -> None:
    await manager.add_node("node-1", role=MANAGER)
    await manager.add_node("worker")
    nodes = {
        node.id: node for node in map(Node.FromString, (await manager.control.list_nodes(pb.ListNodesRequest())).nodes)
    }
    status = nodes["node-1"].manager_status
    assert (status.leader, status.addr) == (True, "127.0.0.1:2377")
    assert status.reachability == Reachability.REACHABILITY_REACHABLE
    assert not nodes["worker"].HasField("manager_status")


async def test_a_host_name_that_two_nodes_have_is_ambiguous(manager: Managed) -> None:
    await manager.add_node("a1", hostname="twin")
    await manager.add_node("a2", hostname="twin")
    with pytest.raises(InvalidRequestError, match=r"node twin is ambiguous \(2 matches found\)"):
        await manager.control.get_node(pb.GetNodeRequest(ref="twin"))
    with pytest.raises(NotFoundError, match="node b not found"):
        await manager.control.get_node(pb.GetNodeRequest(ref="b"))


async def test_availability_and_role_are_set(manager: Managed) -> None:
    await manager.add_node("worker")
    node = await update(manager, "worker", availability=NodeAvailability.NODE_AVAILABILITY_DRAIN, role=MANAGER)
    assert node.spec.availability == NodeAvailability.NODE_AVAILABILITY_DRAIN
    assert (node.spec.role, node.role) == (MANAGER, WORKER)
    stale = pb.UpdateNodeRequest(ref="worker", version=1, spec=node_spec())
    with pytest.raises(OutOfSequenceError):
        await manager.control.update_node(stale)


async def test_the_last_manager_cannot_be_demoted(manager: Managed) -> None:
    await manager.add_node("node-1", role=MANAGER)
    with pytest.raises(FailedPreconditionError, match="attempting to demote the last manager of the swarm"):
        await update(manager, "node-1", role=WORKER)


async def test_demotions_in_a_row_stop_at_the_last_manager(manager: Managed) -> None:
    await manager.add_node("node-1", role=MANAGER)
    for name in ("node-2", "node-3"):
        await manager.add_node(name, role=MANAGER)
        await manager.consensus.add_member(Member(NodeID(name), "127.0.0.1:1"))
    await update(manager, "node-3", role=WORKER)
    await update(manager, "node-2", role=WORKER)
    with pytest.raises(FailedPreconditionError, match="last manager"):
        await update(manager, "node-1", role=WORKER)


async def test_a_demotion_that_loses_the_quorum_is_refused(manager: Managed) -> None:
    await manager.add_node("node-1", role=MANAGER)
    await manager.add_node("elsewhere", role=MANAGER)
    with pytest.raises(FailedPreconditionError, match="this would result in a loss of quorum"):
        await update(manager, "node-1", role=WORKER)


async def test_only_a_node_that_is_down_is_removed_without_force(manager: Managed) -> None:
    await manager.add_node("worker")
    with pytest.raises(FailedPreconditionError, match="node worker is not down and can't be removed"):
        await manager.control.remove_node(pb.RemoveNodeRequest(ref="worker"))
    await manager.add_node("node-1", role=MANAGER, state=NodeState.NODE_STATE_DOWN)
    with pytest.raises(FailedPreconditionError, match="must be demoted to worker before removal"):
        await manager.control.remove_node(pb.RemoveNodeRequest(ref="node-1", force=True))


async def test_removal_orphans_tasks_and_bans_the_certificate_in_one_entry(manager: Managed) -> None:
    await manager.add_node("worker")
    service = (await manager.control.create_service(pb.CreateServiceRequest(spec=service_spec()))).service
    await manager.add_task("live", service.id, node_id="worker")
    await manager.add_task("dead", service.id, node_id="worker", state=TaskState.TASK_STATE_FAILED)
    before = manager.consensus.applied_index
    await manager.control.remove_node(pb.RemoveNodeRequest(ref="worker", force=True))
    assert manager.consensus.applied_index == before + 1
    view = manager.store.view
    live, dead = view.tasks.get("live"), view.tasks.get("dead")
    assert live is not None
    assert dead is not None
    assert live.status.state == TaskState.TASK_STATE_ORPHANED
    assert dead.status.state == TaskState.TASK_STATE_FAILED
    assert view.nodes.get("worker") is None
    refused_s = view.cluster.removed_nodes["worker"].refuse_until.seconds - manager.now_ns[0] // 10**9
    assert refused_s == (90 + 7) * 24 * 3600


async def test_a_node_of_many_tasks_is_removed_in_several_entries(manager: Managed) -> None:
    await manager.add_node("worker", state=NodeState.NODE_STATE_DOWN)
    for index in range(450):
        await manager.add_task(f"t{index}", "service", slot=index, node_id="worker")
    before = manager.consensus.applied_index
    await manager.control.remove_node(pb.RemoveNodeRequest(ref="worker"))
    assert manager.consensus.applied_index == before + 3
    states = {task.status.state for task in manager.store.view.tasks}
    assert states == {TaskState.TASK_STATE_ORPHANED}


async def test_removed_nodes_are_forgotten_when_their_certificates_are_long_past(manager: Managed) -> None:
    for name in ("old", "new"):
        await manager.add_node(name, state=NodeState.NODE_STATE_DOWN)
    await manager.control.remove_node(pb.RemoveNodeRequest(ref="old"))
    manager.now_ns[0] += 98 * 24 * 3600 * 10**9
    await manager.control.remove_node(pb.RemoveNodeRequest(ref="new"))
    assert set(manager.store.view.cluster.removed_nodes) == {"new"}


async def test_nodes_are_filtered(manager: Managed) -> None:
    await manager.add_node("node-1", hostname="alpha", role=MANAGER)
    await manager.add_node("node-2", hostname="beta")
    node = manager.store.view.nodes.get("node-2")
    assert node is not None
    labelled = Node()
    labelled.CopyFrom(node)
    labelled.spec.labels["zone"] = "b"
    labelled.description.engine.labels["disk"] = "ssd"
    await manager.commit(lambda working: working.update(labelled))

    async def ids(**filters: str) -> set[str]:
        values = {key.replace("_", "."): pb.FilterValues(values=[value]) for key, value in filters.items()}
        request = pb.ListNodesRequest(filters=pb.Filters(by_key=values))
        return {Node.FromString(node).id for node in (await manager.control.list_nodes(request)).nodes}

    assert await ids(role="manager") == {"node-1"}
    assert await ids(name="be") == {"node-2"}
    assert await ids(node_label="zone=b") == {"node-2"}
    assert await ids(label="disk") == {"node-2"}
    assert await ids(label="zone") == set()
    assert await ids(membership="pending") == set()
    assert await ids(membership="accepted") == {"node-1", "node-2"}
    with pytest.raises(InvalidRequestError, match="Invalid role filter: 'king'"):
        await ids(role="king")
