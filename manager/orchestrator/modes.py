"""What is done for services of each mode (``model.modes``): one row a mode that is served."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from manager.model.actions import Outcome
from manager.model.modes import GLOBAL, REPLICATED, Mode
from manager.orchestrator import global_services, replicated
from manager.orchestrator.inputs import ServiceInputs
from manager.orchestrator.restart import SlotRules
from proto.objects_pb2 import Task

Slot = int | str
"""A slot's number; of a mode with tasks per node, the ID of the node."""


@dataclass(frozen=True, slots=True)
class Orchestrator:
    """How services of a mode are looked at.

    Attributes:
        reconcile_slot: looks at one slot, given every task of it.
        reconcile: looks at the service as a whole.
        slots_of_all: slots that have to be looked at one by one when the service as a whole is.
    """

    reconcile_slot: Callable[[SlotRules, Slot, Sequence[Task]], Outcome]
    reconcile: Callable[[ServiceInputs], Outcome]
    slots_of_all: Callable[[ServiceInputs], Iterable[Slot]]


ORCHESTRATORS: Mapping[Mode, Orchestrator] = {
    REPLICATED: Orchestrator(
        reconcile_slot=lambda rules, _, tasks: replicated.reconcile_numbered(rules, tasks),
        reconcile=replicated.reconcile,
        slots_of_all=lambda inputs: (),
    ),
    GLOBAL: Orchestrator(
        reconcile_slot=lambda rules, node_id, tasks: global_services.reconcile_node(rules, str(node_id), tasks),
        reconcile=global_services.reconcile,
        slots_of_all=global_services.nodes_to_look_at,
    ),
}
