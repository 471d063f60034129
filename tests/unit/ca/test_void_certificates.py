"""A demoted or removed manager's kept certificate opens no Raft stream (manager/ca/state.py, listener.py)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from manager.ca.state import StoreCAState
from manager.consensus.inprocess import InProcessConsensus
from manager.store import Store
from pki.certificates import Identity, Role
from proto.objects_pb2 import Node
from proto.specs_pb2 import NodeRole
from tests.unit.ca.support import SmallCluster

NOW = datetime(2026, 11, 24, 12, 0, 30, 500_000, tzinfo=UTC)


def manager_certificate(issued_at: datetime) -> Identity:
    begin = issued_at.replace(microsecond=0) - timedelta(hours=1)  # back-dated, as every certificate is
    return Identity(
        node_id="n1", role=Role.MANAGER, cluster_id="c", serial=1, not_before=begin, not_after=begin + timedelta(days=9)
    )


@pytest.fixture
async def refused(cluster: SmallCluster) -> list[str]:
    """The nodes whose streams were ended; ``n1`` is one of the cluster."""
    refused: list[str] = []
    cluster.state.on_refused(refused.append)
    await cluster.add_node("n1", NodeRole.NODE_ROLE_MANAGER)
    return refused


async def demote(cluster: SmallCluster, when: datetime) -> None:
    node = Node()
    node.CopyFrom(cluster.get_node("n1"))
    node.manager_certificates_void_before.FromDatetime(when)
    await cluster.managed.commit(lambda working: working.update(node))


async def test_certificates_from_before_a_demotion_are_void_and_the_streams_end(
    cluster: SmallCluster, refused: list[str]
) -> None:
    kept = manager_certificate(NOW - timedelta(days=1))
    assert not cluster.state.refuses_manager(kept)
    await demote(cluster, NOW)
    assert cluster.state.refuses_manager(kept)
    assert refused == ["n1"]


async def test_a_certificate_of_a_later_promotion_is_good(cluster: SmallCluster, refused: list[str]) -> None:
    await demote(cluster, NOW)
    assert not cluster.state.refuses_manager(manager_certificate(NOW + timedelta(seconds=1)))
    assert not cluster.state.refuses_manager(manager_certificate(NOW))  # whole seconds: promoted again at once


async def test_a_removed_nodes_streams_end(cluster: SmallCluster, refused: list[str]) -> None:
    await cluster.remove_node("n1")
    assert cluster.state.refuses_manager(manager_certificate(NOW + timedelta(days=1)))
    assert refused == ["n1"]


async def test_a_node_that_is_nobody_any_more_is_no_manager(cluster: SmallCluster) -> None:
    """Its entry among the removed ones has run out; a certificate of a longer life than was given then has not."""
    await cluster.add_node("m1", NodeRole.NODE_ROLE_MANAGER)
    assert not cluster.state.is_demoted("m1")
    await cluster.managed.commit(lambda working: working.remove(cluster.get_node("m1")))
    assert not cluster.state.is_removed("m1", serial=1)
    assert cluster.state.is_demoted("m1")


async def test_a_manager_that_knows_nobody_yet_shuts_nobody_out() -> None:
    consensus = InProcessConsensus()
    store = Store(consensus, clock=lambda: 0.0)
    state = StoreCAState(store, consensus, "c", managers=list, trust_root_pem=bytes)
    await consensus.start(store)
    assert not state.is_demoted("m1")
    await consensus.stop()
