"""What is done for services of each mode (``model.modes``): one row a mode that is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from manager.model.actions import Outcome
from manager.model.modes import GLOBAL, REPLICATED, Mode
from manager.orchestrator import global_services, replicated
from manager.orchestrator.inputs import Judging, ServiceInputs
from manager.orchestrator.restart import SlotRules
from manager.orchestrator.slots import Slot, SlotFacts
from proto.objects_pb2 import Task


@dataclass(frozen=True, slots=True)
class Orchestrator:
    """How services of a mode are looked at.

    Attributes:
        reconcile_slot: looks at one slot, given every task of it.
        facts_of: judges one slot, given every task of it.
        reconcile: looks at the service as a whole, by what its slots were judged.
    """

    reconcile_slot: Callable[[SlotRules, Slot, Sequence[Task]], Outcome]
    facts_of: Callable[[Judging, Slot, Sequence[Task]], SlotFacts | None]
    reconcile: Callable[[ServiceInputs], Outcome]


ORCHESTRATORS: Mapping[Mode, Orchestrator] = {
    REPLICATED: Orchestrator(
        reconcile_slot=lambda rules, _, tasks: replicated.reconcile_numbered(rules, tasks),
        facts_of=replicated.facts_of,
        reconcile=replicated.reconcile,
    ),
    GLOBAL: Orchestrator(
        reconcile_slot=lambda rules, node_id, tasks: global_services.reconcile_node(rules, str(node_id), tasks),
        facts_of=global_services.facts_of,
        reconcile=global_services.reconcile,
    ),
}
