"""What the reconcile loop keeps of the store, object by object as it changes, so that a pass costs what changed.

All of it is derived and can be thrown away at any time: a new leader takes everything in, a slice at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

from manager.model.modes import mode_of
from manager.model.needs import NOTHING_NEEDED, Needs
from manager.model.needs import needs_of as read_needs
from manager.model.nodes import is_node_lost
from manager.model.tasks import changed_at, has_ended
from manager.orchestrator import rollout
from manager.reconcile.agenda import Agenda, NodeKey, ServiceKey, SlotKey
from manager.reconcile.allocation import Allocation
from manager.reconcile.kept_slots import KeptSlots
from manager.reconcile.reconcile_pass import ReconcilePass, slot_key
from manager.scheduler.assign import is_unassigned
from manager.scheduler.nodes import NodeSet, counts_on_node, has_failed, occupies_node
from manager.store import Change, Store, View
from proto.objects_pb2 import (
    TASK_STATE_ASSIGNED,
    TASK_STATE_REMOVE,
    TASK_STATE_RUNNING,
    Cluster,
    Network,
    Node,
    Service,
    SpecVersion,
    Task,
)


class Known:
    """
    Attributes:
        agenda: what is to be looked at, and when.
        nodes: their load.
        slots: those of the services that were looked at.
        allocation: addresses, and who waits for some.
        per_node_services: IDs of the services that have a task a node, in no particular order.
    """

    def __init__(self, store: Store, clock: Callable[[], float], *, looks_max: int) -> None:
        """
        Args:
            store: read here, never written.
            clock: seconds since the epoch.
            looks_max: how much is taken in or handed out before others have their turn.
        """
        self._store = store
        self._clock = clock
        self._looks_max = looks_max
        self.agenda = Agenda()
        self.nodes = NodeSet(lambda task: self.needs_of(task, self._store.view))
        self.slots = KeptSlots()
        self.allocation = Allocation(store.view, self.agenda)
        self.per_node_services: dict[str, None] = {}
        self._needs: dict[tuple[str, int], Needs] = {}
        self._unassigned: dict[str, None] = {}
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._schedule_again = False
        self._unseen: Iterator[None] | None = None

    def begin(self) -> None:
        """Everything is to be taken in; the store's changes have to be followed from here on."""
        self._see_nodes()
        self._unseen = self._everything()
        self._schedule_again = True

    def has_work(self) -> bool:
        """Whether something is to be taken in, looked at or placed."""
        return (
            self._unseen is not None
            or bool(self.agenda)
            or self._schedule_again
            or bool(self._waiting)
            or self.allocation.has_work()
        )

    def schedule_again(self) -> None:
        """Tasks without a node are to be tried again, all of them."""
        self._schedule_again = True

    # ------------------------------------------------------------------ taking everything in

    def _see_nodes(self) -> None:
        """All at once, there are few: from here on every task that changes finds its node, to be accounted to it."""
        self.allocation.begin()
        for node in self._store.view.nodes:
            self.nodes.put_node(node)
            self.allocation.follow_node(None, node)
            self.agenda.mark(NodeKey(node.id))

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

    def take_in(self) -> bool:
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
            self.nodes.note_failure(at_start, changed_at(at_start))

    def _see_version(self, version: SpecVersion) -> None:
        """It may be one of a service that is gone."""
        self.agenda.mark(ServiceKey(version.service_id))

    def _mark_slot_of(self, task: Task) -> None:
        self.agenda.mark(slot_key(task, self._store.view.services.get(task.service_id)))

    # ------------------------------------------------------------------ following the store

    def follow(self, changes: Sequence[Change]) -> None:
        """Take note of what was committed."""
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
            elif isinstance(about, Network):
                self.allocation.follow_network(about, is_there=new is not None)
            elif isinstance(about, Cluster):
                self._follow_cluster(old, new)

    def _follow_task(self, old: Task | None, new: Task | None) -> None:
        task = new if new is not None else old
        assert task is not None
        self.slots.task_changed(task)
        self.allocation.follow_task(task, is_there=new is not None)
        service = self._store.view.services.get(task.service_id)
        if (
            service is None
            or rollout.is_under_way(service)
            # An update that is complete and has stale slots again (a node that was paused) goes on task by task, too.
            or rollout.belongs(service, task)
            or (service.pending_delete and new is None)
        ):
            self.agenda.mark(ServiceKey(task.service_id))
        if new is None and self._is_gone(task, service):
            self.agenda.mark(ServiceKey(task.service_id))
        elif new is None or not self._is_as_it_should_be(new, service):
            self.agenda.mark(slot_key(task, service))
        if old is not None and new is not None and _is_progress(old, new):
            return  # it lies on its node as before
        self.nodes.change_task(old, new)
        if new is not None and is_unassigned(new):
            self._unassigned[new.id] = None
        else:
            self._unassigned.pop(task.id, None)
        if old is not None and _frees_room(old, new):
            self._schedule_again |= bool(self._unassigned)
        if old is not None and new is not None and has_failed(new) and not has_failed(old):
            self.nodes.note_failure(new, self._clock())

    def _is_gone(self, removed: Task, service: Service | None) -> bool:
        """Whether nothing is left of its slot: whether that is filled is decided for the whole service."""
        if service is not None and mode_of(service.spec).per_node:
            return False
        return not self._store.view.tasks.by_slot(removed.service_id, removed.slot)

    def _is_as_it_should_be(self, task: Task, service: Service | None) -> bool:
        """Whether a look at its slot is sure to find nothing to do, so that it need not be made.

        It has the slot for itself; it runs, is on its way to that, or to its end where nothing takes its place; and its
        node, if it has one, can tell of it.
        """
        if service is None or has_ended(task):
            return False
        if task.desired_state == TASK_STATE_REMOVE:
            if task.status.state < TASK_STATE_ASSIGNED:
                return False
        elif task.desired_state != TASK_STATE_RUNNING or service.pending_delete:
            return False
        view = self._store.view
        if len(view.tasks.of_slot(task.service_id, mode_of(service.spec).slot_of(task))) > 1:
            return False
        return not task.node_id or not is_node_lost(view.nodes.get(task.node_id))

    def _follow_node(self, old: Node | None, new: Node | None) -> None:
        self.allocation.follow_node(old, new)
        if new is None:
            assert old is not None
            self.nodes.drop_node(old.id)
            self._judge_again_on(old.id)
            self.agenda.mark(NodeKey(old.id))
            return
        self.nodes.put_node(new)
        if old is None:
            # Tasks may have been seen before their node was.
            for task in self._store.view.tasks.by_node(new.id):
                self.nodes.change_task(None, task)
        elif not _matters(old, new):
            return
        self._judge_again_on(new.id)
        self.agenda.mark(NodeKey(new.id))
        for service_id in self.per_node_services:
            self.agenda.mark(SlotKey(service_id, new.id))
            # A node that was paused during an update is brought up to date when it is active again.
            self.agenda.mark(ServiceKey(service_id))
        for task in self._store.view.tasks.by_node(new.id):
            service = self._store.view.services.get(task.service_id)
            if service is not None and rollout.is_under_way(service):
                self.agenda.mark(ServiceKey(task.service_id))
        self._schedule_again |= bool(self._unassigned)

    def _judge_again_on(self, node_id: str) -> None:
        """Slots are judged by their node, too."""
        for service_id in self.per_node_services:
            self.slots.node_changed(node_id, service_id)
        for task in self._store.view.tasks.by_node(node_id):
            self.slots.task_changed(task)

    def _follow_service(self, old: Service | None, new: Service | None) -> None:
        service = new if new is not None else old
        assert service is not None
        if new is not None and mode_of(new.spec).per_node:
            self.per_node_services[new.id] = None
        else:
            self.per_node_services.pop(service.id, None)
        self.allocation.follow_service(service, is_there=new is not None)
        if new is None:
            self.slots.forget(service.id)
        elif old is not None and (new.pending_delete, _attempts(new)) != (old.pending_delete, _attempts(old)):
            # Its tasks go, or another number of them is kept in each slot.
            self._see_to_slots_of(self._store.view.tasks.by_service(new.id))
        self.agenda.mark(ServiceKey(service.id))

    def _follow_cluster(self, old: object, new: object) -> None:
        """Another history limit is applied to every slot."""
        if not isinstance(old, Cluster) or not isinstance(new, Cluster):
            return
        if old.spec.orchestration != new.spec.orchestration:
            self._see_to_slots_of(self._store.view.tasks)

    def _see_to_slots_of(self, tasks: Iterable[Task]) -> None:
        """Their slots are to be looked at, which are taken in a slice at a time."""
        slots = map(self._mark_slot_of, list(tasks))
        self._unseen = slots if self._unseen is None else chain(self._unseen, slots)

    # ------------------------------------------------------------------ tasks without a node

    def next_waiting(self, work: ReconcilePass) -> list[Task]:
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
            looks += 1 if task.node_id or version in versions else 1 + len(self.nodes.infos)
            versions.add(version)
            found.append(task)
        return found

    def wait_on(self, tasks: Iterable[Task]) -> None:
        """Tasks that ``next_waiting`` gave, and that there was no room to look at."""
        self._waiting.update(dict.fromkeys(task.id for task in tasks))

    def needs_of(self, task: Task, view: View) -> Needs:
        """What the task asks of its node, as ``view`` has its spec; nothing when it has none."""
        key = (task.service_id, task.spec_version)
        needs = self._needs.get(key)
        if needs is not None:
            return needs
        version = view.spec_versions.of(*key)
        if version is not None:
            needs = read_needs(version.spec)
            if self._store.view.spec_versions.of(*key) is version:  # else the transaction may yet be refused
                self._needs[key] = needs
            return needs
        service = view.services.get(task.service_id)
        if service is not None and service.spec_version == task.spec_version:
            return read_needs(service.spec)
        return NOTHING_NEEDED


def _attempts(service: Service) -> int:
    return service.spec.task_template.restart_policy.max_attempts


def _is_progress(old: Task, new: Task) -> bool:
    """Whether a task that is to run went on as it should: it takes of its node what it took before."""
    return (
        old.status.state >= TASK_STATE_ASSIGNED
        and not has_ended(new)
        and old.desired_state == new.desired_state
        and old.node_id == new.node_id
    )


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
