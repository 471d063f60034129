"""What is kept of the slots of one service, so that a look at it costs what changed in it, however many there are.

A slot is judged from its tasks (``SlotFacts``), and again when one of them changes, when the time comes that the
judgement names, or when what it is judged by changes: the spec, the update, the slot's node. The service is looked at by
what the facts add up to: how many slots are occupied, which are stale, how many are at work.

Nothing here is a source of anything. It is all derived, and can be thrown away at any time; from the same tasks at the same
time it comes out the same (``tests/property/test_reconcile.py`` compares).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from manager.model.ordered import Ordered

Slot = int | str
"""A slot's number; of a mode with tasks per node, the ID of the node."""


class Kind(Enum):
    """What an update still has to do with a slot."""

    SETTLED = "settled"
    STALE = "stale"
    """Its tasks are of an older spec."""
    MIXED = "mixed"
    """Old and new are there together, and the new is not as far that the old may go."""
    DOUBLED = "doubled"
    """Old and new are there together, and the old may go."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a slot stands in the update of its service (``update.judge``).

    Attributes:
        order: of stale ones, the smallest are updated first.
        at_work: it is being worked on: the parallelism counts it.
        under_way: a task that the rollout made has neither run nor ended yet, and the update waits for it.
        settled_at: when it was decided how the last of the rollout's tasks fares; None once that is too long ago to count.
        late: IDs of tasks of the rollout that did not run in time.
    """

    kind: Kind = Kind.SETTLED
    order: int = 0
    at_work: bool = False
    under_way: bool = False
    settled_at: float | None = None
    late: tuple[str, ...] = ()


SETTLED = Standing()
"""Nearly every slot, nearly always."""


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """One slot.

    Attributes:
        occupied: it has a live task, or has finished.
        runs: a live task of it runs.
        node_id: of a replicated service, the node of its one task; "" when there is no one such node.
        to_clear: it is not occupied, and there are tasks of it that are still to be removed.
        misplaced: of a global service: its node wants a task and has none, or the other way round.
        standing: where it stands in the update.
        by_version: the number of the spec's version had a part in it, and not its content alone.
        until: seconds since the epoch at which it is to be judged again though nothing changes, or None.
    """

    occupied: bool
    runs: bool = False
    node_id: str = ""
    to_clear: bool = False
    misplaced: bool = False
    standing: Standing = SETTLED
    by_version: bool = False
    until: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether another version of the spec that asks for the same of tasks leaves it as it is."""
        by_content = self.standing is SETTLED and not self.by_version
        return self.occupied and not self.misplaced and self.until is None and by_content


class Slots:
    """
    Attributes:
        occupied: how many are.
        stale: the stale ones, in the order in which they are to be updated.
        doubled, to_clear, misplaced, late: the slots that are, in the order in which they were judged.
        mixed: how many have old and new tasks together, those in ``doubled`` included.
        at_work, under_way: how many are.
    """

    def __init__(self) -> None:
        self.occupied = self.mixed = self.at_work = self.under_way = 0
        self.stale: Ordered[Slot, tuple[int, Slot]] = Ordered()
        self.doubled: dict[Slot, None] = {}
        self.to_clear: dict[Slot, None] = {}
        self.misplaced: dict[Slot, None] = {}
        self.late: dict[Slot, None] = {}
        self._facts: dict[Slot, SlotFacts] = {}
        self._unsure: dict[Slot, None] = {}
        self._special: dict[Slot, None] = {}
        self._until: Ordered[Slot, float] = Ordered()
        self._settled: Ordered[Slot, float] = Ordered()
        self._holes: list[int] = []
        self._next_free = 1
        self._leaving: _Leaving | None = None

    # ------------------------------------------------------------------ keeping up

    def doubt(self, slots: Iterable[Slot]) -> None:
        """These have to be judged again."""
        self._unsure.update(dict.fromkeys(slots))

    def doubt_special(self) -> None:
        """All that are not plain have to be judged again."""
        self.doubt(self._special)

    def doubt_due(self, now: float) -> None:
        """Those whose time has come have to be judged again."""
        while (first := self._until.first()) is not None and first[0] <= now:
            self.doubt((first[1],))
            self._until.pop()

    @property
    def is_sure(self) -> bool:
        """Whether every slot is judged as it is now; only then do the numbers count."""
        return not self._unsure

    def judge(self, facts_of: Callable[[Slot], SlotFacts | None], limit: int) -> int:
        """Judge slots that have to be, ``limit`` at most; returns how many.

        Args:
            facts_of: None of a slot of which there is nothing (any more).
        """
        judged = 0
        while self._unsure and judged < limit:
            slot, _ = self._unsure.popitem()
            self.put(slot, facts_of(slot))
            judged += 1
        return judged

    def put(self, slot: Slot, facts: SlotFacts | None) -> None:
        """Take over what is known of a slot now."""
        old = self._facts.get(slot)
        if old is not None and facts is not None and old.is_plain and facts.is_plain:
            self._facts[slot] = facts  # as nearly always: nothing that is counted or in an order is another
            if self._leaving is not None:
                self._leaving.put(slot, facts)
            return
        if old is not None:
            self._count(slot, old, -1)
        if facts is not None:
            self._facts[slot] = facts
            self._count(slot, facts, 1)
        elif old is not None:
            del self._facts[slot]
        was, known = old or _NOTHING, facts or _NOTHING
        self.stale.set(slot, (known.standing.order, slot) if known.standing.kind is Kind.STALE else None)
        settled_at = known.standing.settled_at
        self._settled.set(slot, -settled_at if settled_at is not None else None)
        self._until.set(slot, known.until)
        if was.occupied and not known.occupied and isinstance(slot, int) and slot < self._next_free:
            heapq.heappush(self._holes, slot)
        if self._leaving is not None:
            self._leaving.put(slot, known)

    def _count(self, slot: Slot, facts: SlotFacts, sign: int) -> None:
        standing = facts.standing
        self.occupied += sign * facts.occupied
        self.mixed += sign * (standing.kind in (Kind.MIXED, Kind.DOUBLED))
        self.at_work += sign * standing.at_work
        self.under_way += sign * standing.under_way
        for is_in, those in (
            (standing.kind is Kind.DOUBLED, self.doubled),
            (facts.to_clear, self.to_clear),
            (facts.misplaced, self.misplaced),
            (bool(standing.late), self.late),
            (not facts.is_plain, self._special),
        ):
            if is_in and sign > 0:
                those[slot] = None
            elif is_in:
                del those[slot]

    # ------------------------------------------------------------------ asking

    def __iter__(self) -> Iterator[Slot]:
        """Every slot of which something is known."""
        return iter(self._facts)

    def facts(self, slot: Slot) -> SlotFacts | None:
        return self._facts.get(slot)

    def next_change(self) -> float | None:
        """Seconds since the epoch at which one is to be judged again though nothing changes, or None."""
        first = self._until.first()
        return first[0] if first is not None else None

    def last_settled_at(self) -> float | None:
        """The latest ``settled_at``, or None."""
        first = self._settled.first()
        return -first[0] if first is not None else None

    def free(self, wanted: int) -> list[int]:
        """The lowest ``wanted`` numbers that are not occupied."""
        found: list[int] = []
        holes: set[int] = set()
        while self._holes and len(found) < wanted:
            slot = heapq.heappop(self._holes)
            if not self._is_occupied(slot) and slot not in holes:
                holes.add(slot)
                found.append(slot)
        for slot in found:
            heapq.heappush(self._holes, slot)
        beyond = self._next_free
        while self._is_occupied(beyond):
            beyond += 1
        self._next_free = beyond
        while len(found) < wanted:
            if not self._is_occupied(beyond):
                found.append(beyond)
            beyond += 1
        return found

    def _is_occupied(self, slot: int) -> bool:
        facts = self._facts.get(slot)
        return facts is not None and facts.occupied

    def leaving(self, surplus: int) -> list[Slot]:
        """The occupied slots to give up, in order (``_Leaving``)."""
        if self._leaving is None:
            self._leaving = _Leaving()
            for slot, facts in self._facts.items():
                self._leaving.put(slot, facts)
        return self._leaving.firsts(surplus)

    def differences(self, other: Slots) -> Iterator[str]:
        """In what another is not as this one, to be read by people; both have to be sure."""
        for slot in self._facts.keys() | other._facts.keys():
            if self._facts.get(slot) != other._facts.get(slot):
                yield f"slot {slot}: {self._facts.get(slot)} is not {other._facts.get(slot)}"
        for name in ("occupied", "mixed", "at_work", "under_way", "doubled", "to_clear", "misplaced", "late", "stale"):
            if getattr(self, name) != getattr(other, name):
                yield f"{name}: {getattr(self, name)} is not {getattr(other, name)}"
        for mine, theirs in zip(self._orders(), other._orders(), strict=True):
            if mine != theirs:
                yield f"{mine} is not {theirs}"

    def _orders(self) -> Iterator[object]:
        """Everything that is told in an order."""
        yield self.next_change()
        yield self.last_settled_at()
        yield self.stale.firsts(len(self.stale))
        if all(isinstance(slot, int) for slot in self._facts):
            yield self.free(3)
            yield self.leaving(self.occupied)


_NOTHING = SlotFacts(occupied=False)


class _Leaving:
    """Occupied slots in the order in which they are given up (A7.14).

    First those that have no single node (doubly occupied, or not placed yet), then from the nodes that bear most of the
    service, what does not run before what does, high slot numbers before low ones.
    """

    __slots__ = ("_nodes", "_of", "_sizes")

    def __init__(self) -> None:
        self._of: dict[Slot, str] = {}
        self._nodes: dict[str, Ordered[int, tuple[bool, int]]] = {}
        self._sizes: Ordered[str, tuple[float, bool, int]] = Ordered()

    def put(self, slot: Slot, facts: SlotFacts) -> None:
        """Take over what is known of a slot now."""
        assert isinstance(slot, int), "nodes are not given up by number"
        before = self._of.pop(slot, None)
        if before is not None and not (facts.occupied and facts.node_id == before):
            self._nodes[before].set(slot, None)
            self._rank(before)
        if facts.occupied:
            self._of[slot] = facts.node_id
            self._nodes.setdefault(facts.node_id, Ordered()).set(slot, (facts.runs, -slot))
            self._rank(facts.node_id)

    def _rank(self, node_id: str) -> None:
        slots = self._nodes[node_id]
        worst = slots.first()
        if worst is None:
            del self._nodes[node_id]
            self._sizes.set(node_id, None)
        else:
            self._sizes.set(node_id, (-float(len(slots)) if node_id else -float("inf"), *worst[0]))

    def firsts(self, wanted: int) -> list[Slot]:
        """The first ``wanted``, in order; they stay."""
        taken: list[tuple[str, tuple[bool, int], int]] = []
        while len(taken) < wanted and (first := self._sizes.first()) is not None:
            node_id = first[1]
            worst = self._nodes[node_id].pop()
            assert worst is not None, "a node without slots has no rank"
            taken.append((node_id, *worst))
            self._rank(node_id)
        for node_id, value, slot in taken:
            self._nodes.setdefault(node_id, Ordered()).set(slot, value)
            self._rank(node_id)
        return [slot for _, _, slot in taken]
