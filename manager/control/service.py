"""The control API on the leader: every RPC of ``proto/control.proto`` as a method that answers or raises.

``manager.control.transactions`` reads and commits; kinds that their declaration serves are ``manager.control.object_methods``.
Other managers pass calls on to this one (``manager.control.forward``); ``manager.control.rpc`` puts it on gRPC.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Awaitable, Callable

import structlog
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from manager.consensus.port import Consensus
from manager.control import clusters, filters, nodes, services, tasks, validation
from manager.control.counts import FollowedCounts
from manager.control.defaults import redacted_cluster
from manager.control.lookup import find_node, find_service, find_task, spec_version_of
from manager.control.names import random_name
from manager.control.object_methods import MANAGED, ObjectMethods
from manager.control.parts import encoded
from manager.control.transactions import Transactions
from manager.model.defaults import insert_defaults, normalize_service_spec
from manager.store import Store, Working
from pki.identifiers import new_id
from proto import control_pb2 as pb
from proto.objects_pb2 import Cluster, Service
from proto.specs_pb2 import NodeRole, ServiceSpec

log = structlog.get_logger(__name__)

TASKS_PER_REMOVAL = 150
"""Tasks marked in the transaction that removes their service, which spares the orchestrator's pass. It marks what is
left; after a conflict (a task's status moved) that is all of them, so a busy service can be removed at once."""


class ControlService:
    """Answers the control API from one manager's store; only the leader does, except for ``get_manager_info``."""

    def __init__(
        self,
        store: Store,
        consensus: Consensus,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        make_id: Callable[[], str] = new_id,
    ) -> None:
        """
        Args:
            store: the replicated objects.
            consensus: who leads, who is a member; the log under ``store``.
            clock_ns: Unix time in nanoseconds, for ``CreatedAt`` and ``UpdatedAt``.
            make_id: gives new Swarm IDs.
        """
        self._store, self._consensus = store, consensus
        self._clock_ns, self._make_id = clock_ns, make_id
        self._transactions = Transactions(store, consensus)
        self._counts = FollowedCounts(store)
        self._methods: dict[str, Callable[..., Awaitable[Message]]] = {}
        for managed in MANAGED:
            served = ObjectMethods(managed, self._transactions, now=self._now, make_id=make_id)
            self._methods.update(served.by_name())
        for method in pb.DESCRIPTOR.services_by_name["Control"].methods:
            if method.name not in self._methods:
                self._methods[method.name] = getattr(self, _snake_case(method.name))

    async def call(self, method: str, request: Message) -> Message:
        """Answer one RPC.

        Args:
            method: the RPC's name, ``GetCluster``.
            request: of the RPC's request type.

        Raises:
            NotLeaderError: nothing was done, ask the leader.
            ControlError, StoreError, ConsensusError: see ``manager.control.errors.to_wire``.
        """
        return await self._methods[method](request)

    async def close(self) -> None:
        """Give up read barriers under way; calls end with CancelledError."""
        self._counts.close()
        await self._transactions.close()

    # ------------------------------------------------------------ cluster

    async def get_cluster(self, request: pb.GetClusterRequest) -> pb.GetClusterResponse:
        view = await self._transactions.read()
        return pb.GetClusterResponse(cluster=redacted_cluster(view.cluster, tokens=True))

    async def update_cluster(self, request: pb.UpdateClusterRequest) -> pb.UpdateClusterResponse:
        def change(working: Working) -> Cluster:
            return clusters.update_cluster(
                working,
                working.cluster,
                request.spec,
                version=request.version,
                rotate_worker_token=request.rotate_worker_token,
                rotate_manager_token=request.rotate_manager_token,
                now=self._now(),
            )

        await self._transactions.write(change)
        log.info(
            "cluster.updated",
            worker_token_rotated=request.rotate_worker_token,
            manager_token_rotated=request.rotate_manager_token,
        )
        return pb.UpdateClusterResponse(cluster=redacted_cluster(self._store.view.cluster, tokens=True))

    async def get_manager_info(self, request: pb.GetManagerInfoRequest) -> pb.GetManagerInfoResponse:
        """From this replica, as old as it may be: what GET /info shows must not hang without a leader."""
        view = self._store.view
        members = self._consensus.members
        response = pb.GetManagerInfoResponse(
            nodes_total=len(view.nodes),
            managers_total=len(view.nodes.by_role(NodeRole.NODE_ROLE_MANAGER)),
            has_leader=self._consensus.leader.leader_id is not None,
            remote_managers=[pb.RemoteManager(node_id=member.node_id, addr=member.address) for member in members],
            now=self._now(),
            error=self._consensus.superseded,
        )
        cluster = next(iter(view.clusters), None)
        if cluster is not None:
            response.cluster.CopyFrom(redacted_cluster(cluster, tokens=False))
        return response

    # ------------------------------------------------------------ nodes

    async def get_node(self, request: pb.GetNodeRequest) -> pb.GetNodeResponse:
        view = await self._transactions.read()
        node = find_node(view, request.ref)
        return pb.GetNodeResponse(node=nodes.with_manager_status(node, self._membership()))

    async def list_nodes(self, request: pb.ListNodesRequest) -> pb.ListNodesResponse:
        matches = filters.node_filter(filters.filter_values(request.filters, filters.NODE_KEYS))
        view, membership = await self._transactions.read(), self._membership()
        found = [nodes.with_manager_status(node, membership) for node in view.nodes if matches(node)]
        return pb.ListNodesResponse(nodes=await encoded(found))

    async def update_node(self, request: pb.UpdateNodeRequest) -> pb.UpdateNodeResponse:
        validation.validate_node_spec(request.spec)
        node = await self._transactions.write(
            lambda working: nodes.update_node(
                working,
                find_node(working, request.ref),
                request.spec,
                self._membership(),
                version=request.version,
                now=self._now(),
            )
        )
        log.info("node.updated", node_id=node.id, role=node.spec.role, availability=node.spec.availability)
        node = self._store.view.nodes.get(node.id) or node
        return pb.UpdateNodeResponse(node=nodes.with_manager_status(node, self._membership()))

    async def remove_node(self, request: pb.RemoveNodeRequest) -> pb.RemoveNodeResponse:
        def change(working: Working) -> str:
            node = find_node(working, request.ref)
            nodes.remove_node(working, working.cluster, node, self._membership(), force=request.force, now=self._now())
            return node.id

        node_id = await self._transactions.write(change, split=True)
        log.info("node.removed", node_id=node_id, force=request.force)
        return pb.RemoveNodeResponse()

    # ------------------------------------------------------------ services

    async def create_service(self, request: pb.CreateServiceRequest) -> pb.CreateServiceResponse:
        spec = normalize_service_spec(request.spec)
        spec.task_template.registry_auth = request.registry_auth
        named = bool(spec.name)
        spec.name = spec.name or random_name()
        validation.validate_service_spec(spec)
        service_id = self._make_id()

        def change(working: Working) -> Service:
            while not named and working.services.by_name(spec.name) is not None:
                spec.name = random_name()
            return services.create_service(working, spec, service_id=service_id)

        service = await self._transactions.write(change)
        service = self._store.view.services.get(service.id) or service
        log.info("service.created", service_id=service.id, service_name=service.spec.name)
        return pb.CreateServiceResponse(service=service, warnings=services.warnings_of(service, None))

    async def get_service(self, request: pb.GetServiceRequest) -> pb.GetServiceResponse:
        view = await self._transactions.read()
        response = pb.GetServiceResponse(service=find_service(view, request.ref))
        if request.insert_defaults:
            response.service.spec.CopyFrom(insert_defaults(response.service.spec))
        return response

    async def list_services(self, request: pb.ListServicesRequest) -> pb.ListServicesResponse:
        matches = filters.service_filter(filters.filter_values(request.filters, filters.SERVICE_KEYS))
        view = await self._transactions.read()
        found = [service for service in services.visible(view.services) if matches(service)]
        counts = self._counts.now
        statuses = {service.id: services.service_status(service, counts) for service in found if request.status}
        response = pb.ListServicesResponse(statuses=statuses)
        response.services.extend(await encoded(found))
        return response

    async def update_service(self, request: pb.UpdateServiceRequest) -> pb.UpdateServiceResponse:
        spec = normalize_service_spec(request.spec)
        if not request.rollback:
            validation.validate_service_spec(spec)
        before = ServiceSpec()

        def change(working: Working) -> Service:
            service = find_service(working, request.ref)
            before.CopyFrom(service.spec)
            if request.rollback:
                return services.roll_back_service(working, service, version=request.version, now=self._now())
            spec.task_template.registry_auth = services.registry_auth_of(
                service, request.registry_auth, from_previous=bool(request.registry_auth_from)
            )
            validation.check_size(spec)
            return services.update_service(working, service, spec, version=request.version)

        service = await self._transactions.write(change)
        service = self._store.view.services.get(service.id) or service
        log.info(
            "service.updated",
            service_id=service.id,
            service_name=service.spec.name,
            spec_version=service.spec_version,
            rollback=request.rollback,
        )
        return pb.UpdateServiceResponse(service=service, warnings=services.warnings_of(service, before))

    async def remove_service(self, request: pb.RemoveServiceRequest) -> pb.RemoveServiceResponse:
        tasks_max = itertools.chain([TASKS_PER_REMOVAL], itertools.repeat(0))

        def change(working: Working) -> Service:
            service = find_service(working, request.ref)
            services.remove_service(working, service, now=self._now(), tasks_max=next(tasks_max))
            return service

        service = await self._transactions.write(change)
        log.info("service.removed", service_id=service.id, service_name=service.spec.name)
        return pb.RemoveServiceResponse()

    # ------------------------------------------------------------ tasks

    async def get_task(self, request: pb.GetTaskRequest) -> pb.GetTaskResponse:
        view = await self._transactions.read()
        task = find_task(view, request.ref)
        return pb.GetTaskResponse(task=task, spec=spec_version_of(view, task))

    async def list_tasks(self, request: pb.ListTasksRequest) -> pb.ListTasksResponse:
        values = filters.filter_values(request.filters, filters.TASK_KEYS)
        selection = tasks.select(await self._transactions.read(), values)
        found, specs = await tasks.matching(selection)
        return pb.ListTasksResponse(tasks=await encoded(found), specs=await encoded(list(specs.values())))

    # ------------------------------------------------------------ parts

    def _membership(self) -> nodes.Membership:
        consensus = self._consensus
        return nodes.Membership(consensus.members, consensus.reachable, consensus.leader)

    def _now(self) -> Timestamp:
        stamp = Timestamp()
        stamp.FromNanoseconds(self._clock_ns())
        return stamp


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
