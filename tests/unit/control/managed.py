"""A control service over the real store and a log of one member."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message

from manager.consensus.inprocess import InProcessConsensus
from manager.control.defaults import fill_cluster
from manager.control.service import ControlService
from manager.model.versions import present_version
from manager.store import Store, Working
from pki.authority import RootCA
from pki.certificates import root_digest
from pki.tokens import JoinTokens
from proto.objects_pb2 import Cluster, Node, NodeState, Task, TaskState
from proto.specs_pb2 import NodeAvailability, NodeRole

CREATED_NS = 1_700_000_000 * 10**9


@dataclass
class Managed:
    """What a test holds of one manager."""

    consensus: InProcessConsensus
    store: Store
    control: ControlService
    now_ns: list[int] = field(default_factory=lambda: [CREATED_NS])

    async def call(self, method: str, request: Message) -> Any:
        """One RPC by name; its response, whose type follows from the name."""
        return await self.control.call(method, request)

    async def commit(self, change: Callable[[Working], object]) -> None:
        await self.store.update(change)

    async def add_node(
        self,
        node_id: str,
        *,
        hostname: str = "",
        role: NodeRole.ValueType = NodeRole.NODE_ROLE_WORKER,
        state: NodeState.ValueType = NodeState.NODE_STATE_READY,
    ) -> Node:
        node = Node(id=node_id, role=role)
        node.spec.role = role
        node.spec.availability = NodeAvailability.NODE_AVAILABILITY_ACTIVE
        node.description.hostname = hostname or node_id
        node.status.state = state
        await self.commit(lambda working: working.create(node))
        return node

    async def add_task(
        self,
        task_id: str,
        service_id: str,
        *,
        slot: int = 1,
        node_id: str = "",
        spec_version: int = 1,
        state: TaskState.ValueType = TaskState.TASK_STATE_RUNNING,
        desired: TaskState.ValueType = TaskState.TASK_STATE_RUNNING,
    ) -> Task:
        task = Task(
            id=task_id,
            service_id=service_id,
            slot=slot,
            node_id=node_id,
            spec_version=spec_version,
            desired_state=desired,
        )
        task.status.state = state

        def change(working: Working) -> None:
            """As the loop makes it: with the version of the spec it names."""
            service = working.services.get(service_id)
            present = service is not None and service.spec_version == spec_version
            if service is not None and present and working.spec_versions.of(service_id, spec_version) is None:
                working.create(present_version(service))
            working.create(task)

        await self.commit(change)
        return task


def make_cluster() -> Cluster:
    root = RootCA.create(datetime.fromtimestamp(CREATED_NS / 1e9, UTC))
    tokens = JoinTokens.new(root_digest(root.certificate_pem))
    cluster = Cluster(id="cluster")
    fill_cluster(cluster)
    cluster.root_ca.ca_cert_pem = root.certificate_pem
    cluster.root_ca.ca_key_pem = b"the key"
    cluster.root_ca.join_tokens.worker = tokens.worker
    cluster.root_ca.join_tokens.manager = tokens.manager
    return cluster


@asynccontextmanager
async def running_manager(
    *, cluster: Cluster | None = None, consensus: InProcessConsensus | None = None
) -> AsyncIterator[Managed]:
    """A manager that leads, with a cluster object; at the end no stored object may have been changed in place.

    Args:
        cluster: its object; one with a key that signs nothing if not given.
        consensus: its log, not started.
    """
    consensus = consensus or InProcessConsensus()
    now_ns = [CREATED_NS]
    store = Store(consensus, clock=lambda: now_ns[0] / 1e9, debug=True)
    await consensus.start(store)
    control = ControlService(store, consensus, clock_ns=lambda: now_ns[0])
    managed = Managed(consensus, store, control, now_ns)
    await managed.commit(lambda working: working.create(cluster or make_cluster()))
    yield managed
    store.check_unmutated()
    await control.close()
    await consensus.stop()
