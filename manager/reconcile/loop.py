"""The reconcile loop: the one place on the leader where decisions about tasks are taken.

It wakes when the store changes or a deadline comes, looks at what is dirty (``reconcile.reconcile_pass``), places
what has no node (``scheduler.assign``) and commits the result. What changes after a pause is looked at at once, what follows
soon after together (``constants.PACE_S``). A pass is bounded, and between passes others have their turn, so
that heartbeats and sessions are served however much there is to schedule (features X25).

Level-triggered: a loop that starts looks at everything, a slice at a time, and what it keeps (``known``: dirty marks,
deadlines, the load of the nodes) is derived from the store and can be thrown away at any time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import structlog

from base.pace import Pace
from manager import constants
from manager.consensus.port import NotLeaderError, ProposalUnknownError
from manager.model.transitions import InvariantError
from manager.reconcile.known import Known
from manager.reconcile.reconcile_pass import ReconcilePass
from manager.scheduler.assign import assign, is_unassigned
from manager.scheduler.nodes import Round
from manager.store import Change, SequenceConflictError, Store, StoreError, TransactionTooLargeError
from proto.objects_pb2 import TASK_STATE_ASSIGNED, Task
from proto.task_states import state_name

log = structlog.get_logger(__name__)

LIMIT_AFTER_CONFLICT_MIN = 16
"""A pass that is refused again and again is made smaller, down to this, until it gets through."""

RETRY_DELAY_S_MAX = 1.0

IDLE_CHECK_S = 60.0
"""An idle loop compares its deadlines with the clock that often, lest the clock was set meanwhile."""

TASKS_LOGGED_PER_PASS = 50


class ReconcileLoop:
    """Decides for the whole cluster while its manager leads. ``run`` it on becoming leader, cancel it on loss."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        ids: Callable[[], str],
        *,
        looks_max: int = constants.PASS_LOOKS_MAX,
    ) -> None:
        """
        Args:
            clock: seconds since the epoch.
            ids: a new object ID at each call.
            looks_max: how much is looked at before others have their turn.
        """
        self._store = store
        self._clock = clock
        self._ids = ids
        self._looks_max = looks_max
        self._wake = asyncio.Event()
        self._forget: Callable[[], None] | None = None
        self._limit = constants.PASS_OBJECTS_MAX
        self._refused = 0
        self._checked_at = (0, 0.0)
        self._pace, self._due_pace = Pace(constants.PACE_S), Pace(constants.DUE_PACE_S)
        self.known = self._nothing_known()

    async def run(self) -> None:
        """Reconcile until cancelled; returns when this manager turns out not to lead any more.

        Raises:
            Anything that is a bug: a broken invariant ends the manager rather than be logged and repeated.
        """
        self.start()
        try:
            while True:
                await self._wait()
                await self._pace.turn()
                self._due_pace.begin()
                await self.step()
        except NotLeaderError as error:
            log.info("reconcile.stopped", reason=str(error))
        finally:
            self.close()

    def start(self) -> None:
        """Follow the store from here on, with everything to look at. ``run`` does this itself."""
        self.close()
        self.known = self._nothing_known()
        self._forget = self._store.on_change(self._follow)
        self.known.begin()

    def close(self) -> None:
        """Follow the store no longer."""
        if self._forget is not None:
            self._forget()
            self._forget = None

    async def step(self) -> bool:
        """One pass: decide, commit; or, of a loop that has just started, the next slice of what it has to take in.

        Returns:
            Whether anything was committed or is left to look at.

        Raises:
            NotLeaderError.
        """
        if not self.known.take_in():
            await asyncio.sleep(0)
            return True
        if self._store.debug:
            self._check_kept()
        started_at = asyncio.get_running_loop().time()
        work = self._decide(self._clock())
        if not work.working.size:
            await asyncio.sleep(0)
            return self.known.has_work()
        try:
            index = await self._store.commit(work.working, split=True)
        except (SequenceConflictError, ProposalUnknownError) as error:
            await self._look_again(work, error)
        except TransactionTooLargeError:
            raise  # a step that fits no entry is a bug, and trying again would not mend it
        except StoreError as error:
            # Something it counted on went in between (a service removed, a name taken): the next look sees that.
            await self._look_again(work, error)
        else:
            self._refused = 0
            self._limit = min(self._limit * 2, constants.PASS_OBJECTS_MAX)
            self._log(work, index, asyncio.get_running_loop().time() - started_at)
        return True

    def _check_kept(self) -> None:
        """Raises: InvariantError: what is kept is not what the store says."""
        moment = (self._store.index, self._clock())
        if moment == self._checked_at:
            return
        self._checked_at = moment
        for difference in self.known.slots.differences(self._store.view, self._clock()):
            raise InvariantError(f"kept of the slots: {difference}")
        for difference in self.known.allocation.differences():
            raise InvariantError(f"kept of the addresses: {difference}")

    # ------------------------------------------------------------------ waking

    async def _wait(self) -> None:
        while not self.known.has_work():
            deadline, now = self.known.agenda.next_deadline(), self._clock()
            if self.known.agenda.is_due(now):
                timeout_s = self._due_pace.left_s()
                if timeout_s <= 0:
                    return
            else:
                timeout_s = IDLE_CHECK_S if deadline is None else min(deadline - now, IDLE_CHECK_S)
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _nothing_known(self) -> Known:
        return Known(self._store, self._clock, looks_max=self._looks_max)

    def _follow(self, changes: Sequence[Change]) -> None:
        self.known.follow(changes)
        if self.known.has_work():
            self._wake.set()

    async def _look_again(self, work: ReconcilePass, error: Exception) -> None:
        work.refused()
        for key in work.looked_at:
            self.known.agenda.mark(key)
        self.known.schedule_again()
        self.known.allocation.try_again()
        self._refused += 1
        self._limit = max(self._limit // 4, LIMIT_AFTER_CONFLICT_MIN)
        log.debug("pass.refused", reason=str(error), refused=self._refused)
        if self._refused > 1:
            await asyncio.sleep(min(0.002 * 2**self._refused, RETRY_DELAY_S_MAX))

    # ------------------------------------------------------------------ deciding

    def _decide(self, now: float) -> ReconcilePass:
        self.known.agenda.mark_due(now)
        work = ReconcilePass(
            working=self._store.begin(),
            agenda=self.known.agenda,
            slots=self.known.slots,
            allocation=self.known.allocation,
            now=now,
            new_id=self._ids,
            limit=self._limit,
            looks_max=self._looks_max,
            per_node_services=tuple(self.known.per_node_services),
            needs_of=self.known.needs_of,
        )
        work.run()
        for task_id in self.known.allocation.next_tasks(max(self._limit - work.working.size, 0)):
            work.allocate(task_id)
        self._schedule(work)
        return work

    def _schedule(self, work: ReconcilePass) -> None:
        fresh = [task for task in work.touched.values() if is_unassigned(task)]
        waiting = self.known.next_waiting(work)
        if not fresh and not waiting:
            return
        nodes = Round(self.known.nodes, lambda task: self.known.needs_of(task, work.working), work.now)
        for task in work.touched.values():
            nodes.change_task(task)
        changed, left = assign(
            [*waiting, *fresh],
            lambda task: self.known.needs_of(task, work.working),
            nodes,
            room=max(self._limit - work.working.size, 1),
            free=lambda task: task.id in work.touched,
        )
        for task in changed:
            work.working.update(task)
            work.working.boundary()
            work.touched[task.id] = task
            if task.status.state == TASK_STATE_ASSIGNED:
                work.placed.add(task.id)
        if left:
            self.known.wait_on(waiting)

    # ------------------------------------------------------------------ telling

    def _log(self, work: ReconcilePass, index: int, duration_s: float) -> None:
        log.debug(
            "pass.committed",
            index=index,
            objects=work.working.size,
            looked_at=len(work.looked_at),
            duration_s=round(duration_s, 4),
        )
        tell = log.info
        if len(work.touched) + len(work.removed) > TASKS_LOGGED_PER_PASS:
            log.info("tasks.changed", tasks=len(work.touched), removed=len(work.removed), index=index)
            if not log.is_enabled_for(logging.DEBUG):
                return
            tell = log.debug
        for task in work.touched.values():
            tell(_event(task, work), **_told(task))
        for task in work.removed.values():
            tell("task.removed", **_told(task))


def _event(task: Task, work: ReconcilePass) -> str:
    """Of one that was created and given to a node at once: that it was created; the line names the node."""
    if task.id in work.created:
        return "task.created"
    return "task.assigned" if task.id in work.placed else "task.changed"


def _told(task: Task) -> dict[str, object]:
    """What a line of the log says of a task; of one that takes another's place, whose."""
    told: dict[str, object] = {
        "task_id": task.id,
        "service_id": task.service_id,
        "slot": task.slot,
        "node_id": task.node_id,
        "state": state_name(task.status.state),
        "desired_state": state_name(task.desired_state),
    }
    if task.replaces_task_id:
        told["replaces_task_id"] = task.replaces_task_id
    if task.status.err:
        told["err"] = task.status.err
    return told
