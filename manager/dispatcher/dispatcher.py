"""The Dispatcher service: one object a manager, serving while it leads.

Who decides what: ``suspicion`` who is dead, ``nodes`` what that does to a node, ``assignments`` what an agent has to be
told, ``reports`` whose turn it is, ``status`` what a report does to a task. Here these meet the store (by ``intake`` and
``status_intake``) and the streams.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog

from base.connections import peer_of
from manager.consensus.port import ConsensusError, NotLeaderError
from manager.dispatcher import budget, nodes
from manager.dispatcher.assignments import AssignmentSet, Key, MessagePacker, SharedChanges, is_news
from manager.dispatcher.budget import Budgets
from manager.dispatcher.heartbeat import told_period_s
from manager.dispatcher.intake import Intake, WriterStoppedError, put
from manager.dispatcher.liveness import Liveness
from manager.dispatcher.members import Entry, Members, key_of
from manager.dispatcher.reports import PendingReport, invalid_report
from manager.dispatcher.rounds import Rounds
from manager.dispatcher.session import AgentSession, End, Facts
from manager.dispatcher.status_intake import StatusIntake
from manager.dispatcher.telling import tell_sent
from manager.dispatcher.watching import Lookout
from manager.log_limit import LogLimit
from manager.store import CLUSTERS, NODES, TASKS, Change, Store, StoreError, Working
from pki.certificates import Identity
from proto.ca_pb2 import ManagerAddress
from proto.dispatcher_pb2 import AssignmentsRequest, SessionMessage, SessionRequest, StatusReport
from proto.objects_pb2 import Machine, Node, Task
from proto.specs_pb2 import NodeRole

log = structlog.get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]  # Any: of the messages of whatever RPC
Caller = Callable[[Context], Identity]
Start = Callable[[Coroutine[Any, Any, None], str], None]
"""Has something be done while a session lasts; the text says what."""

LEADER_METADATA_KEY = "swarm-leader-addr"

FIRST_MESSAGE_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 2.0
BROKEN_NOTICE_S = 0.1

HEARTBEAT = SessionRequest()
"""Every message that says nothing is this one, which nobody changes: of a thousand agents 200 come in a second."""

TASKS_AT_ONCE = 500
"""Of a complete set, in one turn of the loop; one takes some 10 us."""


def request_of(message: bytes) -> SessionRequest:
    """A message of a session as it came: ``HEARTBEAT`` itself when it says nothing."""
    return SessionRequest.FromString(message) if message else HEARTBEAT


class Dispatcher:
    """Register its ``handler()`` on every manager's server; run ``run()`` while this one leads."""

    def __init__(
        self,
        store: Store,
        *,
        caller: Caller,
        managers: Callable[[], Sequence[ManagerAddress]],
        leader_addr: Callable[[], str],
        unheard_managers: Callable[[], Mapping[str, str]],
        lookout: Lookout,
        is_here: Callable[[str, Machine], bool] = lambda _node_id, _machine: False,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            store: this manager's store.
            caller: who makes a call, as its certificate says.
            managers: every manager, the leader first; asked again after each change of a node object.
            leader_addr: ``host:port`` of the leader's gRPC server, "" when unknown; told to agents that came to a follower.
            unheard_managers: Raft's addresses of managers that it does not hear at the moment, by node ID.
            lookout: hosts to look at, managers to ask.
            is_here: whether a node of that ID on that machine is this manager's own: who leads is no copy of itself.
            clock: wall clock, seconds since the epoch.
            monotonic: what heartbeats are measured with, in seconds.
        """
        self._store, self._caller = store, caller
        self._managers, self._leader_addr, self._unheard_managers = managers, leader_addr, unheard_managers
        self._intake = Intake(store)
        self._budgets = Budgets(monotonic)
        self._is_here = is_here
        self._lines = LogLimit()
        self._leading = False
        self._sessions: dict[str, AgentSession] = {}
        self._liveness = Liveness(
            store,
            self._intake,
            self._sessions,
            lookout,
            clock=clock,
            monotonic=monotonic,
        )
        self._statuses = StatusIntake(store, self._liveness.now)
        self._rounds = Rounds()
        self._members = Members(store.view)
        self._shared_changes = SharedChanges(self._members)
        store.on_change(self._on_change)

    # ------------------------------------------------------------ leadership

    async def run(self) -> None:
        """Serve agents until cancelled: called when this manager has become the leader, cancelled when it is no more.

        Before and after, every call is answered FAILED_PRECONDITION with the leader's address.
        """
        self._intake.open()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._intake.run(), name="dispatcher writer")
                group.create_task(self._statuses.run(), name="dispatcher statuses")
                group.create_task(self._rounds.run(), name="dispatcher assignments")
                await self._liveness.take_over()
                self._members.begin()
                self._leading = True
                log.info("dispatcher.started", nodes=len(self._store.view.nodes))
                group.create_task(self._liveness.watch(), name="dispatcher watch")
                hint = self._liveness.notice_lost_managers(self._unheard_managers)
                group.create_task(hint, name="dispatcher lost managers")
                group.create_task(self._liveness.give_up_nodes(), name="dispatcher absent nodes")
        finally:
            self._leading = False
            self._intake.stop()
            self._statuses.stop()
            for session in list(self._sessions.values()):
                session.finish(_NOT_LEADER)
            self._sessions.clear()
            log.info("dispatcher.stopped")

    def handler(self) -> grpc.GenericRpcHandler:
        """Its RPCs; as the generated code has them, but for assignments, which are encoded already."""
        return grpc.method_handlers_generic_handler(
            "swarm.v1.Dispatcher",
            {
                "Session": grpc.stream_stream_rpc_method_handler(
                    self.Session,
                    request_deserializer=request_of,
                    response_serializer=SessionMessage.SerializeToString,
                ),
                "Assignments": grpc.unary_stream_rpc_method_handler(
                    self.Assignments, request_deserializer=AssignmentsRequest.FromString
                ),
            },
        )

    def managers_changed(self) -> None:
        """The answer of ``managers`` may be another now: tell the agents (changes of node objects are noticed anyway)."""
        for session in self._sessions.values():
            session.mark_message()

    # ------------------------------------------------------------ Session

    # Both are coroutines that write, not generators: a generator cannot wait for two things at once.

    async def Session(  # noqa: N802 - the name is the RPC's
        self, request_iterator: AsyncIterator[SessionRequest], context: Context
    ) -> None:
        """See proto/dispatcher.proto."""
        node_id = self._caller(context).node_id
        await self._require_leading(context)
        await self._require(self._budgets.take_call(node_id), node_id, context)
        first = await self._first_request(request_iterator, context)
        session = await self._open(node_id, first, context)
        try:
            await self._serve_session(session, request_iterator, context)
        finally:
            self._closed(session)
        end = session.end
        if end is not None and end.code is not grpc.StatusCode.OK:
            await self._abort(context, end)

    async def _first_request(self, requests: AsyncIterator[SessionRequest], context: Context) -> SessionRequest:
        try:
            async with asyncio.timeout(FIRST_MESSAGE_TIMEOUT_S):
                first = await anext(requests)
        except (TimeoutError, StopAsyncIteration):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the session's first message did not come")
        if problem := nodes.invalid_request(first, first=True):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
        return first

    async def _open(self, node_id: str, first: SessionRequest, context: Context) -> AgentSession:
        await self._require_node(node_id, context)
        await self._refuse_another_machine(node_id, first, context)  # it uses up none of the node's registrations
        if not self._liveness.admit(node_id):
            message = f"node {node_id} exceeded rate limit count of registrations"
            await context.abort(grpc.StatusCode.UNAVAILABLE, message)
        await self._refuse_copy(node_id, first, context)
        await self._require_node(node_id, context)  # it took a while
        await self._require_leading(context)
        session = AgentSession(
            secrets.token_hex(16),
            node_id,
            boot_nonce=first.boot_nonce,
            addr=first.addr,
            period_s=told_period_s(self._liveness.period_s(), random.random()),
            peer=peer_of(context.peer()),
        )
        before = self._sessions.get(node_id)
        self._sessions[node_id] = session
        if before is not None:
            before.finish(End(grpc.StatusCode.ABORTED, "superseded by a newer session of the same node"))
        self._liveness.register(session)
        try:
            await self._intake.submit(lambda working: self._register(working, session, first))
        except (ConsensusError, StoreError) as error:
            self._closed(session)
            await self._refuse_write(context, error)
        except asyncio.CancelledError:
            self._closed(session)
            raise
        log.info("session.opened", node_id=node_id, session_id=session.id, addr=first.addr, period_s=session.period_s)
        return session

    def _register(self, working: Working, session: AgentSession, first: SessionRequest) -> None:
        node = working.nodes.get(session.node_id)
        if node is None or self._sessions.get(session.node_id) is not session:
            return
        put(working, nodes.registered(node, first, self._liveness.now()))

    async def _refuse_copy(self, node_id: str, first: SessionRequest, context: Context) -> None:
        """Two machines with one node ID (X31): the one that has a session and answers keeps it.

        A machine that was reset comes back with another nonce while its old connection still looks alive: there the
        old session does not answer, and gives way.
        """
        while True:
            session = self._sessions.get(node_id)
            if session is None or session.boot_nonce == first.boot_nonce or session.ended.is_set():
                return
            session.probe()
            try:
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await session.alive.wait()
            except TimeoutError:
                return
            if self._sessions.get(node_id) is session and not session.ended.is_set():
                break
        if (left_out := self._lines.due(("copy", node_id))) is not None:
            addr = session.addr
            log.error("session.copy_refused", node_id=node_id, addr=first.addr, addr_in_session=addr, left_out=left_out)
        await context.abort(
            grpc.StatusCode.ALREADY_EXISTS,
            f"node {node_id} is running on another machine already ({session.addr or 'address unknown'}): this machine "
            "has a copy of its state folder; remove the copy and join the swarm anew",
        )

    async def _refuse_another_machine(self, node_id: str, first: SessionRequest, context: Context) -> None:
        """A copy whose original is down (X31) does not take its place before an operator says so."""
        node = self._store.view.nodes.get(node_id)
        if node is None or self._is_here(node_id, first.machine):
            return
        reason = nodes.why_another_machine(node, first)
        if not reason:
            return
        if (left_out := self._lines.due(("machine", node_id))) is not None:
            log.error(
                "session.machine_refused",
                node_id=node_id,
                addr=first.addr,
                addr_before=node.status.addr,
                reason=reason,
                left_out=left_out,
            )
        await context.abort(
            grpc.StatusCode.ALREADY_EXISTS,
            f"node {node_id} is another machine ({node.status.addr or 'address unknown'}): {reason}. If this one is to take "
            f"its place: docker node update --label-add {nodes.ACCEPT_LABEL}={nodes.acceptance_of(first)} {node_id}; if it "
            "has a copy of its state folder, remove the copy and join the swarm anew",
        )

    async def _serve_session(
        self, session: AgentSession, requests: AsyncIterator[SessionRequest], context: Context
    ) -> None:
        async with asyncio.TaskGroup() as group:
            tasks: set[asyncio.Task[None]] = set()

            def ended(task: asyncio.Task[None]) -> None:
                tasks.discard(task)
                if task.cancelled():  # a group makes nothing of it; without this part there is no session
                    session.finish(End(grpc.StatusCode.UNAVAILABLE, f"{task.get_name()} was cut short"))

            def start(work: Coroutine[Any, Any, None], what: str) -> None:  # Any: as in ``asyncio.create_task``
                task = group.create_task(work, name=f"session {session.node_id} {what}")
                tasks.add(task)
                task.add_done_callback(ended)

            start(self._read(session, requests, start), "in")
            start(self._write(session, context), "out")
            await session.ended.wait()
            for task in tasks:
                task.cancel()

    async def _read(self, session: AgentSession, requests: AsyncIterator[SessionRequest], start: Start) -> None:
        """Take what comes. Nothing here waits for the log: heartbeats behind a report or a description are heard."""
        async for request in requests:
            if request is HEARTBEAT and self._budgets.take_message(session.node_id, described=False):
                self._beat(session)
                continue
            described = request.HasField("description") or bool(request.addr)
            size_bytes = request.ByteSize()
            while not self._budgets.take_message(session.node_id, described=described, size_bytes=size_bytes):
                self._note_excess(session.node_id)
                await asyncio.sleep(budget.MESSAGE_PAUSE_S)
            problem = nodes.invalid_request(request, first=False)
            if not problem and request.HasField("report"):
                problem = self._take_report(session, request.report, start)
            if problem:
                session.finish(End(grpc.StatusCode.INVALID_ARGUMENT, problem))
                return
            self._beat(session)
            if described:
                is_under_way = session.description is not None
                session.describe(request)
                if not is_under_way:
                    start(self._describe(session), "description")
        # A broken connection reads as the end of the stream, too; then grpc.aio cancels this call in the next moment.
        await asyncio.sleep(BROKEN_NOTICE_S)
        session.finish(End(grpc.StatusCode.OK, "ended by the agent"))

    def _take_report(self, session: AgentSession, report: StatusReport, start: Start) -> str:
        """Have it written and then acknowledged; returns what is wrong with it, "" when nothing is."""
        number = session.reports + 1
        if problem := invalid_report(report, number=number, is_free=session.report is None):
            return problem
        session.reports = number
        session.report = PendingReport(session.node_id, report.updates, lambda report: self._reported(session, report))
        if self._can_afford(session, report):
            self._statuses.put(session.report)
        else:
            start(self._take_later(session, report), "report")
        return ""

    def _can_afford(self, session: AgentSession, report: StatusReport) -> bool:
        return self._budgets.take_statuses(session.node_id, len(report.updates), size_bytes=report.ByteSize())

    async def _take_later(self, session: AgentSession, report: StatusReport) -> None:
        """Over the budget: it waits, and its agent with it."""
        while not session.ended.is_set():
            self._note_excess(session.node_id)
            await asyncio.sleep(budget.REPORT_PAUSE_S)
            if session.report is not None and self._can_afford(session, report):
                self._statuses.put(session.report)
                return

    def _reported(self, session: AgentSession, report: PendingReport) -> None:
        node_id = report.node_id
        if report.passed_over and (left_out := self._lines.due(("passed over", node_id))) is not None:
            (task_id, reason), count = report.example, report.passed_over
            log.info(
                "report.passed_over", node_id=node_id, count=count, task_id=task_id, reason=reason, left_out=left_out
            )
        session.acknowledge()

    async def _describe(self, session: AgentSession) -> None:
        """Store the newest of what the agent said of its node; what comes meanwhile makes the next write."""
        while (request := session.description) is not None and session.end is None:
            try:
                await self._intake.submit(partial(self._write_description, session.node_id, request))
            except (ConsensusError, StoreError) as error:  # the agent says it again with its next session
                session.finish(End(grpc.StatusCode.UNAVAILABLE, f"the node's description was not stored: {error}"))
            if session.description is request:
                session.description = None

    @staticmethod
    def _write_description(node_id: str, request: SessionRequest, working: Working) -> None:
        node = working.nodes.get(node_id)
        if node is not None:
            put(working, nodes.described(node, request))

    async def _write(self, session: AgentSession, context: Context) -> None:
        while not session.ended.is_set():
            message = session.next_message(partial(self._facts, session.node_id))
            if message is not None:
                await context.write(message)
            else:
                await session.message_due.wait()

    def _facts(self, node_id: str) -> Facts:
        view = self._store.view
        return self._managers(), view.nodes.get(node_id), view.cluster.root_ca.ca_cert_pem

    def _beat(self, session: AgentSession) -> None:
        session.alive.set()
        if self._sessions.get(session.node_id) is session:
            self._liveness.beat(session)

    def _closed(self, session: AgentSession) -> None:
        """The stream is gone."""
        session.finish(End(grpc.StatusCode.UNAVAILABLE, "connection lost"))
        if session.report is not None:
            self._statuses.drop(session.report)
        if self._sessions.get(session.node_id) is not session:
            return
        del self._sessions[session.node_id]
        self._liveness.closed(session.node_id)
        assert session.end is not None
        log.info("session.closed", node_id=session.node_id, session_id=session.id, reason=session.end.reason)

    # ------------------------------------------------------------ Assignments

    async def Assignments(  # noqa: N802 - as for Session
        self, request: AssignmentsRequest, context: Context
    ) -> None:
        """See proto/dispatcher.proto."""
        session = await self._session(request.session_id, context)
        node_id = session.node_id
        with self._budgets.set_under_way(node_id) as is_one_of_few:
            await self._require(is_one_of_few and self._budgets.take_assignments(node_id), node_id, context)
            await self._assign(session, context)

    async def _assign(self, session: AgentSession, context: Context) -> None:
        session.assignments_stream += 1
        stream = session.assignments_stream
        session.assignments_due.set()  # wakes an earlier call, which gives way
        with closing(AssignmentSet(session.node_id, shared=self._shared_changes)) as known:
            await self._follow(session, stream, known, context)
        if session.end is not None:
            if session.end.code is not grpc.StatusCode.OK:
                await self._abort(context, session.end)
            return
        session.assignments_due.set()  # the call that took over may have been waiting for this event
        await context.abort(grpc.StatusCode.ABORTED, "superseded by a newer call")

    async def _follow(self, session: AgentSession, stream: int, known: AssignmentSet, context: Context) -> None:
        """Tell the agent everything, then what changes, until the session ends or another call takes over."""
        packer = MessagePacker()
        session.take_marks()
        messages = packer.complete(await self._everything(known))
        while True:
            for message in messages:
                await context.write(message)
                tell_sent(session.node_id, message)
            await session.assignments_due.wait()
            if session.end is not None or session.assignments_stream != stream:
                return
            task_ids, keys, entries = session.take_marks()
            needed = [key for key in keys if known.uses(*key)]
            messages = packer.incremental(known.update(task_ids, needed, self._store.view, entries))

    async def _everything(self, known: AssignmentSet) -> list[bytes]:
        """A complete set, some tasks at a time; what changes meanwhile is marked."""
        changes: list[bytes] = []
        task_ids = known.restart(self._store.view)
        for begin in range(0, len(task_ids), TASKS_AT_ONCE):
            if begin:
                await asyncio.sleep(0)
            changes += known.update(task_ids[begin : begin + TASKS_AT_ONCE], (), self._store.view)
        return changes

    # ------------------------------------------------------------ changes of the store

    def _on_change(self, changes: Sequence[Change]) -> None:
        if not self._leading:
            return
        for change in changes:
            for entry in self._members.follow(change):
                self._mark_member(entry)
            if change.kind is TASKS:
                self._mark_task(change.id, change.old, change.new)
            elif change.kind.assigned is not None:
                if change.new is None:
                    self._shared_changes.forget((change.kind, change.id))
                self._mark_needed((change.kind, change.id))
            elif change.kind is NODES:
                self._node_changed(change.id, change.old, change.new)
            elif change.kind is CLUSTERS:
                self._cluster_changed()

    def _mark_needed(self, key: Key) -> None:
        for known in self._shared_changes.users(key):
            if (session := self._sessions.get(known.node_id)) is not None:
                session.mark_needed(key)
                self._rounds.add(session)

    def _mark_member(self, entry: Entry) -> None:
        for known in self._shared_changes.users(key_of(entry)):
            if (session := self._sessions.get(known.node_id)) is not None:
                session.mark_member(entry)
                self._rounds.add(session)

    def _mark_task(self, task_id: str, old: object, new: object) -> None:
        if isinstance(old, Task) and isinstance(new, Task) and not is_news(old, new):
            return  # what its own agent reported, as a rule
        for task in (old, new):
            if isinstance(task, Task) and (session := self._sessions.get(task.node_id)) is not None:
                session.mark_task(task_id)
                self._rounds.add(session)

    def _node_changed(self, node_id: str, old: object, new: object) -> None:
        if new is None:
            self._liveness.forget(node_id)
            session = self._sessions.pop(node_id, None)
            if session is not None:
                reason = f"node {node_id} not found: it was removed from the swarm"
                session.finish(End(grpc.StatusCode.NOT_FOUND, reason))
        elif old is None:  # joined: it has to show up
            self._liveness.expect(node_id)
        elif (session := self._sessions.get(node_id)) is not None:
            session.mark_message()
            if isinstance(old, Node) and isinstance(new, Node) and old.ingress != new.ingress:
                self._rounds.add(session)  # it needs something else itself
        if _manager_facts(old) != _manager_facts(new):
            self.managers_changed()

    def _cluster_changed(self) -> None:
        period_s = self._liveness.period_s()
        for session in self._sessions.values():
            if abs(session.period_s - period_s) > 0.2 * period_s:
                session.period_s = told_period_s(period_s, random.random())
                self._liveness.register(session)
            session.mark_message()

    # ------------------------------------------------------------ refusals

    async def _session(self, session_id: str, context: Context) -> AgentSession:
        """The caller's session of that ID; the call is aborted when there is none."""
        node_id = self._caller(context).node_id
        await self._require_leading(context)
        await self._require(self._budgets.take_call(node_id), node_id, context)
        session = self._sessions.get(node_id)
        if session is None or session.id != session_id or session.end is not None:
            await context.abort(grpc.StatusCode.ABORTED, "invalid session: register again")
        return session

    async def _require_node(self, node_id: str, context: Context) -> None:
        if self._store.view.nodes.get(node_id) is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"node {node_id} not found: it was removed from the swarm")

    async def _require_leading(self, context: Context) -> None:
        if not self._leading:
            await self._abort(context, _NOT_LEADER)

    async def _require(self, affordable: bool, node_id: str, context: Context) -> None:
        if affordable:
            return
        self._note_excess(node_id)
        await asyncio.sleep(budget.REFUSAL_DELAY_S)
        message = f"node {node_id} asks more of the managers than they have time for: slow down"
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)

    def _note_excess(self, node_id: str) -> None:
        if (left_out := self._lines.due(("budget", node_id))) is not None:
            log.warning("budget.exceeded", node_id=node_id, left_out=left_out)

    async def _refuse_write(self, context: Context, error: Exception) -> NoReturn:
        if isinstance(error, NotLeaderError | WriterStoppedError):
            await self._abort(context, _NOT_LEADER)
        await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))

    async def _abort(self, context: Context, end: End) -> NoReturn:
        addr = self._leader_addr() if end.redirect else ""
        metadata = ((LEADER_METADATA_KEY, addr),) if addr else ()
        await context.abort(end.code, end.reason, trailing_metadata=metadata)


_MANAGER = NodeRole.NODE_ROLE_MANAGER
_NOT_LEADER = End(grpc.StatusCode.FAILED_PRECONDITION, "this manager does not lead the swarm", redirect=True)


def _manager_facts(node: object) -> tuple[object, ...] | None:
    """What of a node object the list of managers is made from; of a worker nothing: a thousand sessions sleep when one joins."""
    if not isinstance(node, Node) or not (node.role == _MANAGER or node.raft_addr or node.grpc_addr):
        return None
    return (node.role, node.raft_addr, node.grpc_addr)
