"""The reconcile loop: the one place on the leader where decisions about tasks are taken.

It wakes when the store changes or a deadline comes, looks at what is dirty (``reconcile.reconcile_pass``), places
what has no node (``scheduler.assign``) and commits the result. There is no fixed window: changes that come while a
commit is under way are looked at together after it. A pass is bounded, and between passes others have their turn, so
that heartbeats and sessions are served however much there is to schedule (features X25).

Level-triggered: a loop that starts looks at everything, a slice at a time, and what it keeps (dirty marks, deadlines,
the load of the nodes) is derived from the store and can be thrown away at any time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice

import structlog

from manager import constants
from manager.consensus.port import NotLeaderError, ProposalUnknownError
from manager.model.modes import mode_of
from manager.model.needs import NOTHING_NEEDED, Needs, needs_of
from manager.model.tasks import changed_at
from manager.model.transitions import state_name
from manager.orchestrator import rollout
from manager.reconcile.agenda import Agenda, NodeKey, ServiceKey, SlotKey
from manager.reconcile.reconcile_pass import ReconcilePass, slot_key
from manager.scheduler.assign import assign, is_unassigned
from manager.scheduler.nodes import NodeSet, Round, counts_on_node, has_failed, occupies_node
from manager.store import Change, SequenceConflictError, Store, StoreError, TransactionTooLargeError, View
from proto.objects_pb2 import TASK_STATE_ASSIGNED, Cluster, Node, Service, SpecVersion, Task

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
        self._unseen: Iterator[None] | None = None
        self._reset()

    async def run(self) -> None:
        """Reconcile until cancelled; returns when this manager turns out not to lead any more.

        Raises:
            Anything that is a bug: a broken invariant ends the manager rather than be logged and repeated.
        """
        self.start()
        try:
            while True:
                await self._wait()
                await self.step()
        except NotLeaderError as error:
            log.info("reconcile.stopped", reason=str(error))
        finally:
            self.close()

    def start(self) -> None:
        """Follow the store from here on, with everything to look at. ``run`` does this itself."""
        self.close()
        self._reset()
        self._forget = self._store.on_change(self._follow)
        self._see_nodes()
        self._unseen = self._everything()
        self._schedule_again = True

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
        if not self._take_in():
            await asyncio.sleep(0)
            return True
        started_at = asyncio.get_running_loop().time()
        work = self._decide(self._clock())
        if not work.working.size:
            await asyncio.sleep(0)
            return self._has_work()
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

    # ------------------------------------------------------------------ waking

    async def _wait(self) -> None:
        while not self._has_work():
            deadline = self._agenda.next_deadline()
            now = self._clock()
            if self._agenda.is_due(now):
                return
            timeout_s = IDLE_CHECK_S if deadline is None else min(deadline - now, IDLE_CHECK_S)
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _has_work(self) -> bool:
        return self._unseen is not None or bool(self._agenda) or self._schedule_again or bool(self._waiting)

    async def _look_again(self, work: ReconcilePass, error: Exception) -> None:
        for key in work.looked_at:
            self._agenda.mark(key)
        self._schedule_again = True
        self._refused += 1
        self._limit = max(self._limit // 4, LIMIT_AFTER_CONFLICT_MIN)
        log.debug("pass.refused", reason=str(error), refused=self._refused)
        if self._refused > 1:
            await asyncio.sleep(min(0.002 * 2**self._refused, RETRY_DELAY_S_MAX))

    # ------------------------------------------------------------------ deciding

    def _decide(self, now: float) -> ReconcilePass:
        self._agenda.mark_due(now)
        work = ReconcilePass(
            working=self._store.begin(),
            agenda=self._agenda,
            now=now,
            new_id=self._ids,
            limit=self._limit,
            looks_max=self._looks_max,
            per_node_services=tuple(self._per_node_services),
            needs_of=self._needs_of,
        )
        work.run()
        self._schedule(work)
        return work

    def _schedule(self, work: ReconcilePass) -> None:
        fresh = [task for task in work.touched.values() if is_unassigned(task)]
        waiting = self._next_waiting(work)
        if not fresh and not waiting:
            return
        nodes = Round(self._nodes, lambda task: self._needs_of(task, work.working), work.now)
        for task in work.touched.values():
            nodes.change_task(task)
        changed, left = assign(
            [*waiting, *fresh],
            lambda task: self._needs_of(task, work.working),
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
            self._waiting.update(dict.fromkeys(task.id for task in waiting))

    def _next_waiting(self, work: ReconcilePass) -> list[Task]:
        """The next of the tasks that had no node the last time, some ``looks_max`` of looks at tasks and nodes.

        A version of a service costs a look at each node, however many of its tasks there are.
        """
        if self._schedule_again:
            self._schedule_again = False
            self._waiting.update(self._unassigned)
        looks, versions, found = 0, set[tuple[str, int]](), list[Task]()
        while self._waiting and looks < self._looks_max:
            task_id, _ = self._waiting.popitem(last=False)
            task = work.working.tasks.get(task_id)
            if task is None or task_id in work.touched or not is_unassigned(task):
                continue
            version = (task.service_id, task.spec_version)
            looks += 1 if task.node_id or version in versions else 1 + len(self._nodes.infos)
            versions.add(version)
            found.append(task)
        return found

    def _needs_of(self, task: Task, view: View) -> Needs:
        key = (task.service_id, task.spec_version)
        needs = self._needs.get(key)
        if needs is not None:
            return needs
        version = view.spec_versions.of(*key)
        if version is not None:
            needs = self._needs[key] = needs_of(version.spec)
            return needs
        service = view.services.get(task.service_id)
        if service is not None and service.spec_version == task.spec_version:
            return needs_of(service.spec)
        return NOTHING_NEEDED

    # ------------------------------------------------------------------ taking everything in

    def _reset(self) -> None:
        self._agenda = Agenda()
        self._needs: dict[tuple[str, int], Needs] = {}
        self._nodes = NodeSet(lambda task: self._needs_of(task, self._store.view))
        self._unassigned: dict[str, None] = {}
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._per_node_services: dict[str, None] = {}
        self._schedule_again = False
        self._unseen = None

    def _see_nodes(self) -> None:
        """All at once, there are few: from here on every task that changes finds its node, to be accounted to it."""
        for node in self._store.view.nodes:
            self._nodes.put_node(node)
            self._agenda.mark(NodeKey(node.id))

    def _everything(self) -> Iterator[None]:
        """Take in the rest of the store as it is now, one object at each step.

        Changes meanwhile are followed as ever, which is why each object is taken as it is by then.
        """
        view = self._store.view
        return chain(
            map(self._see_service, list(view.services)),
            map(self._see_task, list(view.tasks)),
            map(self._see_version, list(view.spec_versions)),
        )

    def _take_in(self) -> bool:
        """The next slice; returns whether that was all. Before, nothing can be placed: the load is not known."""
        if self._unseen is None:
            return True
        seen = sum(1 for _ in islice(self._unseen, self._looks_max))
        if seen < self._looks_max:
            self._unseen = None
        return self._unseen is None

    def _see_service(self, at_start: Service) -> None:
        service = self._store.view.services.get(at_start.id)
        if service is not None:
            self._follow_service(None, service)

    def _see_task(self, at_start: Task) -> None:
        task = self._store.view.tasks.get(at_start.id)
        if task is not None:
            self._follow_task(None, task)
        if has_failed(at_start):
            # One that failed since was seen to.
            self._nodes.note_failure(at_start, changed_at(at_start))

    def _see_version(self, version: SpecVersion) -> None:
        """It may be one of a service that is gone."""
        self._agenda.mark(ServiceKey(version.service_id))

    def _mark_slot_of(self, task: Task) -> None:
        self._agenda.mark(slot_key(task, self._store.view.services.get(task.service_id)))

    # ------------------------------------------------------------------ following the store

    def _follow(self, changes: Sequence[Change]) -> None:
        for change in changes:
            old, new = change.old, change.new
            about = new if new is not None else old
            if isinstance(about, Task):
                self._follow_task(_task(old), _task(new))
            elif isinstance(about, Node):
                self._follow_node(_node(old), _node(new))
            elif isinstance(about, Service):
                self._follow_service(_service(old), _service(new))
            elif isinstance(about, SpecVersion) and new is None:
                self._needs.pop((about.service_id, about.spec_version), None)
            elif isinstance(about, Cluster):
                self._follow_cluster(old, new)
        if self._has_work():
            self._wake.set()

    def _follow_task(self, old: Task | None, new: Task | None) -> None:
        task = new if new is not None else old
        assert task is not None
        self._nodes.change_task(old, new)
        if new is not None and is_unassigned(new):
            self._unassigned[new.id] = None
        else:
            self._unassigned.pop(task.id, None)
        if old is not None and _frees_room(old, new):
            self._schedule_again |= bool(self._unassigned)
        if old is not None and new is not None and has_failed(new) and not has_failed(old):
            self._nodes.note_failure(new, self._clock())
        service = self._store.view.services.get(task.service_id)
        self._agenda.mark(slot_key(task, service))
        if service is None or rollout.is_under_way(service) or (service.pending_delete and new is None):
            self._agenda.mark(ServiceKey(task.service_id))

    def _follow_node(self, old: Node | None, new: Node | None) -> None:
        if new is None:
            assert old is not None
            self._nodes.drop_node(old.id)
            self._agenda.mark(NodeKey(old.id))
            return
        self._nodes.put_node(new)
        if old is None:
            # Tasks may have been seen before their node was.
            for task in self._store.view.tasks.by_node(new.id):
                self._nodes.change_task(None, task)
        elif not _matters(old, new):
            return
        self._agenda.mark(NodeKey(new.id))
        for service_id in self._per_node_services:
            self._agenda.mark(SlotKey(service_id, new.id))
            # A node that was paused during an update is brought up to date when it is active again.
            self._agenda.mark(ServiceKey(service_id))
        for task in self._store.view.tasks.by_node(new.id):
            service = self._store.view.services.get(task.service_id)
            if service is not None and rollout.is_under_way(service):
                self._agenda.mark(ServiceKey(task.service_id))
        self._schedule_again |= bool(self._unassigned)

    def _follow_service(self, old: Service | None, new: Service | None) -> None:
        service = new if new is not None else old
        assert service is not None
        if new is not None and mode_of(new.spec).per_node:
            self._per_node_services[new.id] = None
        else:
            self._per_node_services.pop(service.id, None)
        self._agenda.mark(ServiceKey(service.id))

    def _follow_cluster(self, old: object, new: object) -> None:
        """Another history limit is applied to every slot."""
        if not isinstance(old, Cluster) or not isinstance(new, Cluster):
            return
        if old.spec.orchestration != new.spec.orchestration:
            every_slot = map(self._mark_slot_of, list(self._store.view.tasks))
            self._unseen = every_slot if self._unseen is None else chain(self._unseen, every_slot)

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


def _frees_room(old: Task, new: Task | None) -> bool:
    """Whether a task that cannot be placed might be now."""
    if not occupies_node(old):
        return False
    return new is None or not occupies_node(new) or (counts_on_node(old) and not counts_on_node(new))


def _matters(old: Node, new: Node) -> bool:
    """Whether decisions may differ for the changed node."""
    return (
        old.spec != new.spec
        or old.status.state != new.status.state
        or old.status.addr != new.status.addr
        or old.role != new.role
        or old.description != new.description
    )


def _task(obj: object) -> Task | None:
    return obj if isinstance(obj, Task) else None


def _node(obj: object) -> Node | None:
    return obj if isinstance(obj, Node) else None


def _service(obj: object) -> Service | None:
    return obj if isinstance(obj, Service) else None
