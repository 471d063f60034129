"""A demoted or removed manager's kept certificate opens no Raft stream (manager/ca_state.py, listener.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from manager.ca_state import StoreCAState
from manager.consensus.inprocess import InProcessConsensus
from manager.store import Store
from pki.certificates import Identity, Role
from proto.objects_pb2 import Cluster, Node
from proto.specs_pb2 import NodeRole

NOW = datetime(2026, 11, 24, 12, 0, 30, 500_000, tzinfo=UTC)


def manager_certificate(issued_at: datetime) -> Identity:
    begin = issued_at.replace(microsecond=0) - timedelta(hours=1)  # back-dated, as every certificate is
    return Identity(
        node_id="n1", role=Role.MANAGER, cluster_id="c", serial=1, not_before=begin, not_after=begin + timedelta(days=9)
    )


@pytest.fixture
async def parts() -> AsyncIterator[tuple[Store, StoreCAState, list[str]]]:
    consensus = InProcessConsensus()
    store = Store(consensus, clock=lambda: 0.0)
    state = StoreCAState(store, consensus, "c", managers=list, trust_root_pem=bytes)
    refused: list[str] = []
    state.on_refused(refused.append)
    await consensus.start(store)
    working = store.begin()
    working.create(Cluster(id="c"))
    working.create(Node(id="n1"))
    await store.commit(working)
    yield store, state, refused
    await consensus.stop()


async def demote(store: Store, when: datetime) -> None:
    node = Node()
    node.CopyFrom(store.view.nodes.find("n1"))
    node.manager_certificates_void_before.FromDatetime(when)
    await store.update(lambda working: working.update(node))


async def test_certificates_from_before_a_demotion_are_void_and_the_streams_end(
    parts: tuple[Store, StoreCAState, list[str]],
) -> None:
    store, state, refused = parts
    kept = manager_certificate(NOW - timedelta(days=1))
    assert not state.refuses_manager(kept)
    await demote(store, NOW)
    assert state.refuses_manager(kept)
    assert refused == ["n1"]


async def test_a_certificate_of_a_later_promotion_is_good(parts: tuple[Store, StoreCAState, list[str]]) -> None:
    store, state, _ = parts
    await demote(store, NOW)
    assert not state.refuses_manager(manager_certificate(NOW + timedelta(seconds=1)))
    assert not state.refuses_manager(manager_certificate(NOW))  # whole seconds: promoted again at once


async def test_a_removed_nodes_streams_end(parts: tuple[Store, StoreCAState, list[str]]) -> None:
    store, state, refused = parts
    cluster = Cluster()
    cluster.CopyFrom(store.view.cluster)
    cluster.removed_nodes["n1"].refuse_until.FromDatetime(NOW)
    await store.update(lambda working: working.update(cluster))
    assert state.refuses_manager(manager_certificate(NOW + timedelta(days=1)))
    assert refused == ["n1"]


async def test_a_node_that_is_nobody_any_more_is_no_manager(parts: tuple[Store, StoreCAState, list[str]]) -> None:
    """Its entry among the removed ones has run out; a certificate of a longer life than was given then has not."""
    store, state, _ = parts
    await store.update(lambda working: working.create(Node(id="m1", role=NodeRole.NODE_ROLE_MANAGER)))
    assert not state.is_demoted("m1")
    await store.update(lambda working: working.remove(store.view.nodes.find("m1")))
    assert not state.is_removed("m1", serial=1)
    assert state.is_demoted("m1")


async def test_a_manager_that_knows_nobody_yet_shuts_nobody_out() -> None:
    consensus = InProcessConsensus()
    store = Store(consensus, clock=lambda: 0.0)
    state = StoreCAState(store, consensus, "c", managers=list, trust_root_pem=bytes)
    await consensus.start(store)
    assert not state.is_demoted("m1")
    await consensus.stop()
