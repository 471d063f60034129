"""This host as a member of a cluster, or not yet: one door for init, join, leave, and for what a restart finds on disk.

Which of them may come when is decided here; what each does is in ``init``, ``join``, ``leave`` and ``participation``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from base.backoff import Backoff
from base.tasks import OwnedTasks, cancel_and_wait
from pki.addresses import split_host_port
from pki.certificates import Role
from pki.errors import PKIError
from pki.node_certificate import NodeCertificate
from proto.node_pb2 import Bootstrap, LocalState
from proto.specs_pb2 import NodeRole
from worker.membership import local_state
from worker.membership.cluster_member import (
    AlreadyInSwarmError,
    InitRequest,
    InvalidRequestError,
    JoinRequest,
    JoinTimeoutError,
    LeaveRefusedError,
    LocalNodeState,
    NotInSwarmError,
    NotManagerError,
    SwarmInfo,
)
from worker.membership.host import Host
from worker.membership.init import alone, check_init, found_cluster
from worker.membership.join import join_by_token, settle
from worker.membership.leave import leave_warning, unusable_warning
from worker.membership.manager_process import ManagerProcess
from worker.membership.own_addresses import OwnAddresses, follow_host
from worker.membership.participation import Participation
from worker.membership.state_folder import CERTIFICATES, MANAGER_LOCK, RAFT, erase, was_member

if TYPE_CHECKING:
    from proto.control_pb2_grpc import ControlAsyncStub

log = structlog.get_logger(__name__)

JOIN_TIMEOUT_S = 20.0
_TAKE_UP_S_MIN, _TAKE_UP_S_MAX = 0.5, 15.0

_JOIN = "swarm.join"

_ALREADY = 'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'
_NOT_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm '
    "and try again."
)
_IS_WORKER = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this "
    "command on a manager node or promote the current node to a manager."
)
_NO_MANAGER_YET = (
    "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the "
    "managers are online."
)
_DOES_NOT_RUN = "the manager of this node does not run: {failure}"
_JOIN_TIMEOUT = (
    "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. Use the "
    '"docker info" command to see the current swarm status of your node.'
)
_NOT_YET = "{error}; it is tried again, or leave the swarm with force"
_UNUSABLE = "{error}; restore the file and start the daemon again, or leave the swarm with force"


class Node:
    """The one ``ClusterMember`` of a daemon. ``open`` before anything else, ``close`` at the end.

    Attributes:
        join_timeout_s: how long a join is waited for; it goes on after that. And how long for the first session.
    """

    def __init__(self, host: Host, *, join_timeout_s: float = JOIN_TIMEOUT_S) -> None:
        self.join_timeout_s = join_timeout_s
        self._host = host
        self._participation: Participation | None = None
        self._error = ""
        self._unusable: LocalState | None = None
        self._changing = asyncio.Lock()
        self._tasks = OwnedTasks(self._on_failure)
        self._joining: asyncio.Task[None] | None = None
        self._join_is_awaited = False

    async def open(self) -> None:
        """Take up this host's place in its cluster, if it has one.

        What is wrong with its files is told in ``info().error``; the engine works all the same. What the disk does not
        take or give now is tried again.
        """
        try:
            await self._take_up()
        except OSError as error:
            self._not_yet(error)
            self._tasks.spawn(self._take_up_later(), name="node.take_up")

    def _not_yet(self, error: OSError) -> None:
        self._cannot_use(LocalState(), _NOT_YET.format(error=error))

    async def _take_up_later(self) -> None:
        backoff = Backoff(_TAKE_UP_S_MIN, _TAKE_UP_S_MAX)
        while True:
            await asyncio.sleep(backoff.next_s())
            async with self._changing:
                if self._unusable is None:  # a forced leave came first
                    return
                try:
                    await self._take_up()
                except OSError as error:
                    self._not_yet(error)
                else:
                    return

    async def _take_up(self) -> None:
        """Raises: OSError: nothing of it is left but what is on the disk."""
        self._error, self._unusable = "", None
        if local_state.is_init_unfinished(self._host.state_dir):
            log.warning("node.incomplete", reason="an init did not finish")
            await self._stop_manager()
            await self._undo_init()
            return
        if local_state.is_leave_unfinished(self._host.state_dir):
            log.warning("node.incomplete", reason="a leave did not finish")
            await self._stop_manager()
            erase(self._host.state_dir)
            return
        try:
            state = local_state.load(self._host.state_dir)
        except local_state.LocalStateError as error:
            self._cannot_use(LocalState(), _UNUSABLE.format(error=error))
            return
        if state is None:
            if was_member(self._host.state_dir):
                lost = f"{self._host.state_dir / local_state.FILE_NAME} is missing"
                self._cannot_use(LocalState(), _UNUSABLE.format(error=lost))
            return
        try:
            certificate = NodeCertificate.load(self._host.state_dir / CERTIFICATES)
            local_state.check(state, certificate.identity)
        except (PKIError, local_state.LocalStateError) as error:
            self._cannot_use(state, _UNUSABLE.format(error=error))
            return
        moved = await follow_host(state, self._host.addresses)
        participation = Participation(self._host, state, certificate)
        try:
            if moved:
                await participation.keep_state()
            await self._begin(participation)
        except OSError:
            self._participation = None
            await participation.stop()
            raise

    def _cannot_use(self, state: LocalState, error: str) -> None:
        if (self._host.state_dir / RAFT).exists():  # whatever the file says: a copy of the swarm's state is at stake
            state.role = NodeRole.NODE_ROLE_MANAGER
        self._unusable, self._error = state, error
        log.error("node.unusable", error=self._error)

    async def _stop_manager(self) -> None:
        """Stop a manager that outlived the daemon and is nobody's."""
        lock = self._host.state_dir / MANAGER_LOCK
        await ManagerProcess(self._host.zygote, lock, on_exit=lambda _config: None).stop()

    async def close(self) -> None:
        """End the sessions and the manager; containers run on."""
        self._joining = None
        await self._tasks.close()
        if self._participation is not None:
            await self._participation.stop()

    async def _begin(self, participation: Participation, bootstrap: Bootstrap | None = None) -> None:
        self._participation = participation
        await participation.start(bootstrap=bootstrap)

    # ------------------------------------------------------------------ what it is

    def info(self) -> SwarmInfo:
        participation = self._participation
        if participation is None:
            if self._error:
                return SwarmInfo(LocalNodeState.ERROR, error=self._error)
            return SwarmInfo(LocalNodeState.PENDING if self._joining else LocalNodeState.INACTIVE)
        state = participation.state
        return SwarmInfo(
            local_node_state=participation.local_node_state,
            node_id=state.node_id,
            node_addr=split_host_port(state.advertise_addr)[0],
            data_path_addr=state.data_path_addr or split_host_port(state.advertise_addr)[0],
            control_available=participation.control_available,
            error=participation.error or participation.manager_failure or participation.session_error,
            remote_managers=list(state.managers),
        )

    def control(self) -> ControlAsyncStub:
        participation = self._participation
        if participation is None:
            raise NotManagerError(_NOT_MANAGER if self._unusable is None else self._error)
        if not participation.control_available:
            if participation.state.role != NodeRole.NODE_ROLE_MANAGER:
                raise NotManagerError(_IS_WORKER)
            failure = participation.manager_failure
            raise NotManagerError(_DOES_NOT_RUN.format(failure=failure) if failure else _NO_MANAGER_YET)
        return participation.control

    async def wait_control(self, timeout_s: float) -> ControlAsyncStub:
        if self._participation is not None:
            await self._participation.wait_control(timeout_s)
        return self.control()

    def _refuse_when_member(self) -> None:
        if self._participation is not None or self._joining is not None or self._unusable is not None:
            raise AlreadyInSwarmError(_ALREADY)

    # ------------------------------------------------------------------ init

    async def init(self, request: InitRequest) -> str:
        async with self._changing:
            if request.force_new_cluster and self._participation is not None:
                return await self._force_new_cluster(request, self._participation)
            self._refuse_when_member()
            addresses = await OwnAddresses.of(request, self._host.addresses)
            check_init(request)
            try:
                founded = await asyncio.to_thread(found_cluster, self._host, request, addresses)
                state = founded.state
                await self._begin(Participation(self._host, state, founded.certificate), founded.bootstrap)
                await asyncio.to_thread(local_state.end_init, self._host.state_dir)
            except BaseException:
                await self._abandon()
                raise
            log.info("swarm.initialized", node_id=state.node_id, cluster_id=state.cluster_id)
            await self._settled()
            return state.node_id

    async def _settled(self) -> None:
        """Wait until the agent has its session: before, the node is UNKNOWN, and its object about to change."""
        if self._participation is not None and not await self._participation.wait_session(self.join_timeout_s):
            log.warning("swarm.without_session", error=self._participation.session_error)

    async def _force_new_cluster(self, request: InitRequest, old: Participation) -> str:
        """Become the only manager with the state that is here; an address may be given anew (A1.14, X22)."""
        if old.state.role != NodeRole.NODE_ROLE_MANAGER:
            raise NotManagerError(_IS_WORKER)
        addresses = await OwnAddresses.of(request, self._host.addresses) if request.advertise_addr else None
        state = alone(old.state, addresses)
        await old.stop()
        certificate = NodeCertificate.load(self._host.state_dir / CERTIFICATES)
        forced = Participation(self._host, state, certificate)
        try:
            await forced.start(force_new_cluster=True)
        except BaseException:
            await forced.stop()
            await self._begin(Participation(self._host, old.state, certificate))  # as it was before
            raise
        self._participation = forced
        await forced.keep_state()
        log.warning("swarm.forced_new_cluster", node_id=state.node_id)
        await self._settled()
        return state.node_id

    # ------------------------------------------------------------------ join

    async def join(self, request: JoinRequest) -> None:
        async with self._changing:
            self._refuse_when_member()
            if not request.remote_addrs:
                raise InvalidRequestError("at least 1 RemoteAddr is required to join")
            addresses = await OwnAddresses.of(request, self._host.addresses)
            self._joining = work = self._tasks.spawn(self._join(request, addresses), name=_JOIN)
            self._join_is_awaited = True
            try:
                done, _ = await asyncio.wait({work}, timeout=self.join_timeout_s)
            finally:
                self._join_is_awaited = False
            if not done:
                raise JoinTimeoutError(_JOIN_TIMEOUT)
            self._joining = None
            try:
                await work
            except BaseException:
                await self._abandon()
                raise

    def _on_failure(self, name: str, error: BaseException) -> None:
        """Nobody waits any more: what went wrong is told by ``info()``, and the way is free for another join."""
        if name != _JOIN:
            log.warning("task.failed", task=name, reason=str(error))
        elif not self._join_is_awaited:
            self._joining, self._error = None, str(error)
            log.error("join.failed", error=str(error))

    async def _join(self, request: JoinRequest, addresses: OwnAddresses) -> None:
        """The whole of a join; goes on after the caller has given up waiting."""
        result = await join_by_token(request, tell=self._tell_error)
        self._error = ""
        participation = Participation(self._host, *await settle(self._host, request, addresses, result))
        await self._begin(participation)
        if result.credentials.identity.role is Role.MANAGER:
            await participation.wait_manager(self.join_timeout_s)
        await participation.wait_session(self.join_timeout_s)
        self._joining = None
        identity = result.credentials.identity
        log.info("swarm.joined", node_id=identity.node_id, role=identity.role.value)

    def _tell_error(self, error: str) -> None:
        self._error = error

    async def _abandon(self) -> None:
        """Undo an init or join that failed: nothing of it may stay (A1.01)."""
        participation, self._participation = self._participation, None
        if participation is not None:
            await participation.abandon()
        self._error = ""
        await self._undo_init()

    async def _undo_init(self) -> None:
        await asyncio.to_thread(erase, self._host.state_dir)
        await asyncio.to_thread(local_state.end_init, self._host.state_dir)

    # ------------------------------------------------------------------ leave

    async def leave(self, *, force: bool) -> None:
        async with self._changing:
            joining, self._joining = self._joining, None
            if joining is not None:
                await cancel_and_wait(joining)
            participation = self._participation
            if participation is None:
                await self._leave_without_part(force=force, joining=joining is not None)
                return
            if participation.state.role == NodeRole.NODE_ROLE_MANAGER and not force:
                raise LeaveRefusedError(await leave_warning(participation.control))
            await participation.leave()
            self._participation = None
            self._error = ""
            log.info("swarm.left", node_id=participation.state.node_id)

    async def _leave_without_part(self, *, force: bool, joining: bool) -> None:
        """End a join that goes on, or remove files that cannot be used."""
        if not joining and not self._error:
            raise NotInSwarmError("This node is not part of a swarm")
        if self._unusable is not None and self._unusable.role == NodeRole.NODE_ROLE_MANAGER and not force:
            raise LeaveRefusedError(unusable_warning(self._error))
        self._error, self._unusable = "", None
        await self._stop_manager()
        await asyncio.to_thread(erase, self._host.state_dir)
