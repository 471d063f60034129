"""The raft thread: an event loop that owns core, journal and links, and pumps the core when something came in."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar  # Any: a coroutine that only returns

import structlog

from manager.consensus import wire
from manager.consensus.adapter import Parts
from manager.consensus.changes import MembershipChanges
from manager.consensus.configuration import Configuration
from manager.consensus.core import RaftCore
from manager.consensus.outputs import Done, Output
from manager.consensus.port import Admission, ConsensusError, LeaderState, Member, NodeID, NotLeaderError
from manager.consensus.recovery import OpenedState, force_new_group, found_group, open_state
from manager.consensus.sealed import KeyRing
from manager.consensus.settings import RaftConfig
from manager.consensus.snapshots import SnapshotHead
from manager.consensus.transport import Links

log = structlog.get_logger(__name__)

T = TypeVar("T")

SNAPSHOT_PAUSE_S = 0.001
"""After each chunk of a snapshot, which takes as long. A thread that computes gives the interpreter away every 5 ms, and a
write crosses threads several times: it took 76 ms beside a snapshot."""

LEADERLESS_S = 10.0
"""A group without a leader for so long needs each member, though it be on another machine now: hosts that were moved
together would find no leader, and without one nobody can say that the move is right."""


@dataclass(frozen=True, slots=True)
class GroupView:
    """What a member knows of its group: ID, members, who of them is reachable, by which process; what supersedes it."""

    group_id: str
    members: tuple[Member, ...]
    reachable: frozenset[NodeID]
    superseded_by: str
    instances: Mapping[NodeID, str]


class Owner(Protocol):
    """What the thread tells; each method may be called from the raft thread."""

    def deliver(self, outputs: list[Output | LeaderState]) -> None: ...
    def publish(self, group: GroupView) -> None: ...
    def failed(self, error: BaseException) -> None: ...


class MemberRemovedError(ConsensusError):
    """The group goes on without this member."""


class RaftThread:
    """Methods are called on the thread's loop, except where said otherwise."""

    def __init__(self, owner: Owner, config: RaftConfig) -> None:
        self._owner, self._config = owner, config
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._state: OpenedState | None = None
        self._core: RaftCore | None = None
        self._links: Links | None = None
        self._changes: MembershipChanges | None = None
        self._inbox: deque[Callable[[], None]] = deque()
        self._proposals: deque[tuple[bytes, bytes]] = deque()
        self._inbox_scheduled = False
        self._pump_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._published: LeaderState | None = None
        self._told_configuration: Configuration | None = None
        self._told_s = 0.0
        self._consumed = [0, 0]  # written by the owner's loop only
        self._consumed_seen = [0, 0]
        self._stalled = False
        self._abandoned = False
        self.turns = 0
        """How often it pumped, a leader at least once a heartbeat; read by the owner's loop, see ``Standstill``."""

    # From any thread

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("the member was not started")
        return self._loop

    @property
    def journal_syncs(self) -> int:
        return self._state.journal.syncs if self._state is not None else 0

    async def start(self) -> None:
        """Start thread and loop (called on the owner's loop)."""
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        owner_loop = asyncio.get_running_loop()
        self._loop = asyncio.SelectorEventLoop()

        def main() -> None:
            assert self._loop is not None
            asyncio.set_event_loop(self._loop)
            owner_loop.call_soon_threadsafe(started.set_result, None)
            try:
                self._loop.run_forever()
            finally:
                _end_tasks(self._loop)
                self._loop.close()

        self._thread = threading.Thread(target=main, name=f"raft-{self._config.node_id}", daemon=True)
        self._thread.start()
        await started

    async def stop(self) -> None:
        """Close everything and end the thread (called on the owner's loop)."""
        if self._thread is None or not self._thread.is_alive():
            return
        try:
            await self.call(self._close())
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the raft thread and wait for its result on this loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    def post(self, work: Callable[[], None]) -> None:
        """Do ``work`` on the raft thread, then pump."""
        self._inbox.append(work)
        self._wake()

    def propose(self, command_id: bytes, data: bytes) -> None:
        self._proposals.append((command_id, data))
        self._wake()

    def consumed(self, entries: int, size_bytes: int) -> None:
        """The owner applied so much; wakes the thread only if it waits for that."""
        self._consumed[0] += entries
        self._consumed[1] += size_bytes
        if self._stalled:
            self._wake()

    def write_snapshot(self, head: SnapshotHead, view: Callable[[], Iterator[bytes]]) -> None:
        """Write a snapshot (called on the worker thread); the core hears of the result."""
        assert self._state is not None
        error: Exception | None = None
        try:
            self._state.store.write(head, _with_pauses(view()))
        except Exception as caught:  # told to the core, which tries again later
            error = caught
        self.post(lambda: self._core.snapshot_written(head.index, error) if self._core else None)

    def skip_snapshot(self, index: int) -> None:
        """The owner's state is not of ``index`` any more."""
        error = ConsensusError("superseded by a snapshot of the leader")
        self.post(lambda: self._core.snapshot_written(index, error) if self._core else None)

    def read_snapshot(self, index: int) -> tuple[SnapshotHead, Iterator[bytes]]:
        """The snapshot of ``index``, or the newest if that is gone already (called on the worker thread)."""
        assert self._state is not None
        store = self._state.store
        try:
            return store.open(index)
        except FileNotFoundError:
            return store.open(store.indexes()[-1])

    def _wake(self) -> None:
        # Both flags and deques are safe between the two threads: the flag goes down before the deques are read.
        if not self._inbox_scheduled and self._loop is not None:
            self._inbox_scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._take_inbox)
            except RuntimeError:  # the loop is closed: the member has stopped
                log.debug("raft_loop.closed", node_id=self._config.node_id)

    # Start

    async def open(self) -> OpenedState:
        """Recover the state folder. Raises CorruptStateError, StateLockedError, IncompleteStateError, OSError."""
        config = self._config
        state = open_state(config.files, config.folder, config.keys, config.node_id)
        self._state = state
        member = Member(config.node_id, config.address)
        if state.fresh and not config.join:
            found_group(state, member)
        elif config.force_new_cluster and not state.fresh:
            force_new_group(state, member)
        return state

    async def run(self, state: OpenedState) -> int:
        """Take part from now on; returns the index that was known to be committed."""
        config = self._config
        links = self._links = Links(
            node_id=config.node_id,
            address=config.address,
            timing=config.timing,
            client_ssl=config.client_ssl,
            peer_identity=config.peer_identity,
            on_message=self._on_message,
            on_connected=self._on_connected,
            on_disconnected=self._on_disconnected,
            on_input=self._schedule_pump,
            on_address=self.note_address,
            on_superseded=self._on_superseded,
            superseded_by=state.journal.superseded_by,
            instance=config.instance,
            claim=config.claim,
            why_copy=config.why_copy,
            has_leader=self._has_leader,
        )
        core = self._core = RaftCore(
            Parts(
                node_id=config.node_id,
                journal=state.journal,
                store=state.store,
                configurations=state.configurations,
                applied=state.head.index if state.head else 1,
                link=links,
                timing=config.timing,
                policy=config.policy,
                rng=random.Random(config.seed),
            )
        )
        core.on_removed = self._on_removed
        self._changes = MembershipChanges(core)
        own = state.configurations.current.find(config.node_id)
        if own is not None and own.address != config.address:
            self._changes.note_address(config.node_id, config.address)
        self._pump()
        return core.commit_index()

    # Requests of the owner

    def open_barrier(self, token: int) -> None:
        core = self._core
        if core is None or not core.is_leading():
            leader_id = core.leader_id() if core else None
            self._owner.deliver([Done(token, NotLeaderError(leader_id))])
            return
        core.open_barrier(token)

    async def admit(self, admission: Admission) -> None:
        """The group is published when this returns."""
        if self._core is None or self._abandoned:
            return
        try:
            self._core.admit(admission)
        except Exception as error:
            self.abandon(error)
            raise
        self._pump()

    def add_member(self, token: int, member: Member) -> None:
        if self._changes is not None:
            self._changes.add(token, member)

    def remove_member(self, token: int, node_id: NodeID) -> None:
        if self._changes is not None:
            self._changes.remove(token, node_id)

    def forget(self, token: int) -> None:
        if self._changes is not None and self._core is not None:
            self._changes.forget(token)
            self._core.forget_barrier(token)

    def transfer(self, to: NodeID | None, timeout_s: float) -> None:
        if self._core is not None:
            self._core.start_transfer(to, timeout_s)

    def note_address(self, node_id: NodeID, address: str) -> None:
        if self._links is not None and self._changes is not None:
            self._links.set_address(node_id, address)
            self._changes.note_address(node_id, address)

    def recheck(self, node_id: NodeID) -> None:
        if self._links is not None:
            self._links.recheck(node_id)

    def request_snapshot(self) -> None:
        if self._core is not None:
            self._core.request_snapshot()

    async def rekey(self, keys: KeyRing) -> None:
        if self._state is None:
            raise RuntimeError("the member was not started")
        self._state.store.keys = keys
        self._state.journal.rekey(keys)
        self.request_snapshot()
        self._schedule_pump()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: NodeID) -> None:
        if self._links is None or self._abandoned:
            writer.transport.abort()
            return
        await self._links.accept(reader, writer, peer)

    # Pumping

    def _take_inbox(self) -> None:
        self._inbox_scheduled = False
        while self._inbox:
            try:
                self._inbox.popleft()()
            except Exception as error:
                self.abandon(error)
        if self._core is not None and not self._abandoned:
            while self._proposals:
                self._core.propose(*self._proposals.popleft())
            self._pump()

    def _schedule_pump(self) -> None:
        if not self._pump_scheduled and not self._abandoned:
            self._pump_scheduled = True
            self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_scheduled = False
        self.turns += 1
        core, links = self._core, self._links
        if core is None or links is None or self._abandoned:
            return
        try:
            self._note_consumed(core)
            core.pump()
        except Exception as error:
            self.abandon(error)
            return
        self._stalled = core.is_stalled()
        self._hand_over(core)
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0.001, core.deadline() - core.now())
        self._timer = self.loop.call_later(delay_s, self._schedule_pump)

    def _note_consumed(self, core: RaftCore) -> None:
        entries, size_bytes = self._consumed
        core.consumed(entries - self._consumed_seen[0], size_bytes - self._consumed_seen[1])
        self._consumed_seen = [entries, size_bytes]

    def _hand_over(self, core: RaftCore) -> None:
        outputs: list[Output | LeaderState] = [*core.take_outputs()]
        state = LeaderState(core.term(), core.leader_id(), core.is_leading())
        configuration = core.configurations.current
        now = core.now()
        old = now - self._told_s >= self._config.timing.heartbeat_period_s
        if old or state != self._published or configuration is not self._told_configuration:
            group_id, members, superseded_by = configuration.group_id, configuration.members, core.journal.superseded_by
            instances = self._links.instances() if self._links is not None else {}
            self._owner.publish(GroupView(group_id, members, core.reachable(), superseded_by, instances))
            self._told_s, self._told_configuration = now, configuration
        if state != self._published:
            self._published = state
            outputs.append(state)
            log.info("leader.changed", node_id=core.node_id, term=state.term, leader_id=state.leader_id)
        if outputs:
            self._owner.deliver(outputs)

    def _on_message(self, peer: NodeID, message: wire.Message) -> None:
        if self._core is None or self._abandoned:
            return
        try:
            self._core.receive(peer, message)
        except wire.ProtocolError:
            raise
        except Exception as error:
            self.abandon(error)

    def _on_connected(self, peer: NodeID) -> None:
        if self._core is not None:
            self._core.connected(peer)

    def _on_disconnected(self, peer: NodeID) -> None:
        if self._core is not None:
            self._core.disconnected(peer)

    def _has_leader(self) -> bool:
        return self._core is not None and self._core.leaderless_s() < LEADERLESS_S

    def _on_superseded(self, by: str) -> None:
        if self._core is None or self._abandoned:
            return
        log.error("group.superseded", node_id=self._config.node_id, by=by)
        try:
            self._core.supersede(by)
        except Exception as error:
            self.abandon(error)
        self._told_configuration = None
        self._schedule_pump()

    def _on_removed(self) -> None:
        self.abandon(MemberRemovedError(f"{self._config.node_id} was removed from the Raft group"))

    # End

    def abandon(self, error: BaseException) -> None:
        """Fall silent for good: no message leaves that the failed member might not stand by."""
        if self._abandoned:
            return
        self._abandoned = True
        log.error("member.failed", node_id=self._config.node_id, error=str(error), kind=type(error).__name__)
        if self._timer is not None:
            self._timer.cancel()
        if self._links is not None:
            self._links.abort()
        self._owner.failed(error)

    async def _close(self) -> None:
        self._abandoned = True
        if self._timer is not None:
            self._timer.cancel()
        if self._links is not None:
            await self._links.close()
        if self._state is not None:
            try:
                if self._state.journal.failed is None:
                    self._state.journal.sync()
            except OSError as error:  # nothing was promised that is not durable already
                log.warning("journal.not_synced", node_id=self._config.node_id, error=str(error))
            finally:
                self._state.close()


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """What still runs on a stopped loop (a listener's handlers) ends before the loop is closed."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.run_until_complete(asyncio.sleep(0))  # transports that were aborted say good-bye


def _with_pauses(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks, each followed by a moment for the process' other threads."""
    for chunk in chunks:
        yield chunk
        time.sleep(SNAPSHOT_PAUSE_S)
