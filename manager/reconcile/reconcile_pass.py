"""One pass of the reconcile loop: looks at what is dirty and writes what follows into one transaction.

Orchestrator, allocator and scheduler all work on the same transaction, so that a new task is created, allocated and
placed in one log entry. Nothing here waits, and nothing is kept of a pass but its transaction and the keys it looked
at: when the transaction is refused, they are looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import assert_never

from manager import constants
from manager.allocator.allocate import allocate_node, allocate_service, allocate_task
from manager.model.actions import Action, CreateTask, Outcome, RemoveService, RemoveTask, UpdateService, UpdateTask
from manager.model.inputs import NewID
from manager.model.modes import mode_of
from manager.model.needs import Needs
from manager.model.networks import is_mesh
from manager.model.tasks import copy_task, has_ended, is_live
from manager.model.versions import present_version
from manager.orchestrator import nodes, reaper, rollout
from manager.orchestrator.inputs import ServiceInputs
from manager.orchestrator.modes import ORCHESTRATORS
from manager.orchestrator.restart import SlotRules
from manager.reconcile.agenda import Agenda, Key, NodeKey, ServiceKey, SlotKey
from manager.reconcile.allocation import Allocation, Holder
from manager.reconcile.kept_slots import KeptSlots, spec_in
from manager.store import SERVICES, Working
from proto.objects_pb2 import Cluster, Node, Service, Task
from proto.specs_pb2 import PortProtocol, ServiceSpec


@dataclass
class ReconcilePass:
    """
    Attributes:
        working: the transaction; reads see what the pass has written.
        agenda: where keys are taken from, and where more are marked.
        slots: of the services that were looked at; told of what the pass writes.
        allocation: addresses; told of what the pass writes.
        limit: objects to write at most (a little more when a step has several).
        looks_max: after so many looks nothing more is taken from the agenda.
        needs_of: needs of a task as it was made.
        touched: tasks written and still there, by ID, for the scheduler.
        created, placed: IDs of those among them that are new, and that the scheduler gave to a node.
        removed: tasks that are gone, by ID.
        services_written: services that were changed or removed, by ID.
        nodes_written: nodes that were given something.
        looked_at: keys taken from the agenda.
        looks: how much was looked at so far: keys, and the tasks of nodes and services.
    """

    working: Working
    agenda: Agenda
    slots: KeptSlots
    allocation: Allocation
    now: float
    new_id: NewID
    limit: int
    looks_max: int
    per_node_services: Iterable[str]
    needs_of: Callable[[Task, Working], Needs]
    touched: dict[str, Task] = field(default_factory=dict)
    created: set[str] = field(default_factory=set)
    placed: set[str] = field(default_factory=set)
    removed: dict[str, Task] = field(default_factory=dict)
    services_written: dict[str, Service] = field(default_factory=dict)
    nodes_written: list[Node] = field(default_factory=list)
    looked_at: list[Key] = field(default_factory=list)
    looks: int = 0

    def __post_init__(self) -> None:
        spec = next(iter(self.working.clusters), Cluster()).spec
        self._log_driver = spec.task_defaults.log_driver if spec.task_defaults.HasField("log_driver") else None
        self._retention_limit = (
            spec.orchestration.task_history_retention_limit
            if spec.orchestration.HasField("task_history_retention_limit")
            else constants.TASK_HISTORY_RETENTION_LIMIT
        )
        self._kept: set[tuple[str, int]] = set()
        self._spec_of = spec_in(self.working)

    def run(self) -> None:
        """Look at what is dirty, until that is nothing or the pass is large enough."""
        while self.working.size < self.limit and self.looks < self.looks_max:
            key = self.agenda.pop()
            if key is None:
                return
            self.looked_at.append(key)
            self.looks += 1
            match key:
                case NodeKey():
                    outcome = self._look_at_node(key)
                case SlotKey():
                    outcome = self._look_at_slot(key)
                case ServiceKey():
                    outcome = self._look_at_service(key)
                case _:
                    assert_never(key)
            self.agenda.set_deadline(key, outcome.deadline)

    # ------------------------------------------------------------------ nodes

    def _look_at_node(self, key: NodeKey) -> Outcome:
        node = self.working.nodes.get(key.node_id)
        tasks = list(self.working.tasks.by_node(key.node_id))
        self.looks += len(tasks)
        outcome = nodes.orphan(node, tasks, self.now)
        if node is not None:
            self._give_address(node)
            enforced = nodes.enforce(
                node, tasks, lambda task: self.needs_of(task, self.working), self._placements_of, self.now
            )
            outcome.groups.extend(enforced.groups)
        self._apply(outcome)
        for task in tasks:
            # Of one that is stopping, too: its replacement waits for it only while the node can tell.
            if is_live(task) or not has_ended(task):
                self.mark_slot_of(task)
        for service_id in self.per_node_services:
            self.agenda.mark(SlotKey(service_id, key.node_id))
        return outcome

    def _give_address(self, node: Node) -> None:
        given = allocate_node(node, self.allocation.mesh_network_id(), self.allocation.addresses)
        if given is not None:
            self.working.update(given)
            self.nodes_written.append(given)
            self.working.boundary()

    def _placements_of(self, task: Task) -> list[Needs]:
        """What the task's service asks of its nodes now; and what it asked when the task was made, while an update is
        to bring the task up to date: it waits for its turn, and an update that is paused leaves it alone."""
        service = self.working.services.get(task.service_id)
        own = self.needs_of(task, self.working)
        if service is None or service.pending_delete or task.spec_version == service.spec_version:
            return [own]
        now = self.needs_of(Task(service_id=service.id, spec_version=service.spec_version), self.working)
        return [now, own] if rollout.is_unfinished(service) else [now]

    # ------------------------------------------------------------------ slots

    def _look_at_slot(self, key: SlotKey) -> Outcome:
        service = self.working.services.get(key.service_id)
        tasks = self._tasks_of(key)
        if service is None:
            # Nobody is left to want these tasks.
            outcome = Outcome()
            outcome.groups = [[RemoveTask(task)] for task in tasks]
            self._apply(outcome)
            return outcome
        if service.pending_delete:
            actions = reaper.reap_removed(tasks, self.working.nodes, self.now, self.limit)
            self._apply(Outcome([[action] for action in actions]))
            if len(actions) == self.limit:
                self.agenda.mark(key)
            if not self.working.tasks.any_of_service(service.id):
                self.agenda.mark(ServiceKey(service.id))
            return Outcome()
        outcome = self._reconciled_slot(service, key, tasks)
        self._apply(outcome)
        if outcome.look_at_service:
            self.agenda.mark(ServiceKey(service.id))
        mode = mode_of(service.spec)
        limit = reaper.history_limit(service, self._retention_limit) if mode.served else None
        reaped = reaper.reap_slot(self._tasks_of(key) if outcome.groups else tasks, limit, self.working.nodes)
        if reaped:
            self._apply(Outcome([[action] for action in reaped]))
            if not mode.per_node and not self._tasks_of(key):
                self.agenda.mark(ServiceKey(service.id))
        return outcome

    def _reconciled_slot(self, service: Service, key: SlotKey, tasks: list[Task]) -> Outcome:
        orchestrator = ORCHESTRATORS.get(mode_of(service.spec))
        if orchestrator is None:
            return Outcome()
        rules = SlotRules(service, self.working.nodes, self._spec_of, self.now, self.new_id)
        return orchestrator.reconcile_slot(rules, key.slot, tasks)

    def _tasks_of(self, key: SlotKey) -> list[Task]:
        return list(self.working.tasks.of_slot(key.service_id, key.slot))

    def mark_slot_of(self, task: Task) -> None:
        service = self.working.services.get(task.service_id)
        self.agenda.mark(slot_key(task, service))

    # ------------------------------------------------------------------ services

    def _look_at_service(self, key: ServiceKey) -> Outcome:
        service = self.working.services.get(key.service_id)
        if service is None:
            self._drop_versions(key.service_id, None)
            return Outcome()
        if service.pending_delete:
            # Slot by slot its tasks go, and with the last one the service.
            gone = not self.working.tasks.any_of_service(service.id)
            outcome = Outcome([[RemoveService(service)]] if gone else [])
        else:
            outcome = self._reconciled_service(self._prepared(service))
        self._apply(outcome)
        self._drop_versions(service.id, self.working.services.get(service.id))
        if outcome.look_at_service:
            self.agenda.mark(key)
        return outcome

    def _prepared(self, service: Service) -> Service:
        """The service with its endpoint allocated and its present spec kept as a version."""
        allocated = allocate_service(service, self.allocation.addresses, self._is_taken)
        if allocated is not None:
            self._write_service(allocated)
            service = allocated
        self._keep_version(service)
        self.working.boundary()
        return service

    def _is_taken(self, protocol: PortProtocol.ValueType, number: int) -> bool:
        return any(True for _ in self._publishers(protocol, number))

    def _publishers(self, protocol: PortProtocol.ValueType, number: int) -> Iterator[Service]:
        """The services that publish a port, as asked for or as given; of 0, which is left open, none."""
        for service in self.working.services.publishing(number) if number else ():
            ports = (*service.spec.endpoint_spec.ports, *service.endpoint.ports)
            if any((port.published_port, port.protocol) == (number, protocol) for port in ports):
                yield service

    def _reconciled_service(self, service: Service) -> Outcome:
        orchestrator = ORCHESTRATORS.get(mode_of(service.spec))
        if orchestrator is None:
            return Outcome()
        room = max(self.looks_max - self.looks, 1)
        looked = self.slots.look(service, self.working, self._spec_of, self.now, limit=room)
        self.looks += looked.looks
        if not looked.slots.is_sure:
            return Outcome(look_at_service=True)
        for slot in looked.slots.misplaced:
            self.agenda.mark(SlotKey(service.id, slot))
        return orchestrator.reconcile(
            ServiceInputs(
                by=looked.by,
                slots=looked.slots,
                tasks_of=looked.tasks_of,
                task_of=self.working.tasks.get,
                missing_of=self._missing_of,
                new_id=self.new_id,
                limit=max(self.limit - self.working.size, 1),
            )
        )

    def _missing_of(self, spec: ServiceSpec) -> str:
        missing = next(self.working.missing(SERVICES, Service(spec=spec)), None)
        if missing is not None:
            return f"the {missing[0].name} {missing[1]}, which is gone"
        for port in filter(is_mesh, spec.endpoint_spec.ports):
            for other in self._publishers(port.protocol, port.published_port):
                if other.spec.name != spec.name:
                    return f"port {port.published_port}, which service {other.spec.name} publishes"
        return ""

    def _keep_version(self, service: Service) -> None:
        """Keep the present spec for the tasks that are made from it: nobody else makes versions."""
        if (service.id, service.spec_version) in self._kept:
            return
        self._kept.add((service.id, service.spec_version))
        if self.working.spec_versions.of(service.id, service.spec_version) is None:
            self.working.create(present_version(service))

    def _keep_version_of(self, new: Task) -> None:
        service = self.working.services.get(new.service_id)
        assert service is not None, "tasks are made for services that are there"
        self._keep_version(service)

    def _drop_versions(self, service_id: str, service: Service | None) -> None:
        versions = list(self.working.spec_versions.by_service(service_id))
        in_use = [
            version.spec_version
            for version in versions
            if self.working.tasks.any_of_spec_version(service_id, version.spec_version)
        ]
        for version in reaper.unneeded_versions(service, versions, in_use):
            self.working.remove(version)
            self.working.boundary()

    # ------------------------------------------------------------------ writing

    def _apply(self, outcome: Outcome) -> None:
        for group in outcome.groups:
            for action in group:
                self._perform(action)
            self.working.boundary()

    def _perform(self, action: Action) -> None:
        match action:
            case CreateTask(task):
                self._keep_version_of(task)
                task = self._allocated(self._with_log_driver(task))
                self.working.create(task)
                self.touched[task.id] = task
                self.created.add(task.id)
                self.slots.task_changed(task)
            case UpdateTask(task):
                self.working.update(task)
                self.touched[task.id] = task
                self.slots.task_changed(task)
                self.allocation.put(task)
                if is_live(task) and has_ended(task):
                    self.mark_slot_of(task)
            case RemoveTask(task):
                self.working.remove(task)
                self.touched.pop(task.id, None)
                self.removed[task.id] = task
                self.slots.task_changed(task)
                self.allocation.drop(task)
                if not self.working.tasks.any_of_spec_version(task.service_id, task.spec_version):
                    self.agenda.mark(ServiceKey(task.service_id))
            case UpdateService(service):
                self._write_service(service)
            case RemoveService(service):
                self.working.remove(service)
                self.services_written[service.id] = service
                self.allocation.drop(service)
            case _:
                assert_never(action)

    def _write_service(self, service: Service) -> None:
        self.working.update(service)
        self.services_written[service.id] = service

    def allocate(self, task_id: str) -> None:
        """Try again to give a task what it waits for."""
        task = self.working.tasks.get(task_id)
        if task is None or not is_live(task):
            return
        allocated = self._allocated(task)
        if allocated is not task:
            self.working.update(allocated)
            self.touched[task.id] = allocated
            self.slots.task_changed(allocated)
            self.working.boundary()

    def _allocated(self, task: Task) -> Task:
        service = self.working.services.get(task.service_id)
        return allocate_task(task, service, self._spec_of(task), self.allocation.addresses, self.now)

    def refused(self) -> None:
        """Nothing of it was committed, or not all: what was judged by it is not to be gone by."""
        written: list[Holder] = [*self.touched.values(), *self.removed.values()]
        self.allocation.refused([*written, *self.services_written.values(), *self.nodes_written])
        for service_id in self.services_written:
            self.slots.forget(service_id)
        for task in (*self.touched.values(), *self.removed.values()):
            self.slots.task_changed(task)

    def _with_log_driver(self, task: Task) -> Task:
        """A new task with the cluster's default, if it has one and the spec names none (features A1.22).

        It is kept with the task: another default concerns only tasks made from then on (swarmkit ``NewTask``).
        """
        spec = self._spec_of(task) if self._log_driver is not None else None
        if self._log_driver is None or spec is None or spec.task_template.HasField("log_driver"):
            return task
        with_driver = copy_task(task)
        with_driver.log_driver.CopyFrom(self._log_driver)
        return with_driver


def slot_key(task: Task, service: Service | None) -> SlotKey:
    """The slot a task belongs to."""
    return SlotKey(task.service_id, mode_of(service.spec).slot_of(task) if service is not None else task.slot)
