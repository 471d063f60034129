"""What silence means: which hosts to look at, and which nodes are dead, without clock or I/O (A3.01, A3.02).

A FIN or RST is sent by a kernel that lives: a broken session says that a daemon ended, not that its host and its
containers did. A host that lost its power says nothing at all. So every doubt (a session that ended, a heartbeat that
is late, a connection whose peer's kernel answers no more) is a reason to *look*: the caller asks the host's kernel, by
any connection attempt to it, and tells what came.

- It answered: the daemon has the full grace, ``HeartbeatBook``'s; and is looked at again, as the host may die yet.
- It was silent, and is known to answer when it is well: the node is dead now.
- It was silent, and was never known to answer (a firewall drops what we ask): silence means nothing, the grace holds.
- Another manager had an answer: the way from here is broken, not the host; the grace holds.
- A quarter of all nodes are silent at once: then more likely it is this manager's network that is broken, so they are dead
  only when another manager was met with the same silence; otherwise the grace holds. Where others reach them, they
  have one more grace, while this manager gives the lead away (``Findings.is_cut_off``).

Nothing here lets a node live longer by its own doing than three periods after its last word: an answer to a look
moves no deadline.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from manager.constants import HEARTBEAT_GRACE_FACTOR, HEARTBEAT_PERIOD_S
from manager.dispatcher.alarms import Alarms
from manager.dispatcher.heartbeat import HeartbeatBook

NOTICE_PERIODS = 1.2
"""A heartbeat that is later than that is missed. Agents on a busy host are late now and then; a look costs little."""

LOOK_AGAIN_S = 2.0
"""From the end of a look to the next one at a host that is still suspected."""

KNOWN_FOR_S = 300.0
"""How old an answer may be for silence to mean anything: somebody may have set up a firewall since."""

TOGETHER_MIN = 2
"""With fewer nodes silent, a dead host is the simpler explanation, however small the cluster."""

TOGETHER_PART = 4
"""With that part of all nodes silent, a fault between them and this manager is the simpler one."""


@dataclass(frozen=True, slots=True)
class Look:
    """A look at a node's host, on account of one doubt: what it finds says nothing about a later one."""

    node_id: str
    doubt: int


@dataclass(slots=True)
class _Suspect:
    """One node in doubt.

    Attributes:
        doubt: its number.
        since_s: when the doubt arose.
        in_session: its session is open; else only a new one ends the doubt.
        is_silent: the last look ended without an answer.
        is_vouched_for, is_denied: what other managers found last; neither, when none was there to ask.
        is_spared: it was due and had one more grace.
    """

    doubt: int
    since_s: float
    in_session: bool = True
    is_silent: bool = False
    is_vouched_for: bool = False
    is_denied: bool = False
    is_spared: bool = False


@dataclass(slots=True)
class Findings:
    """What follows now.

    Attributes:
        looks: hosts to look at; each look is to end in ``answered``, ``silent`` or ``failed``.
        dead: nodes that are down, the longest overdue first; watched no longer.
        is_cut_off: a quarter of the nodes are out of reach from here and not from elsewhere: somebody else should lead.
    """

    looks: list[Look] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    is_cut_off: bool = False


class Suspicions:
    """Those in doubt of all nodes that are believed alive. Times are seconds of one monotonic clock."""

    def __init__(self, book: HeartbeatBook) -> None:
        """
        Args:
            book: until when nodes are believed. What concerns a node's doubts as well is told here, and goes into it.
        """
        self._book = book
        self._suspects: dict[str, _Suspect] = {}
        self._doubts = 0
        self._notices, self._looks = Alarms(), Alarms()
        self._answered_s: dict[str, float] = {}
        self._missed: set[str] = set()
        self._unanswered: set[str] = set()
        self._others_reach: set[str] = set()
        """Of those that were silent here."""
        self._condemned: dict[str, None] = {}  # in order

    def __contains__(self, node_id: str) -> bool:
        """Whether the node is in doubt."""
        return node_id in self._suspects

    # ------------------------------------------------------------ what the agents do

    def expect(self, node_id: str, now: float, *, within_s: float, period_s: float = HEARTBEAT_PERIOD_S) -> None:
        """See ``HeartbeatBook.expect``. No heartbeat of it can be missed yet."""
        self._clear(node_id)
        self._notices.drop(node_id)
        self._book.expect(node_id, now, within_s=within_s, period_s=period_s)

    def register(self, node_id: str, now: float, *, period_s: float) -> None:
        """A session begins, with that period told to the agent."""
        self._clear(node_id)
        self._book.register(node_id, now, period_s=period_s)
        self._notices.set(node_id, now + NOTICE_PERIODS * period_s)

    def beat(self, node_id: str, now: float) -> None:
        """The agent said something in its session; of a node that is not watched it means nothing."""
        if node_id in self._book:
            self._clear(node_id)
            self._book.beat(node_id, now)
            self._notices.set(node_id, now + NOTICE_PERIODS * self._book.period_s(node_id))

    def bytes_came(self, node_id: str, at_s: float) -> None:
        """See ``HeartbeatBook.bytes_came``: while this manager is late. Of a node that is not watched it means nothing."""
        if node_id not in self._book:
            return
        self._book.bytes_came(node_id, at_s)
        period_s = self._book.period_s(node_id)
        notice_s = self._notices.get(node_id)
        if notice_s is not None and notice_s < at_s + NOTICE_PERIODS * period_s:
            self._notices.set(node_id, at_s + NOTICE_PERIODS * period_s)

    def closed(self, node_id: str, now: float, *, grace_s: float) -> None:
        """The session ended, in order or not. Unless its host was in doubt already, that is a word of its kernel.

        Args:
            grace_s: what the daemon has then to come back.
        """
        if node_id not in self._book:
            return
        if node_id not in self._suspects:
            self._book.grant(node_id, now + grace_s)
        self._notices.drop(node_id)
        self._doubt(node_id, now).in_session = False

    def forget(self, node_id: str) -> None:
        """The node was removed."""
        self._release(node_id)
        self._answered_s.pop(node_id, None)
        self._missed.discard(node_id)
        self._book.forget(node_id)

    # ------------------------------------------------------------ what else is heard

    def quiet(self, node_id: str, now: float) -> None:
        """The kernel at the other end of the session's connection has stopped to acknowledge."""
        if node_id in self._book:
            self._doubt(node_id, now)

    def heard(self, node_id: str) -> None:
        """It does acknowledge."""
        suspect = self._suspects.get(node_id)
        if suspect is not None and suspect.in_session:
            self._clear(node_id)

    def lost(self, node_id: str, now: float) -> None:
        """Raft, which reaches this manager where it looks, does not hear it, and its agent has not come to this leader."""
        if node_id in self._book:
            self._answered_s[node_id] = now
            self._doubt(node_id, now).in_session = False

    def learned(self, node_id: str, now: float, *, answers: bool) -> None:
        """Whether the host answered while all was well."""
        if node_id in self._suspects:
            return  # not well any more
        if answers:
            self._answered_s[node_id] = now
            self._missed.discard(node_id)
        elif node_id in self._missed:
            self._answered_s.pop(node_id, None)
        else:
            self._missed.add(node_id)  # it may have died just now, and then an answer was not to be had

    # ------------------------------------------------------------ what looks find

    def answered(self, look: Look, now: float) -> None:
        """The host answered."""
        if (suspect := self._of(look)) is None:
            return
        self._answered_s[look.node_id] = now
        suspect.is_silent = False
        self._unanswered.discard(look.node_id)
        self._compare(look.node_id, suspect)
        self._looks.set(look.node_id, now + LOOK_AGAIN_S)

    def silent(self, look: Look, now: float) -> None:
        """The host did not answer."""
        if (suspect := self._of(look)) is None:
            return
        suspect.is_silent = True
        self._unanswered.add(look.node_id)
        self._compare(look.node_id, suspect)
        self._looks.set(look.node_id, now + LOOK_AGAIN_S)
        self._judge(look.node_id, suspect)

    def failed(self, look: Look, now: float) -> None:
        """Nothing could be asked: this manager stood still, has no descriptors, no route, or does not know where."""
        if self._of(look) is not None:
            self._unanswered.discard(look.node_id)
            self._looks.set(look.node_id, now + LOOK_AGAIN_S)

    def elsewhere(self, look: Look, *, answered: bool) -> None:
        """What other managers met with that looked, too: an answer to any of them counts."""
        if (suspect := self._of(look)) is None:
            return
        suspect.is_vouched_for, suspect.is_denied = answered, not answered
        self._compare(look.node_id, suspect)
        if answered:
            self._condemned.pop(look.node_id, None)
        else:
            self._judge(look.node_id, suspect)

    # ------------------------------------------------------------ time

    def tick(self, now: float) -> Findings:
        """What follows from what was told and from the time."""
        found = Findings()
        for node_id in self._notices.due(now):
            self._doubt(node_id, now)
        found.looks = [Look(node_id, self._suspects[node_id].doubt) for node_id in self._looks.due(now)]
        found.is_cut_off = self._is_cut_off()
        for node_id in self._book.due(now):
            if found.is_cut_off and self._is_spared(node_id):
                self._book.expect(node_id, now, within_s=HEARTBEAT_GRACE_FACTOR * self._book.period_s(node_id))
            else:
                found.dead.append(node_id)
        found.dead += [node_id for node_id in self._condemned if node_id in self._book]
        for node_id in found.dead:
            self._release(node_id)
        return found

    def deadline(self) -> float | None:
        """When to call ``tick`` next, perhaps a little early, unless something is told before; None: nobody is watched."""
        times = [self._book.deadline(), self._notices.first_s(), self._looks.first_s()]
        return min((at_s for at_s in times if at_s is not None), default=None)

    # ------------------------------------------------------------ decisions

    def _judge(self, node_id: str, suspect: _Suspect) -> None:
        """Dead before its time?"""
        if not suspect.is_silent or suspect.is_vouched_for or not self._is_known(node_id, suspect):
            return
        if suspect.is_denied or not self._silent_together():
            self._condemned[node_id] = None

    def _is_spared(self, node_id: str) -> bool:
        """Whether a node whose time is up has one more grace."""
        suspect = self._suspects.get(node_id)
        if suspect is None or suspect.is_spared or not (suspect.is_silent and suspect.is_vouched_for):
            return False
        suspect.is_spared = True
        return True

    def _silent_together(self) -> bool:
        """Whether so many are silent that this manager doubts itself."""
        return self._is_many(len(self._unanswered))

    def _is_cut_off(self) -> bool:
        return self._is_many(len(self._others_reach))

    def _compare(self, node_id: str, suspect: _Suspect) -> None:
        """What was found here with what was found elsewhere."""
        if suspect.is_silent and suspect.is_vouched_for:
            self._others_reach.add(node_id)
        else:
            self._others_reach.discard(node_id)

    def _is_many(self, count: int) -> bool:
        return count >= TOGETHER_MIN and TOGETHER_PART * count >= len(self._book)

    def _is_known(self, node_id: str, suspect: _Suspect) -> bool:
        answered_s = self._answered_s.get(node_id)
        return answered_s is not None and suspect.since_s - answered_s <= KNOWN_FOR_S

    def _doubt(self, node_id: str, now: float) -> _Suspect:
        suspect = self._suspects.get(node_id)
        if suspect is None:
            self._doubts += 1
            suspect = self._suspects[node_id] = _Suspect(self._doubts, now)
            self._unanswered.add(node_id)  # until it answers, which takes a living host no time
            self._looks.set(node_id, now)
        return suspect

    def _of(self, look: Look) -> _Suspect | None:
        """Whom the look was for, if it is in the same doubt still."""
        suspect = self._suspects.get(look.node_id)
        return suspect if suspect is not None and suspect.doubt == look.doubt else None

    def _clear(self, node_id: str) -> None:
        if self._suspects.pop(node_id, None) is not None:
            self._unanswered.discard(node_id)
            self._others_reach.discard(node_id)
            self._looks.drop(node_id)
            self._condemned.pop(node_id, None)

    def _release(self, node_id: str) -> None:
        self._clear(node_id)
        self._notices.drop(node_id)
        self._book.release(node_id)
