"""Is a history of concurrent operations on one object linearizable? A Wing-Gong-Lowe checker.

Used by the simulation and by the multi-host tests. One object (key) at a time: linearizability is local
(Herlihy and Wing, 1990, theorem 1), and the search is exponential in the number of concurrent clients: keep
at most about ten on a key.

Reference: Gavin Lowe, "Testing for linearizability" (2017), section 4: depth-first search over the order in
which pending operations take effect, remembering (operations done, state) pairs that led nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass


class Unknown:
    """The result of an operation whose client never heard: it may take effect at any later time, or never."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = Unknown()


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of one client.

    Attributes:
        invoked, returned: times on one clock; ``returned`` is ignored if the result is ``UNKNOWN``.
        input, output: as the model understands them.
    """

    client: str
    invoked: float
    returned: float
    input: object
    output: object


Model = Callable[[Hashable, object, object], tuple[bool, Hashable]]
"""(state, input, output) -> (could the object answer so in this state?, next state)."""


def register_model(state: Hashable, call: object, output: object) -> tuple[bool, Hashable]:
    """A register: ``("write", v)``, ``("read",)`` -> v, ``("cas", old, new)`` -> bool."""
    match call:
        case ("write", value):
            return True, value
        case ("read",):
            return output is UNKNOWN or output == state, state
        case ("cas", old, new):
            done = state == old
            return output is UNKNOWN or output == done, new if done else state
    raise ValueError(f"not a register operation: {call!r}")


def check(history: Sequence[Operation], *, model: Model = register_model, initial: Hashable = None) -> bool:
    """True if some order of the operations respects real time and the model.

    Args:
        history: in any order.
        initial: the state before all of them.
    """
    operations = sorted(history, key=lambda operation: operation.invoked)
    ends = [float("inf") if op.output is UNKNOWN else op.returned for op in operations]
    required = sum(1 << number for number, op in enumerate(operations) if op.output is not UNKNOWN)
    dead: set[tuple[int, Hashable]] = set()
    stack: list[tuple[int, Hashable]] = [(0, initial)]
    while stack:
        done, state = stack.pop()
        if done & required == required:
            return True
        if (done, state) in dead:
            continue
        dead.add((done, state))
        # An operation may come next if it was invoked before the first return among those not done yet.
        first_end = min(end for number, end in enumerate(ends) if not done >> number & 1)
        for number, operation in enumerate(operations):
            if operation.invoked > first_end:
                break
            if not done >> number & 1:
                possible, after = model(state, operation.input, operation.output)
                if possible:
                    stack.append((done | 1 << number, after))
    return False
