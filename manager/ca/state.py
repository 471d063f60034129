"""The certificate server's view of the replicated store (``manager.ca.server.CAState``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import grpc

from manager.ca.server import NODE_ROLES, CertificateRefusedError, NewNode, NodeRecord
from manager.consensus.port import Consensus, ConsensusError
from manager.constants import NEVER_CAME_NODES_MAX
from manager.control.defaults import NODE_CERT_EXPIRY_NS
from manager.dispatcher.nodes import has_come
from manager.model.nodes import copy_node
from manager.store import CLUSTERS, NODES, Change, Store, StoreError, Working
from pki.authority import RootCA
from pki.certificates import Identity, Role
from pki.node_certificate import utc_now
from pki.tokens import JoinTokens
from proto.ca_pb2 import ManagerAddress
from proto.objects_pb2 import Node, NodeState
from proto.specs_pb2 import NodeRole


class StoreCAState:
    """Reads the cluster object, writes node objects.

    Args:
        managers: every manager, the leader first.
        clock: aware time.
    """

    def __init__(
        self,
        store: Store,
        consensus: Consensus,
        cluster_id: str,
        *,
        managers: Callable[[], Sequence[ManagerAddress]],
        trust_root_pem: Callable[[], bytes],
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store, self._consensus, self.cluster_id = store, consensus, cluster_id
        self._managers, self._clock = managers, clock
        self._trust_root_pem = trust_root_pem
        self._root: RootCA | None = None
        # All replaced as a whole: the listener asks on the raft thread.
        self._kept_root_pem = self._root_pem_in_store()
        self._removed: frozenset[str] = frozenset()
        self._void_before: dict[str, datetime] = {}
        self._on_refused: Callable[[str], None] = lambda node_id: None
        self._awaited = {node.id for node in store.view.nodes if not has_come(node)}
        """Nodes that have joined and had no session yet: counted for each that joins, so kept."""
        store.on_change(self._on_change)

    def on_refused(self, callback: Callable[[str], None]) -> None:
        """Call ``callback`` with the ID of each node whose Raft streams have to be checked: it was removed or demoted."""
        self._on_refused = callback

    def _on_change(self, changes: Sequence[Change]) -> None:
        refused: set[str] = set()
        if any(change.kind is CLUSTERS for change in changes):
            removed = frozenset(node for cluster in self._store.view.clusters for node in cluster.removed_nodes)
            refused |= removed - self._removed
            self._removed = removed
            self._kept_root_pem = self._root_pem_in_store()
        nodes = set()
        for change in changes:
            if change.kind is NODES:
                nodes.add(change.id)
                self._await(change.id, change.new)
        void = {node_id: before for node_id in nodes if (before := self._void_time(node_id)) is not None}
        if any(self._void_before.get(node_id) != before for node_id, before in void.items()):
            refused |= {node_id for node_id, before in void.items() if self._void_before.get(node_id) != before}
            self._void_before = {**self._void_before, **void}
        for node_id in refused:
            self._on_refused(node_id)

    def _await(self, node_id: str, node: object) -> None:
        if isinstance(node, Node) and not has_come(node):
            self._awaited.add(node_id)
        else:
            self._awaited.discard(node_id)

    def _void_time(self, node_id: str) -> datetime | None:
        node = self._store.view.nodes.get(node_id)
        if node is None or not node.HasField("manager_certificates_void_before"):
            return None
        return node.manager_certificates_void_before.ToDatetime(UTC)

    def refuses_manager(self, identity: Identity) -> bool:
        """Whether a manager certificate opens no Raft stream: its node was removed, or demoted after it was issued.

        By the time of issue and not by the node's role: a member that lags must not lock out a manager that was
        promoted again. Certificates count in whole seconds, so one of the same second still passes. Any thread.
        """
        if identity.node_id in self._removed:
            return True
        before = self._void_before.get(identity.node_id)
        return before is not None and identity.issued_at < before.replace(microsecond=0)

    @property
    def is_leader(self) -> bool:
        return self._consensus.leader.is_leader

    @property
    def root_ca(self) -> RootCA:
        kept = self._store.view.cluster.root_ca
        if self._root is None or self._root.certificate_pem != kept.ca_cert_pem:
            self._root = RootCA.from_pem(kept.ca_cert_pem, kept.ca_key_pem)
        return self._root

    @property
    def trust_root_pem(self) -> bytes:
        """The cluster's, or what this manager itself trusts while its store is still empty. Any thread."""
        return self._kept_root_pem or self._trust_root_pem()

    def _root_pem_in_store(self) -> bytes:
        cluster = next(iter(self._store.view.clusters), None)
        return cluster.root_ca.ca_cert_pem if cluster is not None else b""

    @property
    def join_tokens(self) -> JoinTokens:
        tokens = self._store.view.cluster.root_ca.join_tokens
        return JoinTokens(worker=tokens.worker, manager=tokens.manager)

    @property
    def certificate_lifetime(self) -> timedelta:
        expiry_ns = self._store.view.cluster.spec.ca_config.node_cert_expiry_ns
        return timedelta(microseconds=(expiry_ns or NODE_CERT_EXPIRY_NS) // 1000)

    @property
    def managers(self) -> Sequence[ManagerAddress]:
        return self._managers()

    def find_node(self, node_id: str) -> NodeRecord | None:
        node = self._store.view.nodes.get(node_id)
        if node is None:
            return None
        manager = NodeRole.NODE_ROLE_MANAGER in (node.spec.role, node.role)
        return NodeRecord(node_id, Role.MANAGER if manager else Role.WORKER)

    def is_removed(self, node_id: str, serial: int) -> bool:
        """Whether a node was removed (A2.09). Its ID is never given out again, so the serial says nothing more."""
        return node_id in self._removed

    def is_demoted(self, node_id: str) -> bool:
        """Whether a node neither is a manager nor is to become one.

        Nor is one without an object, removed longer ago than ``removed_nodes`` goes back: its certificate may have been
        given a longer life than certificates have now. A manager with an empty store knows nobody yet.
        """
        node = self._store.view.nodes.get(node_id)
        if node is None:
            return bool(len(self._store.view.clusters))
        return NodeRole.NODE_ROLE_MANAGER not in (node.spec.role, node.role)

    async def register_node(self, node: NewNode) -> None:
        def create(working: Working) -> None:
            absent = len(self._awaited)
            if absent >= NEVER_CAME_NODES_MAX:
                raise CertificateRefusedError(
                    grpc.StatusCode.UNAVAILABLE,
                    f"{absent} nodes have joined the swarm and have not shown up since: "
                    "try again later, or remove them (node ls, node rm)",
                )
            made = Node(id=node.node_id, role=NodeRole.NODE_ROLE_WORKER, certificate_serial=f"{node.serial:x}")
            made.spec.role = NODE_ROLES[node.role]
            made.spec.availability = node.availability
            made.status.state = NodeState.NODE_STATE_UNKNOWN
            made.status_since.FromDatetime(self._clock())
            working.create(made)

        await self._update(create)

    async def record_renewal(self, identity: Identity) -> None:
        def change(working: Working) -> None:
            old = working.nodes.get(identity.node_id)
            if old is None:
                raise CertificateRefusedError(
                    grpc.StatusCode.PERMISSION_DENIED, f"node {identity.node_id} was removed from the cluster"
                )
            node = copy_node(old)
            node.certificate_serial = f"{identity.serial:x}"
            working.update(node)

        await self._update(change)

    async def _update(self, change: Callable[[Working], None]) -> None:
        try:
            await self._store.update(change)
        except (ConsensusError, StoreError) as error:
            raise CertificateRefusedError(grpc.StatusCode.UNAVAILABLE, f"not now: {error}") from error
