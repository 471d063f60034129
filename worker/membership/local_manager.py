"""The manager of this host as its node sees it: its process, whether it answers, and what it ended with.

What becomes of the process is the role machine's to say; it is told here what the process does by itself.
"""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import grpc.aio
import structlog

from base.files import make_public_folder
from base.tasks import cancel_and_wait
from base.unix_rpc import UnixChannel
from pki.addresses import join_host_port, split_host_port
from proto.ca_pb2 import RenewCertificateRequest, RenewCertificateResponse
from proto.ca_pb2_grpc import NodeCAStub
from proto.control_pb2 import GetManagerInfoRequest
from proto.control_pb2_grpc import ControlStub
from proto.node_pb2 import Bootstrap, LocalState, ManagerConfig
from proto.raft_pb2 import RaftLeaveRequest
from proto.raft_pb2_grpc import RaftMembershipStub
from runtime.kernel.syscalls import Watcher
from worker.membership.addresses import GRPC_PORT
from worker.membership.cluster_member import MembershipError
from worker.membership.host import Host
from worker.membership.own_addresses import grpc_address
from worker.membership.parts import ParticipationParts
from worker.membership.peers import LEAVE_TIMEOUT_S, RENEW_TIMEOUT_S
from worker.membership.role_machine import ManagerAnswers, ManagerEnded, RoleMachine
from worker.membership.role_tables import ProcessState
from worker.membership.state_folder import MANAGER_ERROR, MANAGER_LOCK, MANAGER_SOCKET

log = structlog.get_logger(__name__)

READY_TIMEOUT_S = 60.0
_READY_RETRY_S = 0.1
_ENDED_SILENTLY = "the manager process was killed: out of memory? (the kernel's log knows)"


class LocalManager:
    """Of one participation; ``start`` and ``stop`` are steps of its machine."""

    def __init__(self, host: Host, state: LocalState, machine: RoleMachine, parts: ParticipationParts) -> None:
        """
        Args:
            state: read at each start.
        """
        self._host, self._state, self._machine = host, state, machine
        self._process = parts.process(host.zygote, host.state_dir / MANAGER_LOCK, self._on_exit)
        self._channel = UnixChannel(f"unix:{host.run_dir / MANAGER_SOCKET}")
        self.control = ControlStub(self._channel)
        self._failure = ""
        self._ended_in_a_row = 0
        self._changed = asyncio.Event()

    @property
    def answers(self) -> bool:
        return self._machine.process is ProcessState.RUNNING and self._process.running

    @property
    def failure(self) -> str:
        """What it ended with, "" while it answers: it is started again and again."""
        return "" if self._machine.process is ProcessState.RUNNING else self._failure

    async def start(self, *, bootstrap: Bootstrap | None = None, force_new_cluster: bool = False) -> None:
        """Adopt the one that runs, or start one. Raises: ZygoteError, OSError."""
        await self._process.start(self._config(bootstrap, force_new_cluster=force_new_cluster))

    async def stop(self) -> None:
        """Also one that is nobody's. Raises: OSError."""
        await self._process.stop()
        self._failure, self._ended_in_a_row = "", 0
        self._note_change()

    async def close(self) -> None:
        await self._channel.close()

    async def ask_out(self) -> bool:
        """Whether it said yes or no to leaving the Raft group."""
        request = RaftLeaveRequest(node_id=self._state.node_id)
        try:
            await RaftMembershipStub(self._channel).Leave(request, timeout=LEAVE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.warning("member.not_left", node_id=self._state.node_id, reason=error.details())
            return error.code() is not grpc.StatusCode.UNAVAILABLE
        return True

    async def renew(self, csr_pem: bytes) -> RenewCertificateResponse:
        """Ask it for this node's next certificate. Raises: grpc.aio.AioRpcError: it does not lead, or says no."""
        answer: RenewCertificateResponse = await NodeCAStub(self._channel).RenewCertificate(
            RenewCertificateRequest(csr_pem=csr_pem), timeout=RENEW_TIMEOUT_S
        )
        return answer

    def _on_exit(self, _config: ManagerConfig) -> ManagerConfig | None:
        self._machine.tell(ManagerEnded())
        self._failure = self._error() or _ENDED_SILENTLY
        self._ended_in_a_row += 1
        self._note_change()
        log.warning("manager.ended", node_id=self._state.node_id, reason=self._failure)
        return self._config() if self._machine.keeps_manager else None

    def _config(self, bootstrap: Bootstrap | None = None, *, force_new_cluster: bool = False) -> ManagerConfig:
        state = self._state
        return ManagerConfig(
            node_id=state.node_id,
            cluster_id=state.cluster_id,
            state_dir=str(self._host.state_dir),
            run_dir=str(self._host.run_dir),
            listen_addr=state.listen_addr,
            grpc_listen_addr=join_host_port(split_host_port(state.listen_addr)[0], GRPC_PORT),
            advertise_addr=state.advertise_addr,
            grpc_advertise_addr=grpc_address(state.advertise_addr),
            managers=state.managers,
            bootstrap=bootstrap,
            force_new_cluster=force_new_cluster,
        )

    async def wait_answers(self, timeout_s: float) -> None:
        """Return once it answers.

        Raises:
            MembershipError: it ended, or did not answer in time; the text is the manager's own.
        """
        loop = asyncio.get_running_loop()
        answer = loop.create_task(self._answer(), name="manager.answers")
        ended = loop.create_task(self._process.wait_ended(), name="manager.ended")
        try:
            done, _ = await asyncio.wait({answer, ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if ended in done or not self._process.running:
                raise MembershipError(self._error() or "the manager process ended while it started")
            if answer not in done:
                text = f"the manager did not answer within {timeout_s:g} s"
                raise MembershipError(self._error() or text)
            answer.result()
            self._machine.tell(ManagerAnswers())  # before anything else can happen: its end makes this untrue
            self._ended_in_a_row = 0
            self._note_change()
        except grpc.aio.AioRpcError as error:
            raise MembershipError(f"the manager did not come up: {error.details()}") from error
        except OSError as error:
            raise MembershipError(f"the manager cannot be waited for: {error}") from error
        finally:
            await cancel_and_wait(answer, ended)

    async def wait_on_its_way(self, timeout_s: float) -> None:
        """Return once it answers, or after the time; at once when it is not to run, or ends again and again."""
        if not self._is_on_its_way():
            return  # as a rule, and every request about the cluster asks: no timer for it
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._is_on_its_way():
                    changed = self._changed
                    await changed.wait()

    def _is_on_its_way(self) -> bool:
        return not self.answers and self._machine.keeps_manager and self._ended_in_a_row < 2

    def _note_change(self) -> None:
        """Wake all who wait; later ones wait for the next change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _answer(self) -> None:
        """Its socket appears once it serves; a call made before that would try to connect again and again."""
        socket, changed = self._host.run_dir / MANAGER_SOCKET, asyncio.Event()
        watcher = Watcher()
        try:
            make_public_folder(self._host.run_dir, 0o711)  # it may have been emptied under us
            watcher.watch(self._host.run_dir, lambda _name: changed.set())
            while not socket.exists():
                await changed.wait()
                changed.clear()
        finally:
            watcher.close()
        await self.control.GetManagerInfo(GetManagerInfoRequest(), wait_for_ready=True)

    async def watch(self) -> None:
        """Know when it answers, also after it was restarted, or started by a promotion. Never returns."""
        told = ""
        while True:
            await self._process.wait_running()
            if not self.answers:
                try:
                    await self.wait_answers(READY_TIMEOUT_S)
                except MembershipError as error:
                    if told != str(error):
                        told = str(error)
                        log.info("manager.not_ready", node_id=self._state.node_id, reason=told)
                    await asyncio.sleep(_READY_RETRY_S)
                    continue
                told = ""
                log.info("manager.ready", node_id=self._state.node_id)
            await self._process.wait_ended()

    def _error(self) -> str:
        try:
            return (self._host.run_dir / MANAGER_ERROR).read_text().strip()
        except OSError:
            return ""
