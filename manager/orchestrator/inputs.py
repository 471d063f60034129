"""What a look at a whole service goes by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from manager.model.defaults import UpdateRules, update_rules
from manager.model.dirty import DirtyCheck
from manager.model.inputs import MissingOf, NewID, Nodes, SpecOf
from manager.orchestrator import rollout
from manager.orchestrator.slots import Slot, Slots
from proto.objects_pb2 import Service, Task


@dataclass(frozen=True)
class Judging:
    """What a slot is judged by, beside its tasks.

    Attributes:
        rules: of the update, or of the rollback, that is under way or would be.
    """

    service: Service
    rules: UpdateRules
    check: DirtyCheck
    nodes: Nodes
    spec_of: SpecOf
    now: float

    @classmethod
    def of(cls, service: Service, check: DirtyCheck, nodes: Nodes, spec_of: SpecOf, now: float) -> Judging:
        rules = update_rules(service.spec, rollback=rollout.is_rollback(service))
        return cls(service, rules, check, nodes, spec_of, now)


@dataclass(frozen=True)
class ServiceInputs:
    """Everything it goes by.

    Attributes:
        slots: of the service, judged by ``by``.
        tasks_of: every task of a slot.
        task_of: the task of an ID, or None.
        limit: slots to change at most this time; ``look_at_service`` says that there is more to do.
    """

    by: Judging
    slots: Slots
    tasks_of: Callable[[Slot], Sequence[Task]]
    task_of: Callable[[str], Task | None]
    missing_of: MissingOf
    new_id: NewID
    limit: int

    @property
    def service(self) -> Service:
        return self.by.service

    @property
    def now(self) -> float:
        return self.by.now
