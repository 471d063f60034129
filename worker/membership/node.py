"""This host as a member of a cluster, or not yet: init, join, leave, and finding its place again after a restart."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from pki.addresses import AddressError, join_host_port, split_host_port
from pki.authority import RootCA
from pki.certificates import CERT_EXPIRY_DEFAULT, Role, check_cert_expiry, new_csr, root_digest
from pki.errors import (
    FrameError,
    InvalidCertificateError,
    InvalidTokenError,
    JoinRefusedError,
    JoinUnreachableError,
    PKIError,
)
from pki.identifiers import new_id
from pki.join_client import join_cluster
from pki.keys import new_key
from pki.node_certificate import NodeCertificate, NodeCredentials, utc_now
from pki.tokens import JoinTokens
from proto import objects_pb2 as objects
from proto.ca_pb2 import ManagerAddress
from proto.control_pb2 import ListNodesRequest
from proto.node_pb2 import Bootstrap, LocalState
from proto.objects_pb2 import Reachability
from proto.specs_pb2 import NodeRole
from worker.membership import local_state
from worker.membership.addresses import (
    GRPC_PORT,
    follows_host,
    is_here,
    resolve_advertise,
    resolve_data_path,
    resolve_listen,
    system_addresses,
    warm,
)
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
from worker.membership.manager_process import ManagerProcess
from worker.membership.participation import CERTIFICATES, MANAGER_LOCK, RAFT, Host, Participation, erase

if TYPE_CHECKING:
    from proto.control_pb2_grpc import ControlAsyncStub

log = structlog.get_logger(__name__)

JOIN_TIMEOUT_S = 20.0
_RETRY_JOIN_S = 1.0

_ALREADY = 'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'
_NOT_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm '
    "and try again."
)
_IS_WORKER = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this "
    "command on a manager node or promote the current node to a manager."
)
_JOIN_TIMEOUT = (
    "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. Use the "
    '"docker info" command to see the current swarm status of your node.'
)

_UNUSABLE = "{error}; restore the file and start the daemon again, or leave the swarm with force"

_LEAVE_UNUSABLE = (
    "This node is a manager whose files cannot be used ({error}). Leaving erases its copy of the swarm's state. "
    "Use `--force` to ignore this message."
)

_REFUSALS = {
    3: "InvalidArgument",
    7: "PermissionDenied",
    8: "ResourceExhausted",
    9: "FailedPrecondition",
    12: "Unimplemented",
}
"""gRPC codes as Go spells them: users' scripts look for these words (W05)."""


class Node:
    """The one ``ClusterMember`` of a daemon. ``open`` before anything else, ``close`` at the end."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._participation: Participation | None = None
        self._error = ""
        self._unusable: LocalState | None = None
        self._changing = asyncio.Lock()
        self._joining: asyncio.Task[None] | None = None
        self._warming: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Take up this host's place in its cluster, if it has one.

        What is wrong with its files is told in ``info().error``; the engine works all the same.
        """
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
            self._cannot_use(LocalState(), error)
            return
        if state is None:
            self._warming = asyncio.get_running_loop().create_task(warm(), name="addresses.warm")
            return
        try:
            certificate = NodeCertificate.load(self._host.state_dir / CERTIFICATES)
            local_state.check(state, certificate.identity)
        except (PKIError, local_state.LocalStateError) as error:
            self._cannot_use(state, error)
            return
        await self._follow_address(state)
        await self._begin(Participation(self._host, state, certificate))

    async def _follow_address(self, state: LocalState) -> None:
        """Take the address that the host has now, where the user named none and the old one is gone (E07)."""
        before = split_host_port(state.advertise_addr)[0]
        if is_here(before):
            return
        if not state.HasField("advertise_asked"):
            log.info("address.elsewhere", address=before, reason="this host does not have it: fine if it is translated")
            return
        try:
            advertise = resolve_advertise(state.advertise_asked, state.listen_addr, await system_addresses())
        except (AddressError, OSError) as error:
            log.warning("address.lost", address=before, reason=str(error))
            return
        state.advertise_addr, after = advertise, split_host_port(advertise)[0]
        if state.data_path_addr == before:
            state.data_path_addr = after
        for manager in state.managers:
            if manager.node_id == state.node_id:
                manager.raft_addr, manager.grpc_addr = advertise, join_host_port(after, GRPC_PORT)
        log.warning("address.changed", before=before, after=after)
        try:
            local_state.save(self._host.state_dir, state)
        except OSError as error:  # the next start finds it out again
            log.warning("address.not_saved", error=str(error))

    def _cannot_use(self, state: LocalState, error: Exception) -> None:
        if (self._host.state_dir / RAFT).exists():  # whatever the file says: a copy of the swarm's state is at stake
            state.role = NodeRole.NODE_ROLE_MANAGER
        self._unusable, self._error = state, _UNUSABLE.format(error=error)
        log.error("node.unusable", error=self._error)

    async def _stop_manager(self) -> None:
        """Stop a manager that outlived the daemon and is nobody's."""
        lock = self._host.state_dir / MANAGER_LOCK
        await ManagerProcess(self._host.zygote, lock, on_exit=lambda _config: None).stop()

    async def close(self) -> None:
        """End the sessions and the manager; containers run on."""
        joining, self._joining = self._joining, None
        if joining is not None:
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
        if self._participation is not None:
            await self._participation.stop()

    async def _begin(self, participation: Participation, bootstrap: Bootstrap | None = None) -> None:
        self._participation = participation
        await participation.start(bootstrap=bootstrap)

    # ------------------------------------------------------------------ ClusterMember

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
            control_available=participation.control_available,
            error=participation.error or participation.manager_failure or participation.session_error,
            remote_managers=list(state.managers),
        )

    def control(self) -> ControlAsyncStub:
        participation = self._participation
        if participation is None:
            raise NotManagerError(_NOT_MANAGER)
        if not participation.control_available:
            raise NotManagerError(
                _IS_WORKER if participation.state.role != NodeRole.NODE_ROLE_MANAGER else _NO_MANAGER_YET
            )
        return participation.control

    async def init(self, request: InitRequest) -> str:
        async with self._changing:
            if request.force_new_cluster and self._participation is not None:
                return await self._force_new_cluster(request)
            self._refuse_when_member()
            listen, advertise, data_path = await _addresses(
                request.listen_addr, request.advertise_addr, request.data_path_addr
            )
            _check_init(request)
            try:
                founded = await asyncio.to_thread(self._found, request, listen, advertise, data_path)
                state, certificate, bootstrap = founded
                await self._begin(Participation(self._host, state, certificate), bootstrap)
                await asyncio.to_thread(local_state.end_init, self._host.state_dir)
            except BaseException:
                await self._abandon()
                raise
            log.info("swarm.initialized", node_id=state.node_id, cluster_id=state.cluster_id)
            await self._settled()
            return state.node_id

    async def _settled(self) -> None:
        """Wait until the agent has its session: before, the node is UNKNOWN, and its object about to change."""
        if self._participation is not None and not await self._participation.wait_session(JOIN_TIMEOUT_S):
            log.warning("swarm.without_session", error=self._participation.session_error)

    def _found(
        self, request: InitRequest, listen: str, advertise: str, data_path: str
    ) -> tuple[LocalState, NodeCertificate, Bootstrap]:
        """Keys, certificates and the first objects of a new cluster. Blocks: run in a thread."""
        local_state.begin_init(self._host.state_dir)
        now = utc_now()
        root = RootCA.create(now)
        cluster_id, node_id, key = new_id(), new_id(), new_key()
        expiry = timedelta(microseconds=request.spec.ca_config.node_cert_expiry_ns // 1000) or CERT_EXPIRY_DEFAULT
        issued = root.issue(
            new_csr(key), node_id=node_id, role=Role.MANAGER, cluster_id=cluster_id, lifetime=expiry, now=now
        )
        credentials = NodeCredentials.verified(chain_pem=issued.chain_pem, key=key, root=root.trust_root())
        certificate = NodeCertificate.create(self._host.state_dir / CERTIFICATES, credentials)
        grpc_addr = join_host_port(split_host_port(advertise)[0], GRPC_PORT)
        state = LocalState(
            node_id=node_id,
            cluster_id=cluster_id,
            listen_addr=listen,
            advertise_addr=advertise,
            data_path_addr=data_path,
            availability=request.availability,
            managers=[ManagerAddress(node_id=node_id, grpc_addr=grpc_addr, raft_addr=advertise)],
            role=NodeRole.NODE_ROLE_MANAGER,
            advertise_asked=_asked(request, listen),
        )
        tokens = JoinTokens.new(root_digest(root.certificate_pem))
        cluster = objects.Cluster(
            id=cluster_id,
            spec=request.spec,
            default_addr_pool=request.default_addr_pool,
            subnet_size=request.subnet_size,
            data_path_port=request.data_path_port,
            root_ca=objects.RootCA(
                ca_cert_pem=root.certificate_pem,
                ca_key_pem=root.key_pem,
                join_tokens=objects.JoinTokens(worker=tokens.worker, manager=tokens.manager),
            ),
        )
        cluster.spec.encryption_config.auto_lock_managers = request.auto_lock_managers
        node = objects.Node(id=node_id, role=NodeRole.NODE_ROLE_MANAGER, raft_addr=advertise, grpc_addr=grpc_addr)
        node.spec.role = NodeRole.NODE_ROLE_MANAGER
        node.spec.availability = request.availability
        node.certificate_serial = f"{issued.identity.serial:x}"
        node.description.CopyFrom(self._host.describe())
        local_state.save(self._host.state_dir, state)
        return state, certificate, Bootstrap(cluster=cluster, node=node)

    async def _force_new_cluster(self, request: InitRequest) -> str:
        """Become the only manager with the state that is here; an address may be given anew (A1.14, X22)."""
        old = self._participation
        assert old is not None
        if old.state.role != NodeRole.NODE_ROLE_MANAGER:
            raise NotManagerError(_IS_WORKER)
        state = LocalState()
        state.CopyFrom(old.state)
        if request.advertise_addr:
            state.listen_addr, state.advertise_addr, state.data_path_addr = await _addresses(
                request.listen_addr, request.advertise_addr, request.data_path_addr
            )
            state.ClearField("advertise_asked")
            if (asked := _asked(request, state.listen_addr)) is not None:
                state.advertise_asked = asked
        grpc_addr = join_host_port(split_host_port(state.advertise_addr)[0], GRPC_PORT)
        del state.managers[:]
        state.managers.add(node_id=state.node_id, grpc_addr=grpc_addr, raft_addr=state.advertise_addr)
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
        local_state.save(self._host.state_dir, state)
        log.warning("swarm.forced_new_cluster", node_id=state.node_id)
        await self._settled()
        return state.node_id

    async def join(self, request: JoinRequest) -> None:
        async with self._changing:
            self._refuse_when_member()
            if not request.remote_addrs:
                raise InvalidRequestError("at least one RemoteAddr is required to join")
            listen, advertise, data_path = await _addresses(
                request.listen_addr, request.advertise_addr, request.data_path_addr
            )
            loop = asyncio.get_running_loop()
            work = loop.create_task(self._join(request, listen, advertise, data_path), name="swarm.join")
            self._joining = work
            done, _ = await asyncio.wait({work}, timeout=JOIN_TIMEOUT_S)
            if not done:
                work.add_done_callback(self._background_join_ended)
                raise JoinTimeoutError(_JOIN_TIMEOUT)
            self._joining = None
            try:
                await work
            except BaseException:
                await self._abandon()
                raise

    def _background_join_ended(self, work: asyncio.Task[None]) -> None:
        """Nobody waits any more: what went wrong is told by ``info()``, and the way is free for another join."""
        if self._joining is work:
            self._joining = None
        if not work.cancelled() and (error := work.exception()) is not None:
            self._error = str(error)
            log.error("join.failed", error=str(error))

    async def _join(self, request: JoinRequest, listen: str, advertise: str, data_path: str) -> None:
        """The whole of a join; goes on after the caller has given up waiting."""
        while True:
            try:
                result = await join_cluster(request.remote_addrs, request.join_token, availability=request.availability)
                break
            except JoinUnreachableError as error:
                self._error = str(error)
                log.info("join.retried", reason=str(error))
                await asyncio.sleep(_RETRY_JOIN_S)
            except JoinRefusedError as error:
                name = _REFUSALS.get(error.code, "Unknown")
                raise InvalidRequestError(f"rpc error: code = {name} desc = {error}") from error
            except (InvalidTokenError, InvalidCertificateError, FrameError, PKIError, ValueError) as error:
                raise InvalidRequestError(str(error)) from error
        self._error = ""
        identity = result.credentials.identity
        certificate = await asyncio.to_thread(
            NodeCertificate.create, self._host.state_dir / CERTIFICATES, result.credentials
        )
        manager = identity.role is Role.MANAGER
        state = LocalState(
            node_id=identity.node_id,
            cluster_id=identity.cluster_id,
            listen_addr=listen,
            advertise_addr=advertise,
            data_path_addr=data_path,
            availability=request.availability,
            managers=result.managers,
            role=NodeRole.NODE_ROLE_MANAGER if manager else NodeRole.NODE_ROLE_WORKER,
            advertise_asked=_asked(request, listen),
        )
        await asyncio.to_thread(local_state.save, self._host.state_dir, state)
        participation = Participation(self._host, state, certificate)
        await self._begin(participation)
        if manager:
            await participation.wait_manager(JOIN_TIMEOUT_S)
        await participation.wait_session(JOIN_TIMEOUT_S)
        self._joining = None
        log.info("swarm.joined", node_id=identity.node_id, role=identity.role.value)

    async def leave(self, *, force: bool) -> None:
        async with self._changing:
            joining, self._joining = self._joining, None
            if joining is not None:
                joining.cancel()
                await asyncio.gather(joining, return_exceptions=True)
            participation = self._participation
            if participation is None:
                if joining is None and not self._error:
                    raise NotInSwarmError("This node is not part of a swarm")
                unusable = self._unusable
                if unusable is not None and unusable.role == NodeRole.NODE_ROLE_MANAGER and not force:
                    raise LeaveRefusedError(_LEAVE_UNUSABLE.format(error=self._error))
                self._error, self._unusable = "", None
                await self._stop_manager()
                await asyncio.to_thread(erase, self._host.state_dir)
                return
            if participation.state.role == NodeRole.NODE_ROLE_MANAGER and not force:
                raise LeaveRefusedError(await self._leave_warning(participation))
            await participation.leave()
            self._participation = None
            self._error = ""
            log.info("swarm.left", node_id=participation.state.node_id)

    async def _abandon(self) -> None:
        """Undo an init or join that failed: nothing of it may stay (A1.01)."""
        participation, self._participation = self._participation, None
        if participation is not None:
            await participation.stop()
            await participation.ask_out()
        self._error = ""
        await self._undo_init()

    async def _undo_init(self) -> None:
        await asyncio.to_thread(erase, self._host.state_dir)
        await asyncio.to_thread(local_state.end_init, self._host.state_dir)

    def _refuse_when_member(self) -> None:
        if self._participation is not None or self._joining is not None or self._unusable is not None:
            raise AlreadyInSwarmError(_ALREADY)

    async def _leave_warning(self, participation: Participation) -> str:
        """Why a manager should not just leave, in Docker's words (moby daemon/cluster/swarm.go, Leave)."""
        text = "You are attempting to leave the swarm on a node that is participating as a manager. "
        counts = await _manager_counts(participation)
        if counts is None:
            text += "Doing so may lose the consensus of your cluster. "
        else:
            reachable, unreachable = counts
            if reachable - 1 <= (reachable + unreachable) // 2 and reachable + unreachable == 1:
                return text + (
                    "Removing the last manager erases all current state of the swarm. "
                    "Use `--force` to ignore this message. "
                )
            if reachable - 1 <= (reachable + unreachable) // 2:
                text += (
                    f"Removing this node leaves {reachable - 1} managers out of {reachable + unreachable}. "
                    "Without a Raft quorum your swarm will be inaccessible. "
                )
        return text + (
            "The only way to restore a swarm that has lost consensus is to reinitialize it with "
            "`--force-new-cluster`. Use `--force` to suppress this message."
        )


_NO_MANAGER_YET = (
    "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the "
    "managers are online."
)


async def _manager_counts(participation: Participation) -> tuple[int, int] | None:
    """Managers that can be reached and that cannot, None when nobody could say."""
    try:
        answer = await participation.control.ListNodes(ListNodesRequest(), timeout=5)
    except Exception:
        return None
    states = [node.manager_status.reachability for node in answer.nodes if node.HasField("manager_status")]
    reachable = sum(state == Reachability.REACHABILITY_REACHABLE for state in states)
    return reachable, len(states) - reachable


async def _addresses(listen: str, advertise: str, data_path: str) -> tuple[str, str, str]:
    """Listen, advertise and data path address, resolved against this host. Raises: InvalidRequestError."""
    try:
        system = await system_addresses()
        listen = resolve_listen(listen, system)
        advertise = resolve_advertise(advertise, listen, system)
        return listen, advertise, resolve_data_path(data_path, advertise, system)
    except AddressError as error:
        raise InvalidRequestError(str(error)) from error


def _asked(request: InitRequest | JoinRequest, listen: str) -> str | None:
    """``LocalState.advertise_asked``."""
    return request.advertise_addr if follows_host(request.advertise_addr, listen) else None


def _check_init(request: InitRequest) -> None:
    """Refuse what cannot be served, before anything is written (A1.01, A1.05, A1.06, A1.11). Raises: InvalidRequestError."""
    if request.spec.name not in ("", "default"):
        raise InvalidRequestError('swarm spec must be named "default"')
    if request.data_path_port and not 1024 <= request.data_path_port <= 49151:
        raise InvalidRequestError(
            f"invalid data path port number {request.data_path_port}, must be in the range 1024 - 49151"
        )
    _check_pools(request.default_addr_pool, request.subnet_size)
    if request.auto_lock_managers:
        raise InvalidRequestError("autolock is not served yet: init without --autolock")
    if request.spec.ca_config.external_cas:
        raise InvalidRequestError("external certificate authorities are not served yet")
    if expiry_ns := request.spec.ca_config.node_cert_expiry_ns:
        try:
            check_cert_expiry(timedelta(microseconds=expiry_ns // 1000))
        except ValueError as error:
            raise InvalidRequestError(str(error)) from error
        except PKIError as error:
            raise InvalidRequestError(str(error)) from error


def _check_pools(pools: Sequence[str], subnet_size: int) -> None:
    networks = []
    for text in pools:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise InvalidRequestError(f"invalid CIDR address: {text}: {error}") from error
    for network in networks:
        if subnet_size and subnet_size < network.prefixlen:
            raise InvalidRequestError(f"subnet size {subnet_size} is larger than the address pool {network}")
    for index, network in enumerate(networks):
        for other in networks[index + 1 :]:
            if network.version == other.version and network.overlaps(other):
                raise InvalidRequestError(f"address pools {network} and {other} overlap")
