"""The deterministic half: the same log gives the same bytes, snapshots give the state back or nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from manager.store import NODES, TASKS, SnapshotError, StoredObject, Working
from manager.store.encoding import encode_create
from manager.store.machine import TRANSACTION_IDS_KEPT, Machine
from manager.store.mutation import MutationDetector
from proto.objects_pb2 import Node, Service, Task
from proto.store_pb2 import SnapshotHeader, StoreAction, StoreObject, Transaction


def recorded_log(seed: int = 7, entries: int = 400) -> list[bytes]:
    """A log as a busy cluster writes it, refused entries included."""
    rng = random.Random(seed)
    machine, log = Machine(), []
    for number in range(1, entries + 1):
        working = machine.begin()
        for _ in range(rng.randint(1, 4)):
            _write_something(working, rng, number)
        transaction = Transaction(id=f"tx-{number}", actions=working.actions)
        transaction.proposed_at.seconds = 1_000 + number
        log.append(transaction.SerializeToString())
        if rng.random() < 0.1:
            log.append(log[rng.randrange(len(log))])
        machine.apply(number, log[-1])
    return log


def _write_something(working: Working, rng: random.Random, number: int) -> None:
    tasks = list(working.tasks)
    choice = rng.random()
    if choice < 0.5 or not tasks:
        task = Task(id=f"t{number}-{rng.getrandbits(40)}", service_id=f"s{rng.randint(1, 3)}", slot=rng.randint(1, 9))
        working.create(task)
    elif choice < 0.8:
        task = Task()
        task.CopyFrom(rng.choice(tasks))
        task.node_id = f"n{rng.randint(1, 5)}"
        working.update(task)
    elif choice < 0.9:
        node = Node(id=f"n{number}-{rng.getrandbits(20)}")
        for label in range(rng.randint(0, 5)):
            node.spec.labels[f"label-{rng.getrandbits(16)}"] = str(label)
        working.create(node)
    else:
        working.remove(rng.choice(tasks))


def replayed(log: list[bytes], machine: Machine | None = None, start: int = 1) -> Machine:
    machine = machine or Machine()
    for index, data in enumerate(log, start=start):
        machine.apply(index, data)
    return machine


def snapshot_of(machine: Machine) -> bytes:
    return b"".join(machine.snapshot()())


def test_a_log_replayed_twice_gives_the_same_bytes() -> None:
    log = recorded_log()
    first, second = replayed(log), replayed(log, Machine(MutationDetector()))
    assert snapshot_of(first) == snapshot_of(second)
    assert len(first.view.tasks) > 50


def test_a_snapshot_and_the_rest_of_the_log_give_the_same_bytes() -> None:
    log = recorded_log()
    whole = replayed(log)
    half = replayed(log[:150])
    other = replayed([])
    other.load([snapshot_of(half)], 150)()
    assert snapshot_of(replayed(log[150:], other, start=151)) == snapshot_of(whole)


@pytest.mark.parametrize("size_bytes", [1, 7, 1000])
def test_a_snapshot_may_arrive_in_other_pieces(size_bytes: int) -> None:
    machine = replayed(recorded_log(entries=60))
    data = snapshot_of(machine)
    other = Machine()
    other.load((data[at : at + size_bytes] for at in range(0, len(data), size_bytes)), machine.index)()
    assert snapshot_of(other) == data


def test_a_snapshot_is_of_the_moment_it_was_taken() -> None:
    log = recorded_log(entries=80)
    machine = replayed(log[:40])
    taken, expected = machine.snapshot(), snapshot_of(machine)
    replayed(log[40:], machine, start=41)
    assert b"".join(taken()) == expected


@pytest.mark.parametrize("cut", ["empty", "half", "last byte", "last chunk", "format", "count", "index", "garbage"])
def test_a_damaged_snapshot_is_refused_and_changes_nothing(cut: str) -> None:
    machine = replayed(recorded_log(entries=60))
    pieces = list(machine.snapshot()())
    header = SnapshotHeader.FromString(pieces[0][4:])
    index = machine.index
    if cut == "empty":
        pieces = []
    elif cut == "half":
        pieces = [b"".join(pieces)[: len(b"".join(pieces)) // 2]]
    elif cut == "last byte":
        pieces[-1] = pieces[-1][:-1]
    elif cut == "last chunk":
        pieces.pop()
    elif cut == "garbage":
        pieces[1] = pieces[1][:4] + b"\xff" * (len(pieces[1]) - 4)
    elif cut == "index":
        index -= 1
    else:
        header.format += cut == "format"
        header.objects_total += cut == "count"
        data = header.SerializeToString()
        pieces[0] = len(data).to_bytes(4, "big") + data
    other = replayed(recorded_log(seed=3, entries=20))
    before = snapshot_of(other)
    with pytest.raises(SnapshotError):
        other.load(pieces, index)()
    assert snapshot_of(other) == before


def test_restore_tells_what_became_different() -> None:
    log = recorded_log(entries=100)
    machine, other = replayed(log[:60]), replayed(log)
    changes = machine.load([snapshot_of(other)], other.index)()
    known = {task.id: task for task in replayed(log[:60]).view.tasks}
    for change in changes:
        if change.kind is TASKS:
            if change.new is None:
                known.pop(change.id)
            else:
                assert isinstance(change.new, Task)
                known[change.id] = change.new
    assert {(task.id, task.version.index) for task in known.values()} == {
        (task.id, task.version.index) for task in machine.view.tasks
    }


def test_views_and_indexes_follow_a_restore() -> None:
    log = recorded_log(entries=100)
    machine = Machine()
    view = machine.view
    machine.load([snapshot_of(replayed(log))], 200)()
    assert len(view.tasks) > 10
    for task in view.tasks:
        assert task in list(view.tasks.by_slot(task.service_id, task.slot))


def test_a_transaction_is_applied_once_also_after_a_snapshot() -> None:
    machine = Machine()
    service = Service(id="s1")
    service.spec.name = "web"
    transaction = Transaction(id="tx")
    transaction.actions.append(StoreAction(create=StoreObject(service=service)).SerializeToString())
    data = transaction.SerializeToString()
    assert machine.apply(1, data)[0] == 1
    assert machine.apply(2, data) == (1, [])
    other = Machine()
    other.load([snapshot_of(machine)], 2)()
    result, changes = other.apply(3, data)
    assert isinstance(result, int)
    assert changes == []
    assert len(other.view.services) == 1


def test_a_refused_entry_is_not_remembered_and_changes_nothing() -> None:
    machine = Machine()
    transaction = Transaction(id="tx")
    transaction.actions.append(StoreAction(update=StoreObject(task=Task(id="t1"))).SerializeToString())
    assert isinstance(machine.apply(1, transaction.SerializeToString())[0], Exception)
    assert SnapshotHeader.FromString(next(iter(machine.snapshot()()))[4:]).recent_transaction_ids == []


def test_the_memory_of_transactions_is_bounded() -> None:
    machine = Machine()
    for number in range(TRANSACTION_IDS_KEPT + 10):
        machine.apply(number + 1, Transaction(id=f"tx-{number}").SerializeToString())
    header = SnapshotHeader.FromString(next(iter(machine.snapshot()()))[4:])
    assert len(header.recent_transaction_ids) == TRANSACTION_IDS_KEPT
    assert header.recent_transaction_ids[0] == "tx-10"


def test_stored_messages_do_not_share_memory_with_their_entry() -> None:
    """A message inside another keeps the whole outer one alive."""
    machine = Machine()
    transaction = Transaction(id="tx")
    transaction.actions.append(StoreAction(create=StoreObject(task=Task(id="t1"))).SerializeToString())
    machine.apply(1, transaction.SerializeToString())
    stored: Iterator[StoredObject] = iter(machine.objects()["task"])
    assert next(stored).version.index == 1


def test_a_snapshot_that_was_read_changes_nothing_until_it_is_put_in_place() -> None:
    log = recorded_log(entries=100)
    machine, other = replayed(log[:60]), replayed(log)
    before = snapshot_of(machine)
    install = machine.load(other.snapshot()(), other.index)
    assert snapshot_of(machine) == before
    install()
    assert snapshot_of(machine) == snapshot_of(other)


def test_no_entry_is_applied_between_the_reading_of_a_snapshot_and_its_place() -> None:
    """What it changes was found out against the state of before."""
    log = recorded_log(entries=20)
    machine, other = replayed(log[:10]), replayed(log)
    install = machine.load(other.snapshot()(), other.index)
    replayed(log[10:12], machine, start=11)
    with pytest.raises(AssertionError, match="was applied while a snapshot was loaded"):
        install()


def test_of_an_entry_that_cannot_be_applied_nothing_is_left() -> None:
    """It ends the member that applies it; should one go on, it is as if the entry had not been."""
    machine = Machine()
    first = encode_create(NODES, Node(id="a"))
    with pytest.raises(ValueError, match="does not know"):
        machine.apply(1, Transaction(id="one", actions=[first, b"\x7f\x00"]).SerializeToString())
    machine.apply(2, Transaction(id="two", actions=[encode_create(NODES, Node(id="b"))]).SerializeToString())
    assert [node.id for node in machine.view.nodes] == ["b"]
