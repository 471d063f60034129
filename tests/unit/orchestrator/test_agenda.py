"""The agenda: marks come back once, deadlines replace each other."""

from __future__ import annotations

from manager.reconcile.agenda import Agenda, NodeKey, ServiceKey, SlotKey


def test_marks_come_back_once_nodes_first() -> None:
    agenda = Agenda()
    for key in (ServiceKey("s"), SlotKey("s", 1), NodeKey("n"), SlotKey("s", 1)):
        agenda.mark(key)
    assert [agenda.pop() for _ in range(4)] == [NodeKey("n"), SlotKey("s", 1), ServiceKey("s"), None]
    assert not agenda


def test_a_deadline_replaces_the_one_before() -> None:
    agenda, key = Agenda(), SlotKey("s", 1)
    agenda.set_deadline(key, 10.0)
    agenda.set_deadline(key, 20.0)
    assert agenda.next_deadline() == 20.0
    agenda.mark_due(15.0)
    assert not agenda
    agenda.mark_due(20.0)
    assert agenda.pop() == key
    assert agenda.next_deadline() is None


def test_a_deadline_can_be_taken_back() -> None:
    agenda = Agenda()
    agenda.set_deadline(SlotKey("s", 1), 10.0)
    agenda.set_deadline(SlotKey("s", "node"), 5.0)
    agenda.set_deadline(SlotKey("s", "node"), None)
    assert agenda.next_deadline() == 10.0
    agenda.mark_due(100.0)
    assert agenda.pop() == SlotKey("s", 1)
    assert agenda.pop() is None


def test_the_same_deadline_twice_is_due_once() -> None:
    agenda, key = Agenda(), ServiceKey("s")
    agenda.set_deadline(key, 5.0)
    agenda.set_deadline(key, 6.0)
    agenda.set_deadline(key, 5.0)
    agenda.mark_due(5.0)
    assert agenda.pop() == key
    agenda.mark_due(10.0)
    assert agenda.pop() is None
