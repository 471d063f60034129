"""The manager process: everything a manager runs, put together, from start to stop.

``run`` is what the zygote calls in the forked process. On every manager: consensus, the store on it, the 2377
listener, gRPC on 7946 and on the local socket, all services. On the leader alone, for as long as it leads: the
reconcile loop, the dispatcher and the role manager. A part that fails ends the process; the node starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import os
import signal
import ssl
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar  # Any: a coroutine that only returns

import grpc
import grpc.aio
import structlog

from base.backoff import Backoff
from base.files import lock_file, make_public_folder, open_lock_file
from base.grpc_events import take_all_events
from base.leftovers import remove_as_a_whole
from base.machine import BOOTS_FILE, known_boots, this_machine
from base.refused_threads import threads_were_refused
from base.tasks import unless
from base.unix_rpc import UnixServer
from manager.authorization import AuthorizationInterceptor, LocalInterceptor, caller
from manager.ca.server import CertificateRefusedError, CertificateServer
from manager.ca.service import JoinService, NodeCAService
from manager.ca.state import StoreCAState
from manager.consensus.port import (
    Admission,
    ConsensusError,
    CorruptStateError,
    LeaderState,
    NodeID,
    NotLeaderError,
    StateLockedError,
)
from manager.consensus.raft import RaftConsensus
from manager.consensus.sealed import KeyRing
from manager.consensus.settings import RaftConfig
from manager.consensus.thread import MemberRemovedError
from manager.consensus.transport import PeerRefusedError
from manager.control.defaults import fill_cluster
from manager.control.forward import LeaderForwarder
from manager.control.networks import ingress_network
from manager.control.rpc import CHANNEL_OPTIONS, control_handler
from manager.control.service import ControlService
from manager.dispatcher.dispatcher import Dispatcher
from manager.dispatcher.looking import Looker
from manager.dispatcher.watching import Lookout
from manager.health import HealthService
from manager.leader_link import LeaderLink, leader_answer
from manager.listener import Listener, source_network
from manager.model.nodes import copy_node
from manager.other_managers import OtherManagers
from manager.raft_membership import MembershipService, why_claim_is_of_a_copy
from manager.raft_settings import follow_spec
from manager.reconcile.loop import ReconcileLoop
from manager.roles import RoleManager
from manager.store import Store, StoreError, Working
from pki.addresses import split_host_port
from pki.authority import IssuedCertificate, RootCA
from pki.encryption import ensure_data_keys
from pki.errors import InvalidCertificateError, PKIError
from pki.grpc_credentials import RotatingChannel, server_credentials, server_options
from pki.identifiers import new_id
from pki.node_certificate import NodeCertificate
from pki.renewal import follow
from pki.tls import TLSContexts, peer_identity, require_manager
from proto.ca_pb2 import IssueNodeCertificateRequest, IssueNodeCertificateResponse
from proto.ca_pb2_grpc import NodeCAStub, add_NodeCAServicer_to_server
from proto.health_pb2_grpc import add_HealthServicer_to_server
from proto.node_pb2 import Bootstrap, ManagerConfig
from proto.objects_pb2 import Machine
from proto.raft_pb2 import MachineClaim, RaftAdmission, RaftJoinRequest
from proto.raft_pb2_grpc import RaftMembershipStub, add_RaftMembershipServicer_to_server

log = structlog.get_logger(__name__)

CERTIFICATES = "certificates"
RAFT = "raft"
RAFT_REMOVED = "raft.removed"
AGENT = "agent"
LOCK_FILE = "manager.lock"
SOCKET_FILE = "manager.sock"
ERROR_FILE = "manager.error"
BOOTSTRAP_TIMEOUT_S = 30.0
JOIN_RETRY_S_MIN = 0.3
JOIN_RETRY_S_MAX = 5.0
FORWARD_TIMEOUT_S = 15.0
SOCKET_CHECK_S = 1.0
TRANSFER_TIMEOUT_S = 2.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
EXIT_REFUSED_THREADS = 70
_PR_SET_NAME = 15
_WAY_OUT = (
    "restore it from a backup, and the manager goes on; or, while other managers lead the swarm, let this node leave it with "
    "force and join again"
)

T = TypeVar("T")


def run(payload: bytes) -> int:
    """Be the manager that ``payload`` (a ManagerConfig) describes; return the exit status."""
    config = ManagerConfig.FromString(payload)
    structlog.contextvars.bind_contextvars(process="manager")
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_NAME, b"swarm-manager", 0, 0, 0)
    error_file = Path(config.run_dir) / ERROR_FILE
    error_file.unlink(missing_ok=True)
    try:
        with _locked(Path(config.state_dir) / LOCK_FILE):
            asyncio.run(_Manager(config).run())
    except Exception as error:
        cause = _cause(error)
        foreseen = isinstance(cause, ConsensusError | PKIError | OSError)
        told = failure_text(cause, config.state_dir)
        log.error("manager.failed", error=told, exc_info=None if foreseen else error)
        with contextlib.suppress(OSError):
            make_public_folder(error_file.parent, 0o711)
            error_file.write_text(told)
        return 1
    return 0


def failure_text(cause: BaseException, state_dir: str) -> str:
    """What a manager ended with, for ``docker info``. Of a full disk the system says neither where nor what helps."""
    if isinstance(cause, OSError) and cause.errno in _DISK_FULL:
        return (
            f"{os.strerror(cause.errno)} for the swarm's log below {state_dir}: the manager goes on once there is room"
        )
    if isinstance(cause, CorruptStateError | InvalidCertificateError):
        return f"{cause}; {_WAY_OUT}"
    return str(cause) or repr(cause)


def _cause(error: BaseException) -> BaseException:
    """The first failure in a task group's exception: the others are its consequences."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold STATE/manager.lock with our PID in it: how the node finds a manager that outlived it."""
    with open_lock_file(path) as file:
        try:
            lock_file(file)
        except BlockingIOError:
            raise StateLockedError(f"another manager runs on {path.parent}") from None
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield


class _Manager:
    """All parts of one manager."""

    def __init__(self, config: ManagerConfig) -> None:
        self._config = config
        self._state, self._run_dir = Path(config.state_dir), Path(config.run_dir)
        self._certificate = NodeCertificate.load(self._state / CERTIFICATES)
        self._instance = os.urandom(16).hex()
        self._consensus = RaftConsensus(self._raft_config())
        self._store = Store(self._consensus, clock=time.time)
        follow_spec(self._store, self._consensus.policy)
        self._link = LeaderLink(
            self._store,
            self._consensus,
            lambda target: RotatingChannel(target, self._certificate, CHANNEL_OPTIONS),
            config.managers,
        )
        self._ca_state = StoreCAState(
            self._store,
            self._consensus,
            config.cluster_id,
            managers=self._link.managers,
            trust_root_pem=lambda: self._certificate.current.root.pem,
        )
        self._ca_state.on_refused(lambda node_id: self._consensus.recheck(NodeID(node_id)))
        self._ca = CertificateServer(self._ca_state, forward=self._forward_join, remember=self._remember_issued)
        self._control = ControlService(self._store, self._consensus)
        self._forwarder = LeaderForwarder(self._control, self._consensus, self._link.channel)
        self._looker = Looker()
        self._dispatcher = Dispatcher(
            self._store,
            caller=lambda _context: caller(),
            managers=self._link.managers,
            leader_addr=self._link.leader_addr,
            unheard_managers=self._unheard_managers,
            lookout=self._lookout(),
            is_here=self._is_here,
        )
        self._membership = MembershipService(
            self._store, self._consensus, self._link, refuses_manager=self._ca_state.refuses_manager
        )
        self._failure: BaseException | None = None
        self._stop = asyncio.Event()
        self._leadership = asyncio.Event()

    def _unheard_managers(self) -> dict[str, str]:
        heard = self._consensus.reachable
        return {member.node_id: member.address for member in self._consensus.members if member.node_id not in heard}

    def _lookout(self) -> Lookout:
        others = OtherManagers(
            self._consensus, self._link.managers, lambda addr: RotatingChannel(addr, self._certificate)
        )
        return Lookout(
            look_at=self._looker.look,
            ask_others=others.ask,
            hand_over=others.hand_over,
            port=split_host_port(self._config.grpc_advertise_addr)[1],
        )

    def _is_here(self, node_id: str, machine: Machine) -> bool:
        if node_id != self._config.node_id:
            return False
        here = this_machine(node_id)
        return (here.id, here.hardware) == (machine.id, machine.hardware) and here.links == tuple(machine.links)

    def _raft_config(self) -> RaftConfig:
        raft = self._state / RAFT
        in_use = any(next((raft / name).glob("*"), None) for name in ("journal", "snapshots"))
        keys = ensure_data_keys(self._state / CERTIFICATES, in_use=in_use)
        contexts = TLSContexts(self._certificate)
        return RaftConfig(
            node_id=NodeID(self._config.node_id),
            address=self._config.advertise_addr,
            folder=raft,
            keys=KeyRing(keys.pending, [keys.current]) if keys.pending else KeyRing(keys.current),
            client_ssl=contexts.raft_client,
            peer_identity=self._raft_peer,
            instance=self._instance,
            claim=lambda: self._claim().SerializeToString(),
            why_copy=self._why_copy,
            join=not self._config.HasField("bootstrap"),
            force_new_cluster=self._config.force_new_cluster,
        )

    def _claim(self) -> MachineClaim:
        """Any thread."""
        facts = this_machine(self._config.node_id)
        boots: list[str] = []
        with contextlib.suppress(OSError, ValueError):  # damaged: not told then, and nothing is decided by it
            boots = known_boots(self._state / AGENT / BOOTS_FILE)
        return MachineClaim(machine=Machine(id=facts.id, hardware=facts.hardware, links=facts.links), boots=boots)

    def _why_copy(self, node_id: NodeID, claim: bytes) -> str:
        """Called on the raft thread."""
        return why_claim_is_of_a_copy(self._store.view.nodes.get(node_id), claim)

    def _raft_peer(self, connection: ssl.SSLObject) -> NodeID:
        try:
            identity = require_manager(peer_identity(connection), self._config.cluster_id)
        except PKIError as error:
            raise PeerRefusedError(str(error)) from error
        if self._ca_state.refuses_manager(identity):
            raise PeerRefusedError(f"node {identity.node_id} was removed from the cluster or demoted")
        return NodeID(identity.node_id)

    # ------------------------------------------------------------------ life

    async def run(self) -> None:
        """From start to stop. Raises what ended the manager, if it did not end by SIGTERM."""
        take_all_events()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._consensus.on_failure(self._failed)
        self._consensus.on_leader_change(self._on_leader_change)
        await self._consensus.start(self._store)
        gc.freeze()  # a full collection looks at every object: 0.3 s of standstill with a restored store of 100 000 tasks
        listener = await self._start_listener()
        servers: list[grpc.aio.Server] = []
        try:
            async with asyncio.TaskGroup() as group:
                work = [
                    group.create_task(follow(self._certificate), name="certificate.follow"),
                    group.create_task(self._end_when_threads_were_refused(), name="threads"),
                ]
                remote = await self._serve_remote()
                servers.append(remote)
                if await self._enter(group, work):
                    local = await self._serve_local()
                    servers.append(local)
                    work.append(group.create_task(self._keep_socket(local), name="socket"))
                    log.info("manager.ready", node_id=self._config.node_id)
                    await self._stop.wait()
                for task in work:
                    task.cancel()
        finally:
            log.info("manager.stopping", node_id=self._config.node_id)
            await self._hand_over()
            await _on_loop(self._consensus.loop, listener.close())
            await self._consensus.stop(transfer=False)
            for server in servers:
                await server.stop(0.5)
            await self._control.close()
            await self._link.close()
            (self._run_dir / SOCKET_FILE).unlink(missing_ok=True)
        if isinstance(self._failure, MemberRemovedError):
            await asyncio.to_thread(self._discard_log)
        if self._failure is not None:
            raise self._failure

    def _discard_log(self) -> None:
        """The log of a member that was removed is of no use to anybody, and keeps this node from becoming one again.

        Who is to be a manager all the same (demoted and promoted again while this host was away) starts with an empty
        one, as after any other promotion.
        """
        remove_as_a_whole(self._state / RAFT, self._state / RAFT_REMOVED)
        log.warning("log.discarded", node_id=self._config.node_id)

    async def _hand_over(self) -> None:
        """Give leadership away before the streams are closed: the cluster does not notice our end."""
        if self._failure is None and self._consensus.leader.is_leader and len(self._consensus.members) > 1:
            with contextlib.suppress(ConsensusError):
                await self._consensus.transfer_leadership(timeout_s=TRANSFER_TIMEOUT_S)

    async def _end_when_threads_were_refused(self) -> None:
        """The node starts the next one. In no order but for the lead: gRPC's servers may never stop."""
        await threads_were_refused()
        log.error("manager.ends", reason="the system refused this process threads: gRPC cannot be relied upon any more")
        await self._hand_over()
        os._exit(EXIT_REFUSED_THREADS)

    def _failed(self, error: BaseException) -> None:
        log.error("consensus.failed", error=str(error))
        self._failure = error
        self._stop.set()

    async def _enter(self, group: asyncio.TaskGroup, work: list[asyncio.Task[None]]) -> bool:
        """Found the cluster, or be taken into it; False when told to stop before that."""
        if self._config.HasField("bootstrap"):
            await self._bootstrap(self._config.bootstrap)
        work.append(group.create_task(self._lead(), name="leadership"))
        members = {member.node_id: member for member in self._consensus.members}
        me = members.get(NodeID(self._config.node_id))
        if me is None and not self._consensus.group_id and not self._others():
            raise CorruptStateError(f"{self._state / RAFT}: empty, and nobody else is known to have the swarm's state")
        if me is not None and not me.learner:
            # A member by its own log: only its address may have to be told, which can wait for a leader.
            work.append(group.create_task(self._join(), name="raft.join"))
            return True
        await unless(self._stop, self._join())
        return not self._stop.is_set()

    # ------------------------------------------------------------------ servers

    async def _start_listener(self) -> Listener:
        """The 2377 listener, on the raft thread's loop."""
        host, port = split_host_port(self._config.listen_addr, empty_host=True)
        main_loop = asyncio.get_running_loop()

        async def start() -> Listener:
            listener = Listener(
                self._certificate,
                join=JoinService(self._ca, main_loop),
                raft_accept=lambda reader, writer, peer: self._consensus.accept(reader, writer, NodeID(peer)),
                refuses_manager=self._ca_state.refuses_manager,
                is_member=self._is_member_network,
            )
            await listener.start(host, port)
            return listener

        return await _on_loop(self._consensus.loop, start())

    def _is_member_network(self, network: str) -> bool:
        """Called on the raft thread."""
        for member in self._consensus.members:
            with contextlib.suppress(ValueError):  # a host name
                if source_network(split_host_port(member.address)[0]) == network:
                    return True
        return False

    async def _serve_remote(self) -> grpc.aio.Server:
        interceptor = AuthorizationInterceptor(
            trust_root=lambda: self._certificate.current.root,
            cluster_id=self._config.cluster_id,
            is_removed=self._ca_state.is_removed,
            is_demoted=self._ca_state.is_demoted,
        )
        server = grpc.aio.server(interceptors=[interceptor], options=server_options())
        server.add_generic_rpc_handlers((control_handler(self._forwarder.call),))
        server.add_generic_rpc_handlers((self._dispatcher.handler(),))
        add_NodeCAServicer_to_server(NodeCAService(self._ca), server)
        add_RaftMembershipServicer_to_server(self._membership, server)
        add_HealthServicer_to_server(HealthService(self._consensus, self._looker), server)
        address = self._config.grpc_listen_addr
        try:
            server.add_secure_port(address, server_credentials(self._certificate))
        except RuntimeError as error:  # grpc's text speaks of its own debug switches
            raise OSError(f"cannot listen on {address}: is the port in use?") from error
        await server.start()
        return server

    async def _serve_local(self) -> UnixServer:
        """The control socket, for what the node asks."""
        server = UnixServer([LocalInterceptor(lambda: self._certificate.identity)])
        server.add_generic_rpc_handlers((control_handler(self._forwarder.call),))
        add_NodeCAServicer_to_server(NodeCAService(self._ca), server)
        add_RaftMembershipServicer_to_server(self._membership, server)
        await self._bind(server)
        return server

    async def _bind(self, server: UnixServer) -> None:
        """The umask makes the socket root's alone from the moment it is bound. Raises: OSError."""
        path = self._run_dir / SOCKET_FILE
        make_public_folder(path.parent, 0o711)
        path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{path}")
        finally:
            os.umask(mask)
        await server.start()

    async def _keep_socket(self, server: UnixServer) -> None:
        """Bind the socket anew when its file is gone: /run may be emptied under us, and a node would wait for ever."""
        told = ""
        while True:
            await asyncio.sleep(SOCKET_CHECK_S)
            if (self._run_dir / SOCKET_FILE).exists():
                continue
            try:
                await self._bind(server)
            except OSError as error:
                if told != str(error):
                    told = str(error)
                    log.error("socket.not_restored", reason=told)
            else:
                told = ""
                log.warning("socket.restored", path=str(self._run_dir / SOCKET_FILE))

    # ------------------------------------------------------------------ entering the cluster

    async def _bootstrap(self, bootstrap: Bootstrap) -> None:
        """The first entry of a new cluster: the cluster object, this node's, and the routing mesh's network."""
        async with asyncio.timeout(BOOTSTRAP_TIMEOUT_S):
            while not self._consensus.leader.is_leader:
                self._leadership.clear()
                await self._leadership.wait()
        if len(self._store.view.clusters):
            return
        working = self._store.begin()
        cluster = bootstrap.cluster
        fill_cluster(cluster)
        working.create(ingress_network(cluster, new_id()))
        working.create(cluster)
        working.create(bootstrap.node)
        await self._store.commit(working)

    def _others(self) -> set[str]:
        """Addresses of the managers that this one was told of, beside itself."""
        return {manager.grpc_addr for manager in self._config.managers if manager.node_id != self._config.node_id}

    async def _join(self) -> None:
        """Ask the leader to take us in (again after our address has changed), until it has."""
        request = RaftJoinRequest(
            raft_addr=self._config.advertise_addr,
            grpc_addr=self._config.grpc_advertise_addr,
            instance=self._instance,
        )
        node_id = NodeID(self._config.node_id)
        backoff = Backoff(JOIN_RETRY_S_MIN, JOIN_RETRY_S_MAX, factor=1.5)
        while True:
            request.group_id = self._consensus.group_id
            request.claim.CopyFrom(self._claim())
            if self._consensus.leader.leader_id == node_id:
                return
            targets = self._others()
            leader = self._link.leader_addr()
            for target in [leader] * bool(leader) + sorted(targets - {leader}):
                async with RotatingChannel(target, self._certificate) as channel:
                    try:
                        stub = RaftMembershipStub(channel)
                        answer = await stub.Join(request, timeout=30)
                        if answer.HasField("admission"):
                            await self._consensus.admit(_admission(answer.admission))
                            request.group_id = self._consensus.group_id
                            await stub.Join(request, timeout=30)
                        return
                    except grpc.aio.AioRpcError as error:
                        log.info("join.retried", target=target, code=error.code().name, reason=error.details())
            await asyncio.sleep(backoff.next_s())

    def _remember_issued(self, issued: IssuedCertificate, root: RootCA) -> None:
        self._certificate.current.root.remember(issued.chain_pem, issued.identity, issuer=root.certificate)

    async def _forward_join(self, request: IssueNodeCertificateRequest) -> IssueNodeCertificateResponse:
        channel = self._link.channel()
        if channel is None:
            raise CertificateRefusedError(grpc.StatusCode.UNAVAILABLE, "the swarm has no leader at the moment")
        issue = NodeCAStub(channel).IssueNodeCertificate
        try:
            answer: IssueNodeCertificateResponse = await leader_answer(
                lambda: issue(request, timeout=FORWARD_TIMEOUT_S)
            )
        except grpc.aio.AioRpcError as error:
            raise CertificateRefusedError(error.code(), error.details() or "") from error
        return answer

    # ------------------------------------------------------------------ leading

    def _on_leader_change(self, state: LeaderState) -> None:
        log.info("leader.changed", term=state.term, leader_id=state.leader_id, is_leader=state.is_leader)
        self._leadership.set()
        self._link.leader_changed()
        self._dispatcher.managers_changed()

    async def _lead(self) -> None:
        """Run what only the leader runs, from each gain of leadership to its loss."""
        while True:
            self._leadership.clear()
            leader = self._consensus.leader
            if not leader.is_leader:
                await self._leadership.wait()
                continue
            term = leader.term
            async with asyncio.TaskGroup() as group:
                duties = [
                    group.create_task(_until_deposed(part), name=name)
                    for name, part in (
                        ("reconcile", ReconcileLoop(self._store, clock=time.time, ids=new_id).run()),
                        ("dispatcher", self._dispatcher.run()),
                        ("roles", RoleManager(self._store, self._consensus).run()),
                        ("address", self._tell_address()),
                    )
                ]
                while self._consensus.leader.is_leader and self._consensus.leader.term == term:
                    self._leadership.clear()
                    await self._leadership.wait()
                for duty in duties:
                    duty.cancel()

    async def _tell_address(self) -> None:
        """A manager whose address has changed tells it to the leader by ``_join``; the leader has nobody to tell.

        Its Raft address is in the configuration, by which ``roles`` sets the node's.
        """

        def change(working: Working) -> None:
            old = working.nodes.get(self._config.node_id)
            if old is None or old.grpc_addr == self._config.grpc_advertise_addr:
                return
            node = copy_node(old)
            node.grpc_addr = self._config.grpc_advertise_addr
            working.update(node)

        while True:
            try:
                await self._store.update(change)
                return
            except NotLeaderError:
                raise
            except (ConsensusError, StoreError) as error:
                log.info("address.deferred", reason=str(error))
                await asyncio.sleep(JOIN_RETRY_S_MAX)


def _admission(message: RaftAdmission) -> Admission:
    return Admission(message.group_id, message.term, NodeID(message.leader_id), message.index)


async def _until_deposed(part: Coroutine[Any, Any, None]) -> None:
    """Run a leader's part; losing the lead in the middle of a write is no failure."""
    with contextlib.suppress(NotLeaderError):
        await part


async def _on_loop(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on another thread's loop and wait for it here."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))
