"""One node's life in one cluster: certificate, agent, and the manager process when it is a manager.

Made by init, by join, or by a daemon that finds its place on disk (``worker.membership.node``). Three things run for as
long as it lives: the agent, the renewal of the certificate, and the steps of the role machine, which makes this host
what its node object says: promoted, it fetches a manager certificate and starts a manager, which asks to be taken in;
demoted, it stops the manager once the leader has taken it out of the Raft group (``node.role`` is what says so).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC
from typing import TYPE_CHECKING, assert_never

import grpc.aio
import structlog

from base.backoff import Backoff
from base.files import ensure_private_folder
from base.machine import this_machine
from base.tasks import OwnedTasks
from pki.addresses import split_host_port
from pki.certificates import Role
from pki.errors import CertificateExpiredError, NodeCertificateExpiredError, PKIError
from pki.grpc_credentials import RotatingChannel
from pki.node_certificate import NodeCertificate, NodeCredentials
from pki.tls_info import node_tls_info
from proto.ca_pb2 import ManagerAddress, RenewCertificateResponse
from proto.node_pb2 import Bootstrap, LocalState
from proto.objects_pb2 import Machine, Node, NodeDescription
from proto.specs_pb2 import NodeRole
from worker.agent.executor import ExecutorError
from worker.membership.cluster_member import LocalNodeState
from worker.membership.host import Host
from worker.membership.local_manager import READY_TIMEOUT_S, LocalManager
from worker.membership.local_state import StateKeeper
from worker.membership.manager_lock import lock_holder
from worker.membership.parts import AgentPart, ParticipationParts
from worker.membership.peers import ask_for_renewal, ask_out
from worker.membership.role_machine import (
    CertificateIs,
    Ends,
    Interrupted,
    RoleMachine,
    StepDone,
    StepFailed,
    Told,
)
from worker.membership.role_tables import Ending, Step
from worker.membership.state_folder import AGENT, MANAGER_LOCK, discard_log, erase, log_on_disk
from worker.membership.zygote import ZygoteError

if TYPE_CHECKING:
    from proto.control_pb2_grpc import ControlAsyncStub

log = structlog.get_logger(__name__)

_RESTART_DELAY_S_MAX = 30.0
_HEALTHY_AFTER_S = 60.0

_PASSING = (grpc.aio.AioRpcError, PKIError, OSError, TimeoutError, ZygoteError)
"""What a step of a change of role may fail with; it is tried again."""


class UnansweredError(Exception):
    """The manager of this host said neither yes nor no."""


class Participation:
    """Construct, ``start``, then ``stop`` (the daemon ends), ``leave`` (the node leaves its cluster) or ``abandon``."""

    def __init__(
        self, host: Host, state: LocalState, certificate: NodeCertificate, parts: ParticipationParts | None = None
    ) -> None:
        self._host = host
        self.state = state
        self._certificate = certificate
        self._parts = parts or ParticipationParts()
        self.error = ""
        self._session_error = ""
        self._session_opened = asyncio.Event()
        self._keeper = StateKeeper(host.state_dir, state)
        self._machine = RoleMachine(
            self._certificate_now(),
            noted=Role.MANAGER if state.role == NodeRole.NODE_ROLE_MANAGER else Role.WORKER,
            log=log_on_disk(host.state_dir),
            manager_runs=lock_holder(host.state_dir / MANAGER_LOCK) is not None,
        )
        self._news = asyncio.Event()
        self._manager = LocalManager(host, state, self._machine, self._parts)
        self._renewer = self._parts.renewer(certificate, self._renew)
        self._loop = asyncio.get_running_loop()
        self._forget = certificate.on_change(self._on_certificate)
        ensure_private_folder(host.state_dir / AGENT)
        self._agent = self._new_agent()
        self._agent_ran = False
        self._tasks = OwnedTasks()

    def _new_agent(self) -> AgentPart:
        return self._parts.agent(
            node_id=self.state.node_id,
            executor=self._host.executor,
            state_dir=self._host.state_dir / AGENT,
            channels=lambda target: RotatingChannel(target, self._certificate),
            managers=list(self.state.managers),
            describe=self._describe,
            listener=self,
            addr=split_host_port(self.state.advertise_addr)[0],
            data_path_addr=self.state.data_path_addr,
            machine=self._machine_facts,
            availability=self.state.availability,
        )

    def _machine_facts(self) -> Machine:
        facts = this_machine(self.state.node_id)
        return Machine(id=facts.id, hardware=facts.hardware, links=facts.links)

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
        if self._machine.wanted is Role.MANAGER:
            self.state.role = NodeRole.NODE_ROLE_MANAGER  # a promotion cut short wrote the certificate alone
            await self._start_manager(bootstrap, force_new_cluster=force_new_cluster)
            if bootstrap is not None or force_new_cluster:
                await self.wait_manager(READY_TIMEOUT_S)
        self._tasks.spawn(self._run(), name="participation")
        self._host.zygote.rest()

    async def _start_manager(self, bootstrap: Bootstrap | None, *, force_new_cluster: bool) -> None:
        step = None
        while step is not Step.START and (step := self._machine.take()) is not None:
            try:
                if step is Step.START:
                    await self._manager.start(bootstrap=bootstrap, force_new_cluster=force_new_cluster)
                else:
                    await self._carry_out(step)
            except BaseException as error:
                self._machine.tell(StepFailed(str(error)))
                raise
            self._machine.tell(StepDone())

    async def stop(self) -> None:
        """End the session and the manager; containers run on."""
        if not self._machine.is_over:
            await self._end(Ending.CLOSE)

    async def leave(self) -> None:
        """Take the manager out of the Raft group if that can be done, stop every task, and forget the cluster.

        It may be called again if it failed, and goes on from there.
        """
        await self._end(Ending.LEAVE)

    async def abandon(self) -> None:
        """Undo what a failed init or join began: end everything, and forget the cluster."""
        await self._end(Ending.ABANDON)

    async def _end(self, how: Ending) -> None:
        self._machine.tell(Ends(how))
        if how is not Ending.LEAVE:
            await self._agent.close()
        await self._tasks.close()
        await self._keeper.close(forget=how is not Ending.CLOSE)
        self._machine.tell(Interrupted())
        self._forget()
        while (step := self._machine.take()) is not None:
            try:
                await self._carry_out(step)
            except (UnansweredError, ExecutorError) as error:  # of a container that is left the agent has told
                self._machine.tell(StepFailed(str(error)))
            except BaseException:
                self._machine.tell(Interrupted())
                raise
            else:
                self._machine.tell(StepDone())
        await self._manager.close()

    async def _run(self) -> None:
        """Keep the agent, the certificate and the role going. None of them waits for another to be well."""
        async with asyncio.TaskGroup() as group:
            for name, part in (
                ("agent", self._run_agent),
                ("certificate.renewal", self._keep_certificate),
                ("role", self._follow_role),
                ("manager.ready", self._manager.watch),
            ):
                group.create_task(self._keep_going(name, part), name=name)

    async def _keep_going(self, name: str, part: Callable[[], Awaitable[None]]) -> None:
        """Run a part until it ends; what it failed with is told in ``error``, and it is tried again."""
        backoff = Backoff(self._parts.restart_delay_s_min, _RESTART_DELAY_S_MAX)
        while True:
            began = self._loop.time()
            try:
                await part()
                return
            except Exception as error:
                self.error = told = str(error) or type(error).__name__
                if self._loop.time() - began > _HEALTHY_AFTER_S:
                    backoff.reset()
                delay_s = backoff.next_s()
                log.error("participation.failed", part=name, error=told, restart_delay_s=delay_s, exc_info=error)
            await asyncio.sleep(delay_s)
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
            await self._until_valid()
            self.error = ""
            log.info("certificate.valid_again", node_id=self.state.node_id)

    async def _until_valid(self) -> None:
        """The clock was set right; or this host's own manager leads, which needs no certificate to be asked for another."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._parts.expired_retry_s):
                    return await self._renewer.wait_valid()
            if self._manager.answers:
                try:
                    await self._renewer.renew_once()
                except _PASSING as error:
                    log.info("certificate.renewal_failed", reason=str(error))

    # ------------------------------------------------------------------ how it is

    @property
    def local_node_state(self) -> LocalNodeState:
        if self.error:
            return LocalNodeState.ERROR
        if self._session_opened.is_set() or self._manager.answers:
            return LocalNodeState.ACTIVE
        return LocalNodeState.PENDING

    @property
    def control(self) -> ControlAsyncStub:
        return self._manager.control

    @property
    def control_available(self) -> bool:
        return self._manager.answers

    async def wait_control(self, timeout_s: float) -> None:
        """Return once the manager of this host answers, or is not on its way, or after the time."""
        if self.state.role == NodeRole.NODE_ROLE_MANAGER:
            await self._manager.wait_on_its_way(timeout_s)

    @property
    def manager_failure(self) -> str:
        return self._manager.failure

    @property
    def session_error(self) -> str:
        """Why there is no session, "" when there is one or none was tried."""
        try:
            self._certificate.identity.check_time(self._parts.clock())
        except CertificateExpiredError as error:  # all that TLS says is that a handshake failed
            return self._session_error and f"{self._session_error} ({error}; is the clock of this host right?)"
        return self._session_error

    async def wait_manager(self, timeout_s: float) -> None:
        """Return once the manager of this host answers. Raises: MembershipError: see ``LocalManager.wait_answers``."""
        await self._manager.wait_answers(timeout_s)

    async def wait_session(self, timeout_s: float) -> bool:
        """Whether a session was opened within the time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._session_opened.wait()
        return self._session_opened.is_set()

    # ------------------------------------------------------------------ what it hears

    def on_session(self, error: str) -> None:
        self._session_error = error
        if not error:
            self.error = ""
            self._session_opened.set()

    def on_managers(self, managers: Sequence[ManagerAddress]) -> None:
        if list(managers) == list(self.state.managers):
            return  # every session begins with the list
        del self.state.managers[:]
        self.state.managers.extend(managers)
        self._tasks.spawn(self._keeper.keep(), name="node.json")

    def on_node(self, node: Node) -> None:
        # In whole seconds, as certificates count; 1970 when it was never demoted.
        void_before = node.manager_certificates_void_before.ToDatetime(UTC).replace(microsecond=0)
        self._machine.tell(Told(_role(node.spec.role), _role(node.role), void_before))
        self._news.set()

    def _on_certificate(self, _credentials: NodeCredentials) -> None:
        """A renewal that was answered before a change of role may end after it: the machine has to know.

        Comes from the thread that wrote it; late, when the loop has ended meanwhile, it is of no interest.
        """
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._tell_certificate)

    def _tell_certificate(self) -> None:
        self._machine.tell(self._certificate_now())
        self._news.set()

    def _certificate_now(self) -> CertificateIs:
        identity = self._certificate.identity
        return CertificateIs(identity.role, identity.issued_at)

    def on_root_ca(self, root_ca_pem: bytes) -> None:
        try:
            self._certificate.replace_root(root_ca_pem)
        except (PKIError, OSError) as error:
            log.warning("root_ca.refused", error=str(error))
            self._renewer.renew_now()

    # ------------------------------------------------------------------ steps

    async def _follow_role(self) -> None:
        self._machine.tell(Interrupted())  # this part failed before: nobody else ends its step
        while self._machine.ending is None:
            step = self._machine.take()
            if step is None:
                self._news.clear()
                await self._news.wait()
                continue
            try:
                await self._carry_out(step)
            except _PASSING as error:
                log.warning("role.change_failed", step=step.value, error=str(error))
                self._machine.tell(StepFailed(str(error)))
            else:
                self._machine.tell(StepDone())
                if step is Step.RENEW and self._machine.awaits_certificate:
                    log.warning("role.change_waits", reason="the managers did not issue a manager certificate yet")
                elif step in (Step.START, Step.STOP):
                    log.info("node.promoted" if step is Step.START else "node.demoted", node_id=self.state.node_id)

    async def _carry_out(self, step: Step) -> None:
        match step:
            case Step.RENEW:
                await self._renewer.renew_once()
                self._tell_certificate()
            case Step.WRITE_MANAGER:
                await self._write_role(NodeRole.NODE_ROLE_MANAGER)
            case Step.WRITE_WORKER:
                await self._write_role(NodeRole.NODE_ROLE_WORKER)
            case Step.START:
                await self._manager.start()
                self._host.zygote.rest()
            case Step.STOP:
                await self._manager.stop()
            case Step.ERASE_LOG:
                await asyncio.to_thread(discard_log, self._host.state_dir)
            case Step.REST:
                await asyncio.sleep(self._parts.role_retry_s)
            case Step.ASK_OWN_MANAGER:
                if not await self._manager.ask_out():
                    raise UnansweredError
            case Step.ASK_PEERS:
                await ask_out(self.state.managers, self._certificate)
            case Step.STOP_TASKS:
                await self._agent.leave()
            case Step.FORGET:
                await asyncio.to_thread(erase, self._host.state_dir)
            case _:
                assert_never(step)

    async def _write_role(self, role: NodeRole.ValueType) -> None:
        self.state.role = role
        await self._keeper.save()

    async def keep_state(self) -> None:
        """Have node.json say what ``state`` does, now or when the disk can take it."""
        await self._keeper.keep()

    async def _renew(self, csr_pem: bytes) -> RenewCertificateResponse:
        """The own manager first: where it leads nothing leaves the host, and a certificate that has run out is no hindrance."""
        if self._manager.answers:
            with contextlib.suppress(grpc.aio.AioRpcError):
                return await self._manager.renew(csr_pem)
        return await ask_for_renewal(list(self.state.managers), self._certificate, csr_pem)


def _role(role: NodeRole.ValueType) -> Role:
    return Role.MANAGER if role == NodeRole.NODE_ROLE_MANAGER else Role.WORKER
