"""What the certificate server reads and writes of the store (manager/ca/state.py; A1.15, A1.16, A2.09)."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import grpc
import pytest

import manager.ca.state
from manager.ca.server import CertificateRefusedError, NewNode, NodeRecord
from manager.control.defaults import NODE_CERT_EXPIRY_NS
from manager.control.nodes import REMOVED_GRACE
from pki.certificates import Role
from proto.objects_pb2 import Node, NodeState
from proto.specs_pb2 import NodeAvailability, NodeRole
from tests.unit.ca.support import SmallCluster

WORKER, MANAGER = NodeRole.NODE_ROLE_WORKER, NodeRole.NODE_ROLE_MANAGER
DRAIN = NodeAvailability.NODE_AVAILABILITY_DRAIN


def new_node(node_id: str, role: Role = Role.WORKER) -> NewNode:
    return NewNode(node_id, role, DRAIN, serial=0xA1)


async def test_a_node_that_joins_has_an_object_and_is_no_manager_yet(cluster: SmallCluster) -> None:
    await cluster.state.register_node(new_node("n1", Role.MANAGER))
    node = cluster.get_node("n1")
    assert (node.spec.role, node.role, node.spec.availability) == (MANAGER, WORKER, DRAIN)
    assert (node.status.state, node.certificate_serial) == (NodeState.NODE_STATE_UNKNOWN, "a1")
    assert node.HasField("status_since")


async def test_nodes_that_join_at_once_all_get_their_objects(cluster: SmallCluster) -> None:
    await asyncio.gather(*(cluster.state.register_node(new_node(f"n{number}")) for number in range(20)))
    assert {node.id for node in cluster.nodes} == {f"n{number}" for number in range(20)}


async def test_so_many_nodes_may_have_joined_and_not_come(
    cluster: SmallCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager.ca.state, "NEVER_CAME_NODES_MAX", 3)
    for number in range(3):
        await cluster.state.register_node(new_node(f"n{number}"))
    with pytest.raises(CertificateRefusedError, match="3 nodes have joined the swarm and have not shown up") as refusal:
        await cluster.state.register_node(new_node("n3"))
    assert refusal.value.code is grpc.StatusCode.UNAVAILABLE
    assert len(cluster.nodes) == 3
    came = Node()
    came.CopyFrom(cluster.get_node("n0"))
    came.description.hostname = "h"
    await cluster.managed.commit(lambda working: working.update(came))
    await cluster.state.register_node(new_node("n3"))
    assert len(cluster.nodes) == 4
    await cluster.managed.commit(lambda working: working.remove(working.nodes.find("n1")))
    await cluster.state.register_node(new_node("n4"))
    with pytest.raises(CertificateRefusedError):
        await cluster.state.register_node(new_node("n5"))


@pytest.mark.parametrize(
    ("wanted", "observed", "certified"),
    [
        (WORKER, WORKER, Role.WORKER),
        (MANAGER, WORKER, Role.MANAGER),  # needs the certificate to enter the Raft group
        (WORKER, MANAGER, Role.MANAGER),  # has not left it
        (MANAGER, MANAGER, Role.MANAGER),
    ],
)
async def test_the_next_certificate_is_a_workers_once_the_node_has_left_the_group(
    cluster: SmallCluster, wanted: NodeRole.ValueType, observed: NodeRole.ValueType, certified: Role
) -> None:
    node = Node(id="n1", role=observed)
    node.spec.role = wanted
    await cluster.managed.commit(lambda working: working.create(node))
    assert cluster.state.find_node("n1") == NodeRecord("n1", certified)
    assert cluster.state.find_node("n2") is None


async def test_a_node_that_went_meanwhile_holds_no_new_certificate(cluster: SmallCluster) -> None:
    renewed = cluster.authority.credentials(node_id="n1").identity
    await cluster.add_node("n1", WORKER)
    await cluster.state.record_renewal(renewed)
    assert cluster.get_node("n1").certificate_serial == f"{renewed.serial:x}"
    await cluster.remove_node("n1")
    with pytest.raises(CertificateRefusedError, match="node n1 was removed from the cluster") as refusal:
        await cluster.state.record_renewal(renewed)
    assert refusal.value.code is grpc.StatusCode.PERMISSION_DENIED
    assert cluster.nodes == []


async def test_what_cannot_be_committed_is_refused_for_now(cluster: SmallCluster) -> None:
    await cluster.add_node("n1", WORKER)
    renewed = cluster.authority.credentials(node_id="n1").identity

    def under_way() -> list[asyncio.Task[None]]:
        calls = (cluster.state.register_node(new_node("n2")), cluster.state.record_renewal(renewed))
        return [asyncio.ensure_future(call) for call in calls]

    calls = under_way()
    await asyncio.sleep(0)
    assert cluster.state.is_leader
    cluster.log.lose_leadership()
    assert not cluster.state.is_leader
    for call in (*calls, *under_way()):
        with pytest.raises(CertificateRefusedError, match=r"^not now: ") as refusal:
            await call
        assert refusal.value.code is grpc.StatusCode.UNAVAILABLE
    assert ([node.id for node in cluster.nodes], cluster.get_node("n1").certificate_serial) == (["n1"], "")


async def test_a_rotated_token_lets_nobody_in_and_the_other_stays(cluster: SmallCluster) -> None:
    before = cluster.join_tokens
    await cluster.rotate_worker_token()
    after = cluster.join_tokens
    assert (before.role_of(after.worker), after.role_of(before.worker)) == (None, None)
    assert after.manager == before.manager
    assert after.role_of(after.worker) is Role.WORKER


async def test_a_removed_node_is_remembered_for_as_long_as_it_could_have_a_certificate(cluster: SmallCluster) -> None:
    await cluster.add_node("n1", WORKER)
    assert not cluster.state.is_removed("n1", serial=1)
    await cluster.remove_node("n1")
    remembered = timedelta(microseconds=NODE_CERT_EXPIRY_NS // 1000) + REMOVED_GRACE
    for passed, is_removed in ((remembered, True), (timedelta(seconds=1), False)):
        cluster.managed.now_ns[0] += int(passed.total_seconds()) * 10**9
        await cluster.rotate_worker_token()  # a change of the cluster's object forgets who is long gone
        assert cluster.state.is_removed("n1", serial=1) is is_removed
        assert cluster.state.find_node("n1") is None
    assert cluster.state.is_demoted("n1")


async def test_settings_are_read_where_they_stand(cluster: SmallCluster) -> None:
    assert cluster.state.certificate_lifetime == timedelta(hours=1)
    assert cluster.state.root_ca.key_pem == cluster.authority.root.key_pem
    assert cluster.state.root_ca is cluster.state.root_ca, "parsed more than once"
    assert cluster.state.trust_root_pem == cluster.authority.root.certificate_pem
