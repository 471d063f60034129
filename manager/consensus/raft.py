"""The consensus port on Raft: a member on a thread and an event loop of its own.

Threads and who owns what:

- The **raft thread** owns core, journal and links. It blocks in fdatasync, which is why it is not the
  owner's loop. Its inputs are proposals and requests (``_post``), messages and time; each wakes one ``_pump``.
- The **owner's loop** (the one that called ``start``) owns the state machine. The core's outputs arrive there
  in order and in batches: one wake-up carries whatever came together, in both directions.
- A **worker thread** reads and writes snapshot files, nothing else.

A leader's raft thread that **stands still** for twice the time of check-quorum, because its disk does not answer, cannot
tell that another leads by now. The owner's loop finds out by itself (``Standstill``): until the thread goes on, this
manager leads no more, unless there is nobody else who could.

A failure (disk, broken invariant, the state machine raising) ends the member for good: it falls silent, its
proposals end in ``ProposalUnknownError``, and ``on_failure`` hears of it once.
"""

from __future__ import annotations

import asyncio
import functools
import gc
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from base.tasks import cancel_and_wait
from manager.consensus.commands import Applier
from manager.consensus.outputs import (
    COMMAND_ID_SIZE_BYTES,
    Apply,
    Deposed,
    Done,
    Output,
    Ready,
    Rejected,
    Restore,
    TakeSnapshot,
)
from manager.consensus.port import (
    ENTRY_SIZE_BYTES_MAX,
    Admission,
    ConsensusError,
    EntryTooLargeError,
    LeaderState,
    Member,
    MembershipError,
    NodeID,
    NoQuorumError,
    NotLeaderError,
    StateMachine,
)
from manager.consensus.proposals import Proposals
from manager.consensus.sealed import KeyRing
from manager.consensus.settings import RaftConfig
from manager.consensus.snapshots import SnapshotHead
from manager.consensus.standstill import Standstill
from manager.consensus.thread import GroupView, RaftThread

log = structlog.get_logger(__name__)

_SUPERSEDED = (
    "a new cluster was forced from this one on another manager, with --force-new-cluster: this manager has the state of "
    "before and changes nothing any more. Let this node leave the swarm with force and join it again, or force a new "
    "cluster here to go on with what is here"
)

APPLY_BATCH_ENTRIES = 512
"""The owner's loop takes a turn for others between batches of this size."""


class RaftConsensus:
    """One manager's member of the Raft group; implements ``port.Consensus``.

    Beyond the port: ``loop`` (the raft thread's, running after ``start``), ``accept`` for the listener,
    ``policy``, ``request_snapshot`` and ``rotate_data_key``.
    """

    def __init__(self, config: RaftConfig) -> None:
        self._config = config
        self.policy = config.policy
        self._group = GroupView("", (), frozenset({config.node_id}), "", {})
        self._published = LeaderState(0, None, False)
        self._ready_term = 0
        self._leader = self._published
        self._leader_callbacks: list[Callable[[LeaderState], None]] = []
        self._failure_callbacks: list[Callable[[BaseException], None]] = []
        self._failure: BaseException | None = None
        self._stopping = False
        self._applier: Applier | None = None
        self._owner: asyncio.AbstractEventLoop | None = None
        self._thread = RaftThread(self, config)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="raft-snapshots")
        self._outbox: deque[Output | LeaderState] = deque()
        self._outbox_scheduled = False
        self._restoring: asyncio.Task[None] | None = None
        self._proposals = Proposals()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._next_token = 1
        self._changed = asyncio.Event()
        self._standstill = Standstill(
            lambda: self._thread.turns, limit_s=2 * config.timing.check_quorum_s, told=self._stands_still
        )

    # port.Consensus

    @property
    def node_id(self) -> NodeID:
        return self._config.node_id

    @property
    def leader(self) -> LeaderState:
        return self._leader

    @property
    def members(self) -> Sequence[Member]:
        return self._group.members

    @property
    def group_id(self) -> str:
        return self._group.group_id

    @property
    def superseded(self) -> str:
        return _SUPERSEDED if self._group.superseded_by else ""

    @property
    def reachable(self) -> frozenset[NodeID]:
        return self._group.reachable

    @property
    def instances(self) -> Mapping[NodeID, str]:
        return self._group.instances

    @property
    def applied_index(self) -> int:
        return self._applier.applied_index if self._applier is not None else 0

    def on_leader_change(self, callback: Callable[[LeaderState], None]) -> None:
        self._leader_callbacks.append(callback)

    def on_failure(self, callback: Callable[[BaseException], None]) -> None:
        self._failure_callbacks.append(callback)

    async def start(self, machine: StateMachine) -> None:
        """See the port. Returns when ``machine`` holds everything that was known to be committed."""
        self._owner = asyncio.get_running_loop()
        self._applier = Applier(machine)
        await self._thread.start()
        try:
            state = await self._thread.call(self._thread.open())
            if state.head is not None:
                await self._restore(state.head.index)
            committed = await self._thread.call(self._thread.run(state))
            while self.applied_index < committed and self._failure is None:
                await self._wait_changed()
        except BaseException:
            await self._thread.stop()
            self._worker.shutdown(wait=False)
            raise
        if self._failure is not None:
            raise self._failure

    async def stop(self, *, transfer: bool = True) -> None:
        if self._stopping:
            return
        if transfer and self._failure is None and self._leads and self._other_voters() & self._group.reachable:
            try:
                await self.transfer_leadership(timeout_s=2.0)
            except ConsensusError as error:
                log.info("leadership.not_transferred", node_id=self.node_id, reason=str(error))
        self._stopping = True
        self._standstill.end()
        await self._thread.stop()
        self._published = LeaderState(self._published.term, None, False)
        self._update_leader()
        if self._restoring is not None:
            await cancel_and_wait(self._restoring)
        await asyncio.get_running_loop().run_in_executor(None, self._worker.shutdown)
        self._proposals.fail_all("this manager is stopping")
        self._proposals.close()

    async def propose(self, data: bytes, *, timeout_s: float = 20.0, command_id: bytes | None = None) -> object:
        """See the port."""
        if len(data) > ENTRY_SIZE_BYTES_MAX:
            raise EntryTooLargeError(f"entry of {len(data)} bytes, largest is {ENTRY_SIZE_BYTES_MAX}")
        self._check_leads()
        if command_id is None:
            command_id = self._proposals.new_id()
        elif len(command_id) != COMMAND_ID_SIZE_BYTES:
            raise ValueError(f"a command ID has {COMMAND_ID_SIZE_BYTES} bytes")
        await self._proposals.wait_for_room()
        self._check_running()
        known = self._proposals.find(command_id)
        if known is not None:
            return await asyncio.shield(known)
        future = self._proposals.add(command_id, len(data), timeout_s)
        self._thread.propose(command_id, data)
        try:
            return await future
        finally:
            self._proposals.remove(command_id)

    async def read_barrier(self, *, timeout_s: float = 20.0) -> int:
        self._check_leads()
        token, future = self._new_wait()
        self._thread.post(functools.partial(self._thread.open_barrier, token))
        await self._finish_wait(token, future, timeout_s, "leadership was not confirmed by a majority")
        return self.applied_index

    async def admission(self, *, timeout_s: float = 20.0) -> Admission:
        term = self._published.term
        index = await self.read_barrier(timeout_s=timeout_s)
        if not self._leads or self._published.term != term:
            raise NotLeaderError(self._leader.leader_id)
        return Admission(self.group_id, term, self.node_id, index)

    async def admit(self, admission: Admission) -> None:
        await self._thread.call(self._thread.admit(admission))

    async def add_member(self, member: Member, *, timeout_s: float = 20.0) -> None:
        self._check_running()
        token, future = self._new_wait()
        self._thread.post(functools.partial(self._thread.add_member, token, member))
        what = f"{member.node_id} was not caught up and confirmed by a majority"
        await self._finish_wait(token, future, timeout_s, what)

    async def remove_member(self, node_id: NodeID, *, timeout_s: float = 20.0) -> None:
        self._check_running()
        if node_id == self.node_id and self._leads:
            if not self._other_voters():
                raise MembershipError(f"{node_id} is the last manager: removing it would lose the quorum")
            await self.transfer_leadership(timeout_s=timeout_s)
            raise NotLeaderError(self._leader.leader_id)
        token, future = self._new_wait()
        self._thread.post(functools.partial(self._thread.remove_member, token, node_id))
        await self._finish_wait(token, future, timeout_s, f"the removal of {node_id} was not confirmed by a majority")

    async def transfer_leadership(self, to: NodeID | None = None, *, timeout_s: float = 5.0) -> None:
        """See the port. Raises NotLeaderError, MembershipError (``to`` has no vote or is not reachable), NoQuorumError."""
        self._check_leads()
        candidates = self._other_voters() & self._group.reachable
        if not candidates or (to is not None and to not in candidates):
            raise MembershipError(f"cannot transfer leadership: {to or 'no other manager'} is not a reachable voter")
        self._thread.post(functools.partial(self._thread.transfer, to, timeout_s))
        try:
            async with asyncio.timeout(timeout_s):
                while self._published.is_leader or self._published.leader_id is None:
                    await self._wait_changed()
        except TimeoutError:
            raise NoQuorumError(f"leadership was not taken over within {timeout_s} s") from None

    def update_address(self, node_id: NodeID, address: str) -> None:
        self._thread.post(functools.partial(self._thread.note_address, node_id, address))

    # Beyond the port

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The raft thread's loop: start the listener there. Running between ``start`` and ``stop``."""
        return self._thread.loop

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: NodeID) -> None:
        """Serve a Raft stream that ``peer`` opened, until it ends. Call on ``loop``, after the TLS handshake.

        ``peer`` is the node ID of its certificate, which the caller has checked to be a manager's.
        """
        await self._thread.accept(reader, writer, peer)

    @property
    def journal_syncs(self) -> int:
        """fdatasyncs of the journal since the start, for metrics."""
        return self._thread.journal_syncs

    def recheck(self, node_id: NodeID) -> None:
        """End the stream with a peer that may have none any more, by its certificate."""
        self._thread.post(functools.partial(self._thread.recheck, node_id))

    def request_snapshot(self) -> None:
        """Take a snapshot soon, whatever the policy says."""
        self._thread.post(self._thread.request_snapshot)

    async def rotate_data_key(self, keys: KeyRing) -> None:
        """Write under ``keys.current`` from now on. ``keys`` must hold the old key until a later snapshot's
        compaction has removed what is under it."""
        await self._thread.call(self._thread.rekey(keys))

    # Called by the raft thread

    def deliver(self, outputs: Sequence[Output | LeaderState]) -> None:
        """Hand outputs to the owner's loop; one wake-up for all that come before it gets to run."""
        self._outbox.extend(outputs)
        if not self._outbox_scheduled and self._owner is not None:
            self._outbox_scheduled = True
            self._call_owner(self._take_outbox)

    def publish(self, group: GroupView) -> None:
        self._group = group

    def failed(self, error: BaseException) -> None:
        self._call_owner(self._fail, error)

    def _call_owner(self, callback: Callable[..., None], *args: object) -> None:
        assert self._owner is not None
        try:
            self._owner.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the owner's loop is closed: there is nobody to tell
            log.debug("owner_loop.closed", node_id=self.node_id)

    # On the owner's loop

    def _take_outbox(self) -> None:
        self._outbox_scheduled = False
        self._work()

    def _work(self) -> None:
        """Process outputs until there are none, a restore is under way, or others deserve a turn."""
        budget = APPLY_BATCH_ENTRIES
        while self._outbox and self._restoring is None and self._failure is None:
            if budget <= 0:
                assert self._owner is not None
                self._owner.call_soon(self._work)
                return
            output = self._outbox.popleft()
            if isinstance(output, Apply) and len(output.entries) > APPLY_BATCH_ENTRIES:
                self._outbox.appendleft(Apply(output.entries[APPLY_BATCH_ENTRIES:]))
                output = Apply(output.entries[:APPLY_BATCH_ENTRIES])
            if isinstance(output, Apply):
                budget -= len(output.entries)
            try:
                self._process(output)
            except Exception as error:
                log.exception("member.failed", node_id=self.node_id)
                self._fail(error)
                self._thread.post(functools.partial(self._thread.abandon, error))
        self._changed.set()

    def _process(self, output: Output | LeaderState) -> None:
        assert self._applier is not None
        assert self._owner is not None
        match output:
            case Apply(entries):
                for outcome in self._applier.apply(entries):
                    self._proposals.resolve(outcome.command_id, outcome.result)
                self._thread.consumed(len(entries), sum(len(entry[0]) for entry in entries))
            case LeaderState():
                self._published = output
                self._standstill.watch() if output.is_leader else self._standstill.end()
                self._update_leader()
            case Ready(term):
                self._ready_term = term
                self._update_leader()
            case Deposed():
                self._update_leader()
                self._proposals.fail_all("leadership was lost while the entry was on its way")
            case Rejected(command_id, error):
                self._proposals.reject(command_id, error)
            case Done(token, error):
                future = self._waiting.get(token)
                if future is not None and not future.done():
                    future.set_exception(error) if error is not None else future.set_result(None)
            case Restore(index):
                self._restoring = self._owner.create_task(self._restore_and_go_on(index), name="raft-restore")
            case TakeSnapshot(index, term, configuration):
                if self._applier.applied_index != index:
                    self._thread.skip_snapshot(index)  # a newer one from the leader was restored meanwhile
                    return
                ids, view = self._applier.snapshot()
                head = SnapshotHead(index, term, configuration, ids)
                self._worker.submit(self._thread.write_snapshot, head, view)

    async def _restore(self, index: int) -> None:
        """Read the snapshot on the worker, then replace the state here in one step.

        Nothing of a whole state is garbage: while it is made the collector would look at it again and again, and stop
        every thread for that (0.2 to 0.4 s of an election timeout of 0.6, with 100 000 tasks).
        """
        applier = self._applier
        assert self._owner is not None
        assert applier is not None
        gc.disable()
        try:
            restore = await self._owner.run_in_executor(
                self._worker, lambda: applier.load(*self._thread.read_snapshot(index))
            )
            restore()
            gc.freeze()
        finally:
            gc.enable()

    async def _restore_and_go_on(self, index: int) -> None:
        try:
            await self._restore(index)
        except Exception as error:
            log.exception("member.failed", node_id=self.node_id)
            self._fail(error)
            self._thread.post(functools.partial(self._thread.abandon, error))
        finally:
            self._restoring = None
        self._work()

    @property
    def _leads(self) -> bool:
        return self._published.is_leader and not (self._standstill.is_on and self._other_voters())

    def _stands_still(self, stands_still: bool) -> None:
        """What the raft thread would say if it could; it goes on, or has been deposed, when it says so itself."""
        self._update_leader()
        if not stands_still or self._leads:
            return
        log.warning("raft_thread.stands_still", node_id=self.node_id, reason="the disk does not answer")
        self._proposals.fail_all("the disk of this manager does not answer, another one may lead")
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(NotLeaderError(None))

    def _update_leader(self) -> None:
        state = self._published
        leader_id = None if state.is_leader and not self._leads else state.leader_id
        leader = LeaderState(state.term, leader_id, self._leads and self._ready_term == state.term)
        if leader == self._leader:
            return
        self._leader = leader
        for callback in self._leader_callbacks:
            callback(leader)

    def _fail(self, error: BaseException) -> None:
        if self._failure is not None:
            return
        self._failure = error
        self._published = LeaderState(self._published.term, None, False)
        self._standstill.end()
        self._update_leader()
        self._proposals.fail_all(f"this manager failed: {error}")
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(NoQuorumError(f"this manager failed: {error}"))
        self._changed.set()
        for callback in self._failure_callbacks:
            callback(error)

    def _check_running(self) -> None:
        if self._failure is not None:
            raise NotLeaderError(None) from self._failure
        if self._stopping or self._owner is None:
            raise NotLeaderError(None)

    def _check_leads(self) -> None:
        self._check_running()
        if not self._leads:
            raise NotLeaderError(self._leader.leader_id)

    def _new_wait(self) -> tuple[int, asyncio.Future[None]]:
        token, self._next_token = self._next_token, self._next_token + 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[token] = future
        return token, future

    async def _finish_wait(self, token: int, future: asyncio.Future[None], timeout_s: float, what: str) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            raise NoQuorumError(f"{what} within {timeout_s} s") from None
        finally:
            del self._waiting[token]
            self._thread.post(functools.partial(self._thread.forget, token))

    async def _wait_changed(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _other_voters(self) -> frozenset[NodeID]:
        return frozenset(m.node_id for m in self._group.members if not m.learner) - {self.node_id}
