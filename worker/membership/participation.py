"""One node's life in one cluster: certificate, agent, and the manager process when it is a manager.

Made by init, by join, or by a daemon that finds its place on disk (``worker.membership.node``). Three things run for as long as
it lives: the agent, the renewal of the certificate, and ``_follow_role``, which makes this host what its node object
says: promoted, it fetches a manager certificate and starts a manager, which asks to be taken in; demoted, it stops
the manager once the leader has taken it out of the Raft group (``node.role`` is what says so).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import grpc
import grpc.aio
import structlog

from base.files import ensure_private_folder
from base.unix_rpc import UnixChannel
from pki.addresses import join_host_port, split_host_port
from pki.certificates import Role
from pki.errors import CertificateExpiredError, NodeCertificateExpiredError, PKIError
from pki.grpc_credentials import RotatingChannel
from pki.node_certificate import NodeCertificate, NodeCredentials, utc_now
from pki.renewal import Renewer
from pki.tls_info import node_tls_info
from proto.ca_pb2 import ManagerAddress, RenewCertificateRequest, RenewCertificateResponse
from proto.ca_pb2_grpc import NodeCAStub
from proto.control_pb2 import GetManagerInfoRequest
from proto.control_pb2_grpc import ControlStub
from proto.node_pb2 import Bootstrap, LocalState, ManagerConfig
from proto.objects_pb2 import Node, NodeDescription
from proto.raft_pb2 import RaftLeaveRequest
from proto.raft_pb2_grpc import RaftMembershipStub
from proto.specs_pb2 import NodeRole
from runtime.kernel.syscalls import Watcher
from worker.agent.agent import Agent
from worker.agent.executor import ExecutorError
from worker.membership import local_state
from worker.membership.addresses import GRPC_PORT
from worker.membership.cluster_member import LocalNodeState, MembershipError
from worker.membership.host import Host
from worker.membership.manager_process import ManagerProcess
from worker.membership.state_folder import AGENT, MANAGER_ERROR, MANAGER_LOCK, MANAGER_SOCKET, discard_log, erase
from worker.membership.zygote import ZygoteError

log = structlog.get_logger(__name__)

MANAGER_READY_TIMEOUT_S = 60.0
LEAVE_TIMEOUT_S = 10.0
_ROLE_RETRY_S = 1.0
_RESTART_DELAY_S_MIN = 0.5
_RESTART_DELAY_S_MAX = 30.0
_HEALTHY_AFTER_S = 60.0
_READY_RETRY_S = 0.1

_ENDED_SILENTLY = "the manager process was killed: out of memory? (the kernel's log knows)"


class Participation:
    """Construct, ``start``, then ``stop`` (the daemon ends) or ``leave`` (the node leaves its cluster)."""

    def __init__(self, host: Host, state: LocalState, certificate: NodeCertificate) -> None:
        self._host = host
        self.state = state
        self._certificate = certificate
        self.error = ""
        self._session_error = ""
        self._session_opened = asyncio.Event()
        self._node: Node | None = None
        self._node_changed = asyncio.Event()
        self._managers_saved = True
        self._manager_ready = False
        self._manager_failure = ""
        self._leaving = False
        self._manager = ManagerProcess(host.zygote, host.state_dir / MANAGER_LOCK, on_exit=self._on_manager_exit)
        self._local = UnixChannel(f"unix:{host.run_dir / MANAGER_SOCKET}")
        self.control = ControlStub(self._local)
        self._renewer = Renewer(certificate, self._renew)
        self._loop = asyncio.get_running_loop()
        self._forget = certificate.on_change(self._on_certificate)
        ensure_private_folder(host.state_dir / AGENT)
        self._agent = self._new_agent()
        self._agent_ran = False
        self._running: asyncio.Task[None] | None = None

    def _new_agent(self) -> Agent:
        return Agent(
            node_id=self.state.node_id,
            executor=self._host.executor,
            state_dir=self._host.state_dir / AGENT,
            channels=lambda target: RotatingChannel(target, self._certificate),
            managers=list(self.state.managers),
            describe=self._describe,
            listener=self,
            addr=split_host_port(self.state.advertise_addr)[0],
            availability=self.state.availability,
        )

    def _describe(self) -> NodeDescription:
        description = self._host.describe()
        description.tls_info.CopyFrom(node_tls_info(self._certificate.current))
        return description

    # ------------------------------------------------------------------ life

    async def start(self, *, bootstrap: Bootstrap | None = None, force_new_cluster: bool = False) -> None:
        """Start the manager, if this is one, and the agent.

        With ``bootstrap`` or ``force_new_cluster`` it returns once the manager answers; otherwise the manager may
        take as long as it needs (there may be no quorum yet).

        Raises:
            MembershipError: a manager that should make a cluster did not come up; the text says why.
        """
        if self._holds_manager_certificate:
            self.state.role = (
                NodeRole.NODE_ROLE_MANAGER
            )  # a promotion cut short wrote the certificate and not node.json
            await self._manager.start(self._manager_config(bootstrap, force_new_cluster=force_new_cluster))
            if bootstrap is not None or force_new_cluster:
                await self.wait_manager(MANAGER_READY_TIMEOUT_S)
        loop = asyncio.get_running_loop()
        self._running = loop.create_task(self._run(), name="participation")
        self._host.zygote.rest()

    async def stop(self) -> None:
        """End the session and the manager; containers run on."""
        await self._agent.close()
        await self._cancel()
        self._forget()
        await self._manager.stop()
        await self._local.close()

    async def leave(self) -> None:
        """Take the manager out of the Raft group if that can be done, stop every task, and forget the cluster."""
        self._leaving = True
        await self._cancel()
        self._forget()
        answered = await self._ask_own_manager_out()
        # At once, and not after the tasks: it hears of its removal, ends, and started again it would be taken in again.
        await self._manager.stop()
        if not answered:
            await self.ask_out()
        with contextlib.suppress(ExecutorError):  # the agent has said which container is left; the node leaves anyway
            await self._agent.leave()
        await self._local.close()
        erase(self._host.state_dir)

    async def _ask_own_manager_out(self) -> bool:
        """Whether the manager of this host said yes or no to its leaving."""
        if not self.control_available:
            return False
        request = RaftLeaveRequest(node_id=self.state.node_id)
        try:
            await RaftMembershipStub(self._local).Leave(request, timeout=LEAVE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.warning("member.not_left", node_id=self.state.node_id, reason=error.details())
            return error.code() is not grpc.StatusCode.UNAVAILABLE
        return True

    async def ask_out(self) -> None:
        """Have the other managers take this host's out of the Raft group: it is stopped, and cannot ask any more.

        It may be a member by now though it never answered here: a member that is gone counts for the quorum.
        """
        if not self._holds_manager_certificate:
            return
        others = [manager for manager in self.state.managers if manager.node_id != self.state.node_id]
        request = RaftLeaveRequest(node_id=self.state.node_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                for manager in others:
                    async with RotatingChannel(manager.grpc_addr, self._certificate) as channel:
                        try:
                            await RaftMembershipStub(channel).Leave(request, timeout=LEAVE_TIMEOUT_S)
                        except grpc.aio.AioRpcError as error:
                            log.info("member.not_left", manager=manager.grpc_addr, reason=error.details())
                            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                                continue
                    return

    async def _cancel(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _run(self) -> None:
        """Keep the agent, the certificate and the role going. None of them waits for another to be well."""
        async with asyncio.TaskGroup() as group:
            for name, part in (
                ("agent", self._run_agent),
                ("certificate.renewal", self._keep_certificate),
                ("role", self._follow_role),
                ("manager.ready", self._watch_manager),
            ):
                group.create_task(self._keep_going(name, part), name=name)

    async def _keep_going(self, name: str, part: Callable[[], Awaitable[None]]) -> None:
        """Run a part until it ends; what it failed with is told in ``error``, and it is tried again."""
        delay_s = _RESTART_DELAY_S_MIN
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await part()
                return
            except Exception as error:
                self.error = told = str(error) or type(error).__name__
                log.error("participation.failed", part=name, error=told, restart_delay_s=delay_s, exc_info=error)
            if loop.time() - began > _HEALTHY_AFTER_S:
                delay_s = _RESTART_DELAY_S_MIN
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _RESTART_DELAY_S_MAX)
            if name != "agent" and self.error == told:  # the agent's goes with its next session
                self.error = ""

    async def _run_agent(self) -> None:
        if self._agent_ran:
            self._agent = self._new_agent()
        self._agent_ran = True
        await self._agent.run()

    async def _keep_certificate(self) -> None:
        while True:
            try:
                await self._renewer.run()
            except NodeCertificateExpiredError as error:
                self.error = str(error)
                log.error("certificate.expired", node_id=self.state.node_id)
            await self._renewer.wait_valid()
            self.error = ""
            log.info("certificate.valid_again", node_id=self.state.node_id)

    # ------------------------------------------------------------------ what the agent hears

    @property
    def _holds_manager_certificate(self) -> bool:
        return self._certificate.identity.role is Role.MANAGER

    def _holds_manager_certificate_since(self, time: datetime) -> bool:
        return self._holds_manager_certificate and self._certificate.identity.issued_at >= time

    @property
    def local_node_state(self) -> LocalNodeState:
        if self.error:
            return LocalNodeState.ERROR
        if self._session_opened.is_set() or self._manager_ready:
            return LocalNodeState.ACTIVE
        return LocalNodeState.PENDING

    @property
    def control_available(self) -> bool:
        return self._manager_ready and self._manager.running

    @property
    def session_error(self) -> str:
        """Why there is no session, "" when there is one or none was tried."""
        try:
            self._certificate.identity.check_time(utc_now())
        except CertificateExpiredError as error:  # all that TLS says is that a handshake failed
            return self._session_error and f"{self._session_error} ({error}; is the clock of this host right?)"
        return self._session_error

    @property
    def manager_failure(self) -> str:
        """What the manager of this host ended with, "" while it answers: it is started again and again."""
        return "" if self._manager_ready else self._manager_failure

    def on_session(self, error: str) -> None:
        self._session_error = error
        if not error:
            self.error = ""
            self._session_opened.set()

    def on_managers(self, managers: Sequence[ManagerAddress]) -> None:
        if self._managers_saved and list(managers) == list(self.state.managers):
            return  # every session begins with the list; a write of the file is a wait for the disk
        del self.state.managers[:]
        self.state.managers.extend(managers)
        self._managers_saved = False
        try:
            self._save()
        except OSError as error:  # no reason to lose the session: the next one brings the list again
            log.warning("managers.not_saved", error=str(error))
        else:
            self._managers_saved = True

    def on_node(self, node: Node) -> None:
        self._node = node
        self._node_changed.set()

    def _on_certificate(self, _credentials: NodeCredentials) -> None:
        """A renewal that was answered before a change of role may end after it: the role is looked at again.

        Comes from the thread that wrote it; late, when the loop has ended meanwhile, it is of no interest.
        """
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._node_changed.set)

    def on_root_ca(self, root_ca_pem: bytes) -> None:
        try:
            self._certificate.replace_root(root_ca_pem)
        except (PKIError, OSError) as error:
            log.warning("root_ca.refused", error=str(error))
            self._renewer.renew_now()

    async def wait_session(self, timeout_s: float) -> bool:
        """Whether a session was opened within the time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._session_opened.wait()
        return self._session_opened.is_set()

    def _save(self) -> None:
        local_state.save(self._host.state_dir, self.state)

    # ------------------------------------------------------------------ the manager process

    def _manager_config(self, bootstrap: Bootstrap | None = None, *, force_new_cluster: bool = False) -> ManagerConfig:
        state = self.state
        listen_host, _ = split_host_port(state.listen_addr)
        advertise_host, _ = split_host_port(state.advertise_addr)
        return ManagerConfig(
            node_id=state.node_id,
            cluster_id=state.cluster_id,
            state_dir=str(self._host.state_dir),
            run_dir=str(self._host.run_dir),
            listen_addr=state.listen_addr,
            grpc_listen_addr=join_host_port(listen_host, GRPC_PORT),
            advertise_addr=state.advertise_addr,
            grpc_advertise_addr=join_host_port(advertise_host, GRPC_PORT),
            managers=state.managers,
            bootstrap=bootstrap,
            force_new_cluster=force_new_cluster,
        )

    def _on_manager_exit(self, _config: ManagerConfig) -> ManagerConfig | None:
        self._manager_ready = False
        self._manager_failure = self._manager_error() or _ENDED_SILENTLY
        log.warning("manager.ended", node_id=self.state.node_id, reason=self._manager_failure)
        return None if self._leaving else self._manager_config()

    async def wait_manager(self, timeout_s: float) -> None:
        """Return once the manager of this host answers.

        Raises:
            MembershipError: it ended, or did not answer in time; the text is the manager's own.
        """
        loop = asyncio.get_running_loop()
        answers = loop.create_task(self._manager_answers(), name="manager.answers")
        ended = loop.create_task(self._manager.wait_ended(), name="manager.ended")
        try:
            done, _ = await asyncio.wait({answers, ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if ended in done or not self._manager.running:
                raise MembershipError(self._manager_error() or "the manager process ended while it started")
            if answers not in done:
                text = f"the manager did not answer within {timeout_s:g} s"
                raise MembershipError(self._manager_error() or text)
            answers.result()
            self._manager_ready = True  # before anything else can happen: its end makes this untrue
        except grpc.aio.AioRpcError as error:
            raise MembershipError(f"the manager did not come up: {error.details()}") from error
        except OSError as error:
            raise MembershipError(f"the manager cannot be waited for: {error}") from error
        finally:
            for task in (answers, ended):
                task.cancel()
            await asyncio.gather(answers, ended, return_exceptions=True)

    async def _manager_answers(self) -> None:
        """Its socket appears once it serves; a call made before that would try to connect again and again."""
        socket, changed = self._host.run_dir / MANAGER_SOCKET, asyncio.Event()
        watcher = Watcher()
        try:
            self._host.run_dir.mkdir(mode=0o711, parents=True, exist_ok=True)  # it may have been emptied under us
            watcher.watch(self._host.run_dir, lambda _name: changed.set())
            while not socket.exists():
                await changed.wait()
                changed.clear()
        finally:
            watcher.close()
        await self.control.GetManagerInfo(GetManagerInfoRequest(), wait_for_ready=True)

    async def _watch_manager(self) -> None:
        """Know when the manager answers, also after it was restarted, or started by a promotion."""
        told = ""
        while True:
            await self._manager.wait_running()
            if not self._manager_ready:
                try:
                    await self.wait_manager(MANAGER_READY_TIMEOUT_S)
                except MembershipError as error:
                    if told != str(error):
                        told = str(error)
                        log.info("manager.not_ready", node_id=self.state.node_id, reason=told)
                    await asyncio.sleep(_READY_RETRY_S)
                    continue
                told = ""
                log.info("manager.ready", node_id=self.state.node_id)
            await self._manager.wait_ended()

    def _manager_error(self) -> str:
        try:
            return (self._host.run_dir / MANAGER_ERROR).read_text().strip()
        except OSError:
            return ""

    # ------------------------------------------------------------------ role

    async def _follow_role(self) -> None:
        self._node_changed.set()  # after a failure nobody says it again
        while True:
            await self._node_changed.wait()
            self._node_changed.clear()
            node = self._node
            if node is None:
                continue
            try:
                if node.spec.role == NodeRole.NODE_ROLE_MANAGER:
                    await self._become_manager(node)
                elif node.role != NodeRole.NODE_ROLE_MANAGER:
                    await self._become_worker()
            except (grpc.aio.AioRpcError, PKIError, OSError, TimeoutError, ZygoteError) as error:
                log.warning("role.change_failed", role=NodeRole.Name(node.spec.role), error=str(error))
                await asyncio.sleep(_ROLE_RETRY_S)
                self._node_changed.set()

    async def _become_manager(self, node: Node) -> None:
        # In whole seconds, as certificates count; 1970 when it was never demoted.
        void_before = node.manager_certificates_void_before.ToDatetime(UTC).replace(microsecond=0)
        if not self._holds_manager_certificate_since(void_before):
            await self._renewer.renew_once()
            if not self._holds_manager_certificate_since(void_before):
                raise MembershipNotYetError("the managers did not issue a manager certificate yet")
        if not self._manager.kept:
            self.state.role = NodeRole.NODE_ROLE_MANAGER
            self._save()
            log.info("node.promoted", node_id=self.state.node_id)
            await self._manager.start(self._manager_config())
            self._host.zygote.rest()

    async def _become_worker(self) -> None:
        if not self._holds_manager_certificate and not self._manager.kept:
            return
        log.info("node.demoted", node_id=self.state.node_id)
        await self._manager.stop()
        self._manager_ready = False
        self.state.role = NodeRole.NODE_ROLE_WORKER
        self._save()
        await asyncio.to_thread(discard_log, self._host.state_dir)
        if self._holds_manager_certificate:
            await self._renewer.renew_once()

    async def _renew(self, csr_pem: bytes) -> RenewCertificateResponse:
        """Ask the managers in turn, the leader first."""
        failure: grpc.aio.AioRpcError | None = None
        for manager in list(self.state.managers):
            async with RotatingChannel(manager.grpc_addr, self._certificate) as channel:
                try:
                    request = RenewCertificateRequest(csr_pem=csr_pem)
                    answer: RenewCertificateResponse = await NodeCAStub(channel).RenewCertificate(request, timeout=5)
                    return answer
                except grpc.aio.AioRpcError as error:
                    failure = error
        if failure is None:
            raise TimeoutError("no manager is known")
        raise failure


class MembershipNotYetError(PKIError):
    """The managers have not come round to it; ask again."""
