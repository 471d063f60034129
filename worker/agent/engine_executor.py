"""The executor on this host's container engine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import structlog

from proto.dispatcher_pb2 import AssignmentChange, NetworkPeer, NetworkService
from proto.objects_pb2 import Network, NetworkAttachment
from proto.specs_pb2 import PortConfig, PortProtocol, PublishMode
from runtime.engine import Engine
from runtime.errors import EngineError, NameConflictError, NotFoundError, NotModifiedError
from runtime.events import EventMessage
from runtime.images import ImagesError
from runtime.types import TASK_ID_LABEL, ContainerJSON, Mount
from worker.agent.container_spec import ContainerPlan, NodeFacts, plan_container, registry_auth
from worker.agent.contents import Contents, M, is_object_id, kind_of
from worker.agent.executor import Assignment, ContainerPhase, ExecutorError, Health, Observation
from worker.agent.images import ImagePuller
from worker.agent.payloads import PayloadFolder, plan_files
from worker.network.members import ClusterNetworks

log = structlog.get_logger(__name__)

STARTS_MAX = 2 * (os.cpu_count() or 1)
"""Containers being created or started at once; more only get in each other's way."""

_PHASES = {
    "created": ContainerPhase.CREATED,
    "running": ContainerPhase.RUNNING,
    "paused": ContainerPhase.RUNNING,
    "restarting": ContainerPhase.RUNNING,
}
_HEALTH = {"starting": Health.STARTING, "healthy": Health.HEALTHY, "unhealthy": Health.UNHEALTHY}
_NODE_NETWORK_ID = "bridge"


class EngineExecutor:
    """``worker.agent.executor.Executor`` on a ``runtime.engine.Engine``. ``open`` before anything else."""

    def __init__(
        self,
        engine: Engine,
        *,
        run_dir: Path,
        node: Callable[[], NodeFacts],
        networks: ClusterNetworks,
        starts_max: int = STARTS_MAX,
    ) -> None:
        """
        Args:
            engine: open already; stays the caller's.
            run_dir: for files of secrets and configs; made if need be, see ``PayloadFolder``.
            node: what templates may ask about this node, as it is now.
            networks: the cluster's on this node; closed with this.
            starts_max: containers being created or started at once.
        """
        self._engine, self._node, self._networks = engine, node, networks
        self._puller = ImagePuller(engine.images)
        self._payloads = PayloadFolder(run_dir)
        self._slots = asyncio.Semaphore(starts_max)
        self._containers: dict[str, str] = {}
        self._callbacks: list[Callable[[str], None]] = []
        self._forget: Callable[[], None] | None = None

    async def open(self) -> None:
        """Find the tasks' containers that are here, and follow what happens to them.

        Raises:
            ExecutorError: there is no memory file system for secrets.
        """
        await asyncio.to_thread(self._payloads.open)
        self._forget = self._engine.events.on_event(self._on_event)
        for summary in self._engine.list({"label": [TASK_ID_LABEL]}, all=True):
            task_id = summary.Labels[TASK_ID_LABEL]
            if is_object_id(task_id):
                self._containers[task_id] = summary.Id

    async def close(self) -> None:
        """See ``Executor``."""
        if self._forget is not None:
            self._forget()
            self._forget = None
        await self._puller.close()
        await self._networks.close()

    # ------------------------------------------------------------ observing

    def on_change(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """See ``Executor``."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def task_ids(self) -> Sequence[str]:
        """See ``Executor``."""
        return list(self._containers)

    def observe(self, task_id: str) -> Observation | None:
        """See ``Executor``."""
        container_id = self._containers.get(task_id)
        if container_id is None:
            return None
        try:
            return _observation(task_id, self._engine.inspect(container_id))
        except NotFoundError:
            self._containers.pop(task_id, None)
            return None

    def _on_event(self, message: EventMessage) -> None:
        if message.Type != "container":
            return
        task_id = message.Actor.Attributes.get(TASK_ID_LABEL)
        if task_id is None or not is_object_id(task_id):  # a label that somebody wrote
            return
        if message.Action == "create":
            self._containers[task_id] = message.Actor.ID
        elif message.Action == "destroy" and self._containers.get(task_id) == message.Actor.ID:
            del self._containers[task_id]
        if message.Action in ("start", "die"):
            self._networks.task_changed(task_id)
        for callback in tuple(self._callbacks):
            callback(task_id)

    # ------------------------------------------------------------ doing

    def replace_networks(self, contents: Contents) -> None:
        """See ``Executor``."""
        self._networks.replace(
            contents.of(Network), contents.of(NetworkPeer).values(), contents.of(NetworkService).values()
        )
        self._tell_node()

    def change_networks(self, contents: Contents, changes: Sequence[AssignmentChange]) -> None:
        """See ``Executor``."""
        networks = _changed(Network, contents, changes)
        peers, services = _changed(NetworkPeer, contents, changes), _changed(NetworkService, contents, changes)
        if networks or peers or services:
            self._networks.change(networks, peers, services)
        if networks:
            self._tell_node()

    def _tell_node(self) -> None:
        node = self._node()
        self._networks.set_node(node.id, node.data_path_addr)

    async def prepare(self, assignment: Assignment) -> None:
        """See ``Executor``."""
        task_id = assignment.task.id
        if self.observe(task_id) is not None:
            return
        node = self._node()
        plan = plan_container(assignment, node)
        files = plan_files(assignment, node)
        auth = registry_auth(assignment.spec_version.spec.task_template.registry_auth)
        await self._puller.ensure(plan.config.Image, auth)
        mounts = await asyncio.to_thread(self._payloads.write, task_id, files)
        async with self._slots, _refusals(""):
            for network in plan.networks:
                await self._networks.ready(network)
            if plan.is_published:
                await self._networks.make_way_out()
            self._containers[task_id] = await self._create(task_id, plan, mounts)

    async def _create(self, task_id: str, plan: ContainerPlan, mounts: Sequence[Mount]) -> str:
        host = msgspec.structs.replace(plan.host, Mounts=[*(plan.host.Mounts or ()), *mounts] or None)
        try:
            container_id, warnings = await self._engine.create(plan.config, host, plan.networking, name=plan.name)
        except NameConflictError as error:
            found = self._engine.inspect(error.container_id)
            if (found.Config.Labels or {}).get(TASK_ID_LABEL) != task_id:
                raise
            return found.Id  # made by this daemon before it was killed
        for warning in warnings:
            log.warning("container.created_with_warning", task_id=task_id, reason=warning)
        return container_id

    async def start(self, assignment: Assignment) -> None:
        """See ``Executor``."""
        container_id = self._containers.get(assignment.task.id)
        if container_id is None:
            raise ExecutorError("the task's container is gone")
        async with self._slots, _refusals("starting container failed: "):
            await self._engine.start(container_id)

    async def stop(self, task_id: str, grace_s: float | None) -> None:
        """See ``Executor``."""
        container_id = self._containers.get(task_id)
        if container_id is not None:
            async with _refusals("stopping container failed: ", gone_is_fine=True):
                await self._engine.stop(container_id, timeout_s=grace_s)

    async def remove(self, task_id: str) -> None:
        """See ``Executor``."""
        found = self._engine.list({"label": [f"{TASK_ID_LABEL}={task_id}"]}, all=True)
        for summary in found:  # more than one after a crash at a bad moment
            async with _refusals("removing container failed: ", gone_is_fine=True):
                await self._engine.remove(summary.Id, force=True, volumes=True)
        self._containers.pop(task_id, None)
        await asyncio.to_thread(self._payloads.remove, task_id)


def _changed(message: type[M], contents: Contents, changes: Sequence[AssignmentChange]) -> dict[str, M | None]:
    """Objects of one kind that changed, as they are now, by ID."""
    kind, objects = kind_of(message), contents.of(message)
    return {each.id: objects.get(each.id) for each in changes if each.kind == kind}


@asynccontextmanager
async def _refusals(prefix: str, *, gone_is_fine: bool = False) -> AsyncIterator[None]:
    """The engine's refusals as ours; that something is as wanted already is none."""
    try:
        yield
    except NotModifiedError:
        return
    except NotFoundError as error:
        if gone_is_fine:
            return
        raise ExecutorError(f"{prefix}{error}") from error
    except (EngineError, ImagesError) as error:
        raise ExecutorError(f"{prefix}{error}") from error


def _observation(task_id: str, container: ContainerJSON) -> Observation:
    state = container.State
    phase = _PHASES.get(state.Status, ContainerPhase.EXITED)
    health = _HEALTH.get(state.Health.Status, Health.NONE) if state.Health is not None else Health.NONE
    observation = Observation(
        task_id, container.Id, phase, pid=state.Pid, exit_code=state.ExitCode, error=state.Error, health=health
    )
    if phase is not ContainerPhase.RUNNING:
        return observation
    return msgspec.structs.replace(observation, ports=_ports(container), attachments=_attachments(container))


def _ports(container: ContainerJSON) -> list[PortConfig]:
    """The published ports in use; every published port of a task's container is a host-mode port."""
    ports: dict[tuple[str, str], PortConfig] = {}
    for name, bindings in container.NetworkSettings.Ports.items():
        target, _, protocol = name.partition("/")
        for binding in bindings or ():
            ports[name, binding.HostPort] = PortConfig(  # once, though bound for IPv4 and for IPv6
                protocol=PortProtocol.Value(f"PORT_PROTOCOL_{(protocol or 'tcp').upper()}"),
                target_port=int(target),
                published_port=int(binding.HostPort),
                publish_mode=PublishMode.PUBLISH_MODE_HOST,
            )
    return list(ports.values())


def _attachments(container: ContainerJSON) -> list[NetworkAttachment]:
    endpoint = container.NetworkSettings.Networks.get(_NODE_NETWORK_ID)
    if endpoint is None or not endpoint.IPAddress:
        return []
    addresses = [f"{endpoint.IPAddress}/{endpoint.IPPrefixLen}"]
    if endpoint.GlobalIPv6Address:
        addresses.append(f"{endpoint.GlobalIPv6Address}/{endpoint.GlobalIPv6PrefixLen}")
    return [NetworkAttachment(network_id=_NODE_NETWORK_ID, addresses=addresses)]
