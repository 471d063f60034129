"""The store of one manager: transactions, versions, names, references, indexes, watches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from manager.consensus.inprocess import InProcessConsensus
from manager.consensus.port import Entry, NotLeaderError, ProposalUnknownError
from manager.store import (
    SECRETS,
    SERVICES,
    AmbiguousReferenceError,
    MutatedObjectError,
    NameConflictError,
    ObjectExistsError,
    ObjectInUseError,
    ObjectNotFoundError,
    Resync,
    SequenceConflictError,
    Store,
    TransactionTooLargeError,
    Working,
)
from manager.store import watch as watch_module
from proto.objects_pb2 import Cluster, Config, Node, Secret, Service, SpecVersion, Task
from proto.specs_pb2 import SecretReference
from proto.store_pb2 import StoreAction


@pytest_asyncio.fixture
async def store() -> AsyncIterator[Store]:
    log = InProcessConsensus()
    made = Store(log, clock=lambda: 1000.25, debug=True)
    await log.start(made)
    yield made
    made.check_unmutated()
    await log.stop()


def service(name: str, *, secrets: tuple[str, ...] = (), **fields: object) -> Service:
    made = Service(id=f"id-{name}", **fields)  # type: ignore[arg-type]  # keyword arguments of a message
    made.spec.name = name
    for secret_id in secrets:
        made.spec.task_template.container_spec.secrets.append(
            SecretReference(secret_id=secret_id, secret_name=secret_id)
        )
    return made


def named_secret(name: str) -> Secret:
    secret = Secret(id=f"id-{name}")
    secret.spec.name = name
    return secret


def copied(obj: Service) -> Service:
    copy = Service()
    copy.CopyFrom(obj)
    return copy


async def put(store: Store, *objects: Service | Task | Node | Secret | Config | Cluster | SpecVersion) -> None:
    working = store.begin()
    for obj in objects:
        working.create(obj)
    await store.commit(working)


async def test_version_and_times_are_set_by_the_entry(store: Store) -> None:
    working = store.begin()
    working.create(service("web"))
    index = await store.commit(working)
    web = store.view.services.find("web")
    assert web.version.index == index == store.index
    assert web.created_at == web.updated_at
    assert (web.created_at.seconds, web.created_at.nanos) == (1000, 250_000_000)


async def test_an_update_of_an_old_version_is_refused_at_once(store: Store) -> None:
    await put(store, service("web"))
    stale = copied(store.view.services.find("web"))
    await store.update(lambda working: working.update(copied(working.services.find("web"))))
    with pytest.raises(SequenceConflictError, match="update out of sequence"):
        store.begin().update(stale)
    with pytest.raises(SequenceConflictError):
        store.begin().remove(stale)


async def test_an_entry_that_got_in_between_is_found_when_applied(store: Store) -> None:
    await put(store, service("web"), service("other"))
    first, second = store.begin(), store.begin()
    for working in (first, second):
        working.update(copied(working.services.find("web")))
    second.create(Task(id="t1"))
    await store.commit(first)
    with pytest.raises(SequenceConflictError) as conflict:
        await store.commit(second)
    assert (conflict.value.kind, conflict.value.object_id) == ("service", "id-web")
    assert store.view.tasks.get("t1") is None, "all of an entry or nothing"


async def test_update_reads_again_after_a_conflict(store: Store) -> None:
    await put(store, service("web"))
    calls = 0

    def change(working: Working) -> str:
        nonlocal calls
        calls += 1
        web = copied(working.services.find("web"))
        web.spec.labels["n"] = str(calls)
        working.update(web)
        if calls == 1:
            # Another writer gets in between: applied as soon as the loop turns.
            other = store.begin()
            other.update(copied(other.services.find("web")))
            store.apply([_entry(store, other)])
        return "done"

    assert await store.update(change) == "done"
    assert calls == 2
    assert store.view.services.find("web").spec.labels["n"] == "2"


def _entry(store: Store, working: Working) -> Entry:
    (part,) = store._parts(working, split=False)
    return Entry(store.index + 1, part)


async def test_update_gives_up_after_its_attempts(store: Store) -> None:
    await put(store, service("web"))

    def change(working: Working) -> None:
        working.update(copied(working.services.find("web")))
        other = store.begin()
        other.update(copied(other.services.find("web")))
        store.apply([_entry(store, other)])

    with pytest.raises(SequenceConflictError):
        await store.update(change, attempts=2)


async def test_ids_and_names_are_unique(store: Store) -> None:
    await put(store, service("web"), named_secret("key"))
    with pytest.raises(ObjectExistsError, match="service id-web already exists"):
        store.begin().create(service("web"))
    twin = service("web")
    twin.id = "another"
    with pytest.raises(NameConflictError):
        store.begin().create(twin)
    other = named_secret("key")
    other.id = "another"
    with pytest.raises(NameConflictError):
        store.begin().create(other)
    with pytest.raises(ValueError, match="without an ID"):
        store.begin().create(Task())


async def test_two_creations_of_one_name_under_way(store: Store) -> None:
    first, second = store.begin(), store.begin()
    first.create(service("web"))
    twin = service("web")
    twin.id = "another"
    second.create(twin)
    await store.commit(first)
    with pytest.raises(NameConflictError):
        await store.commit(second)


async def test_the_name_of_a_removed_service_is_free(store: Store) -> None:
    await put(store, service("web"))

    def remove(working: Working) -> None:
        web = copied(working.services.find("web"))
        web.pending_delete = True
        working.update(web)

    await store.update(remove)
    assert store.view.services.by_name("web") is None
    for ref in ("web", "id-web", "id-w"):
        with pytest.raises(ObjectNotFoundError, match=f"service {ref} not found"):
            store.view.services.find(ref)
    again = service("web")
    again.id = "new"
    await put(store, again)
    assert store.view.services.find("web").id == "new"


async def test_find_by_id_then_name_then_prefix(store: Store) -> None:
    """Features W07."""
    one, two, three = service("one"), service("two"), service("ab2")
    one.id, two.id, three.id = "ab1", "ab2", "cd3"
    await put(store, one, two, three)
    find = store.view.services.find
    assert find("ab2").id == "ab2", "a full ID goes before a name"
    assert find("one").id == "ab1"
    assert find("cd").id == "cd3"
    with pytest.raises(AmbiguousReferenceError, match=r"service ab is ambiguous \(2 matches found\)"):
        find("ab")
    with pytest.raises(ObjectNotFoundError):
        find("")
    with pytest.raises(ObjectNotFoundError, match="service nothing not found"):
        find("nothing")


async def test_nodes_are_found_by_host_name_and_may_share_it(store: Store) -> None:
    first, second = Node(id="n1"), Node(id="n2")
    first.description.hostname = second.description.hostname = "host"
    second.spec.name = "special"
    await put(store, first, second)
    with pytest.raises(AmbiguousReferenceError):
        store.view.nodes.find("host")
    assert store.view.nodes.find("special").id == "n2"
    assert len(store.view.nodes.named("host")) == 2


async def test_tasks_are_found_by_name(store: Store) -> None:
    await put(store, Task(id="t1", service_id="s", slot=3))
    assert store.view.tasks.find("web.3.t1").id == "t1"


async def test_a_secret_in_use_cannot_be_removed(store: Store) -> None:
    await put(store, named_secret("key"))
    await put(store, service("web", secrets=("id-key",)), service("api", secrets=("id-key",)))
    assert {user.spec.name for user in store.view.services.naming(SECRETS, "id-key")} == {"web", "api"}
    with pytest.raises(ObjectInUseError, match="secret 'key' is in use by the following services: api, web"):
        store.begin().remove(store.view.secrets.find("key"))


async def test_a_service_cannot_name_a_secret_that_goes_at_the_same_time(store: Store) -> None:
    await put(store, named_secret("key"))
    removing, creating = store.begin(), store.begin()
    removing.remove(removing.secrets.find("key"))
    creating.create(service("web", secrets=("id-key",)))
    await store.commit(removing)
    with pytest.raises(ObjectNotFoundError, match="secret id-key not found"):
        await store.commit(creating)


async def test_a_transaction_reads_its_own_writes(store: Store) -> None:
    await put(store, Task(id="t1", service_id="s", slot=1), Task(id="t2", service_id="s", slot=2))
    working = store.begin()
    moved = Task()
    moved.CopyFrom(store.view.tasks.get("t1"))  # type: ignore[arg-type]  # it is there
    moved.node_id = "n1"
    working.update(moved)
    working.remove(store.view.tasks.get("t2"))  # type: ignore[arg-type]  # it is there
    working.create(Task(id="t3", service_id="s", slot=2, spec_version=2))
    assert [task.id for task in working.tasks.by_node("n1")] == ["t1"]
    assert [task.id for task in working.tasks.by_slot("s", 2)] == ["t3"]
    assert {task.id for task in working.tasks.by_service("s")} == {"t1", "t3"}
    assert {task.id for task in working.tasks} == {"t1", "t3"}
    assert len(working.tasks) == 2
    assert "t2" not in working.tasks
    assert working.tasks.any_of_spec_version("s", 2)
    assert not working.tasks.any_of_spec_version("s", 3)
    assert not store.view.tasks.by_node("n1"), "nobody else sees them yet"
    await store.commit(working)
    assert [task.id for task in store.view.tasks.by_node("n1")] == ["t1"]


async def test_writes_of_one_object_become_one_action(store: Store) -> None:
    working = store.begin()
    working.create(service("web"))
    changed = service("web")
    changed.spec.labels["a"] = "b"
    working.update(changed)
    working.create(service("gone"))
    working.remove(working.services.find("gone"))
    (action,) = map(StoreAction.FromString, working.actions)
    assert action.create.service.spec.labels == {"a": "b"}
    with pytest.raises(ObjectNotFoundError):
        working.update(service("gone"))


async def test_remove_and_create_of_one_name_in_one_entry(store: Store) -> None:
    await put(store, named_secret("key"))
    working = store.begin()
    working.remove(working.secrets.find("key"))
    again = named_secret("key")
    again.id = "second"
    working.create(again)
    await store.commit(working)
    assert store.view.secrets.find("key").id == "second"


async def test_too_large_transactions_are_refused_or_split(store: Store) -> None:
    """Features A3.08."""
    working = store.begin()
    for number in range(450):
        working.create(Task(id=f"t{number}"))
        if number % 3 == 2:
            working.boundary()
    before = store.index
    with pytest.raises(TransactionTooLargeError):
        await store.commit(working)
    assert store.index == before
    await store.commit(working, split=True)
    by_entry: dict[int, list[int]] = {}
    for task in store.view.tasks:
        by_entry.setdefault(task.version.index, []).append(int(task.id[1:]))
    assert len(by_entry) == 3
    assert [max(numbers) % 3 for numbers in by_entry.values()] == [2, 2, 2], "cut at boundaries only"


async def test_one_large_object_fits_one_too_large_does_not(store: Store) -> None:
    config = Config(id="c1")
    config.spec.name = "large"
    config.spec.data = bytes(2_000_000)
    await put(store, config)
    huge = Config(id="c2")
    huge.spec.name = "huge"
    huge.spec.data = bytes(5_000_000)
    with pytest.raises(TransactionTooLargeError):
        await put(store, huge)


async def test_watch_sees_changes_in_order_and_only_its_tables(store: Store) -> None:
    with store.watch(SERVICES) as watch:
        await put(store, Task(id="t1"), service("web"))
        await store.update(lambda working: working.update(copied(working.services.find("web"))))
        changes = await anext(watch)
        assert isinstance(changes, list)
        assert [(change.kind, change.old is None, change.index) for change in changes] == [
            (SERVICES, True, store.index - 1),
            (SERVICES, False, store.index),
        ]
    assert [item async for item in watch] == []


async def test_a_watch_that_lags_is_told_to_look_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "WATCH_CHANGES_MAX", 3)
    with store.watch() as watch:
        for number in range(5):
            await put(store, Task(id=f"t{number}"))
        assert isinstance(await anext(watch), Resync)
        await put(store, Task(id="last"))
        changes = await anext(watch)
        assert isinstance(changes, list)
        assert [change.id for change in changes] == ["last"]


async def test_changing_a_stored_message_in_place_is_found(store: Store) -> None:
    await put(store, service("web"))
    web = store.view.services.find("web")
    web.spec.labels["sneaky"] = "yes"
    with pytest.raises(MutatedObjectError, match="service id-web was changed in place"):
        store.check_unmutated()
    del web.spec.labels["sneaky"]


async def test_cluster_is_refused_while_there_is_none(store: Store) -> None:
    with pytest.raises(ObjectNotFoundError):
        _ = store.view.cluster
    await put(store, Cluster(id="c1"))
    assert store.view.cluster.id == "c1"


class UncertainLog(InProcessConsensus):
    """Applies what is proposed, and says that it does not know, for so many times."""

    uncertain = 0

    async def propose(self, data: bytes, *, timeout_s: float = 20.0, command_id: bytes | None = None) -> object:
        result = await super().propose(data, timeout_s=timeout_s, command_id=command_id)
        if self.uncertain:
            self.uncertain -= 1
            raise ProposalUnknownError("the leader changed while the entry was on its way")
        return result


async def test_an_unknown_outcome_is_retried_and_takes_effect_once() -> None:
    log = UncertainLog()
    store = Store(log, clock=lambda: 1.0, debug=True)
    await log.start(store)
    log.uncertain = 1
    applied: list[int] = []
    store.on_change(lambda changes: applied.extend(change.index for change in changes))
    working = store.begin()
    working.create(service("web"))
    index = await store.commit(working)
    assert applied == [index]
    assert store.view.services.find("web").version.index == index
    log.uncertain = 10
    with pytest.raises(ProposalUnknownError):
        await put(store, Task(id="t1"))


async def test_a_follower_refuses_and_proposes_nothing(store: Store) -> None:
    log = InProcessConsensus()
    follower = Store(log, clock=lambda: 1.0)
    await log.start(follower)
    await log.stop()
    with pytest.raises(NotLeaderError):
        await put(follower, Task(id="t1"))
    assert len(follower.view.tasks) == 0


async def test_on_change_ends_when_told(store: Store) -> None:
    seen: list[int] = []
    forget: Callable[[], None] = store.on_change(lambda changes: seen.append(len(changes)))
    await put(store, Task(id="t1"))
    forget()
    await put(store, Task(id="t2"))
    assert seen == [1]
