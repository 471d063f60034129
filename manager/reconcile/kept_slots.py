"""The slots of the services that were looked at (``orchestrator.slots``), kept up with the store.

They follow the store's changes, and what a pass writes before it is committed: the pass tells of it as it writes, and
again when it is refused. So a judgement is always of what the reader at hand sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from manager.model.defaults import UpdateRules
from manager.model.dirty import Difference, DirtyCheck
from manager.model.inputs import SpecOf
from manager.model.modes import Mode, mode_of
from manager.orchestrator.inputs import Judging
from manager.orchestrator.modes import ORCHESTRATORS
from manager.orchestrator.slots import Slot, Slots
from manager.store import View
from proto.objects_pb2 import Service, Task
from proto.specs_pb2 import ServiceSpec


@dataclass(frozen=True)
class Looked:
    """A service's slots, as they were just found.

    Attributes:
        looks: how many were judged.
    """

    by: Judging
    slots: Slots
    tasks_of: Callable[[Slot], Sequence[Task]]
    looks: int


@dataclass(frozen=True, slots=True)
class _Basis:
    """What of the service its slots were judged by, beside the content of its spec."""

    rules: UpdateRules
    rollout_version: int
    constraints: tuple[str, ...]


@dataclass
class _Kept:
    """One service.

    Attributes:
        service: as its slots were judged by; None before the first time.
        specs_differ: how each version of its spec differs from that one.
    """

    mode: Mode
    slots: Slots = field(default_factory=Slots)
    service: Service | None = None
    basis: _Basis | None = None
    specs_differ: dict[int, Difference] = field(default_factory=dict)
    judged_at: float = 0.0

    def follow(self, service: Service, check: DirtyCheck, by: Judging) -> bool:
        """The service is this now. Returns whether all its slots have to be judged again; else those that do are doubted."""
        constraints = tuple(service.spec.task_template.placement.constraints) if self.mode.per_node else ()
        basis = _Basis(by.rules, service.rollout.spec_version, constraints)
        before, self.service, self.basis = (self.service, self.basis), service, basis
        was, was_by = before
        if was is None or was_by is None:
            return True
        if was.spec_version == service.spec_version:
            return basis != was_by
        if not check.is_same(was.spec_version) or constraints != was_by.constraints:
            return True
        # Another number of replicas, other labels: what was dirty is, and no task is of the new version yet that an update
        # could wait for.
        self.slots.doubt_special()
        return False


class KeptSlots:
    """The slots of each service that was looked at."""

    def __init__(self) -> None:
        self._services: dict[str, _Kept] = {}

    def look(self, service: Service, view: View, spec_of: SpecOf, now: float, *, limit: int) -> Looked:
        """A service's slots, judged as ``view`` has it; where that is more than ``limit`` of work, as far as it went.

        Args:
            service: of a mode that is served.
        """
        mode = mode_of(service.spec)
        kept = self._services.get(service.id)
        if kept is None:
            kept = self._services[service.id] = _Kept(mode)
        if kept.service is None or kept.service.spec_version != service.spec_version:
            kept.specs_differ = {}
        check = DirtyCheck(service, view.spec_versions, kept.specs_differ)
        by = Judging.of(service, check, view.nodes, spec_of, now)
        everything = now < kept.judged_at  # the clock was set back: waits that were over may go on
        if service is not kept.service:
            everything |= kept.follow(service, check, by)
        if everything:
            kept.slots.doubt(kept.slots)
            kept.slots.doubt(_all_slots(service, view, mode))
        kept.slots.doubt_due(now)
        kept.judged_at = now
        facts_of = ORCHESTRATORS[mode].facts_of

        def tasks_of(slot: Slot) -> Sequence[Task]:
            return list(view.tasks.of_slot(service.id, slot))

        looks = kept.slots.judge(lambda slot: facts_of(by, slot, tasks_of(slot)), limit)
        return Looked(by, kept.slots, tasks_of, looks)

    def task_changed(self, task: Task) -> None:
        """It was made, changed or removed."""
        kept = self._services.get(task.service_id)
        if kept is not None:
            kept.slots.doubt((kept.mode.slot_of(task),))

    def node_changed(self, node_id: str, service_id: str) -> None:
        """A node was made, changed or removed, on which a service with tasks per node may want one."""
        kept = self._services.get(service_id)
        if kept is not None:
            kept.slots.doubt((node_id,))

    def forget(self, service_id: str) -> None:
        """The service is gone, or what its slots were judged by was never committed."""
        self._services.pop(service_id, None)

    def differences(self, view: View, now: float) -> Iterator[str]:
        """In what they are not as they are when they are derived from ``view`` anew, to be read by people.

        Every slot is judged for it that had to be.
        """
        spec_of = spec_in(view)
        for service_id in list(self._services):
            service = view.services.get(service_id)
            if service is None or service.pending_delete:
                continue
            size = len(view.tasks) + len(view.nodes) + 1
            mine = self.look(service, view, spec_of, now, limit=size).slots
            fresh = KeptSlots().look(service, view, spec_of, now, limit=size).slots
            yield from (f"service {service_id}: {difference}" for difference in mine.differences(fresh))


def spec_in(view: View) -> SpecOf:
    """The specs that tasks were made from, as a view has them."""

    def spec_of(task: Task) -> ServiceSpec | None:
        version = view.spec_versions.of(task.service_id, task.spec_version)
        if version is not None:
            return version.spec
        service = view.services.get(task.service_id)
        return service.spec if service is not None and service.spec_version == task.spec_version else None

    return spec_of


def _all_slots(service: Service, view: View, mode: Mode) -> Iterator[Slot]:
    for task in view.tasks.by_service(service.id):
        yield mode.slot_of(task)
    if mode.per_node:
        for node in view.nodes:
            yield node.id
