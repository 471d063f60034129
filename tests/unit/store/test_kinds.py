"""A declaration is enough: a kind that is known here alone is stored, indexed, snapshotted, guarded and told to agents.

Its messages are those of configs and secrets, for which the schema has a place in the log; nothing else of those two is
in the store of these tests.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp

from manager.consensus.inprocess import InProcessConsensus
from manager.control import objects
from manager.control.errors import AlreadyExistsError, NotFoundError, OutOfSequenceError
from manager.control.filters import object_filter
from manager.control.lookup import find
from manager.control.objects import Managed
from manager.dispatcher.assignments import AssignmentSet, MessagePacker
from manager.store import (
    CLUSTERS,
    KINDS,
    NODES,
    SPEC_VERSIONS,
    TASKS,
    Kind,
    Kinds,
    MutatedObjectError,
    NameConflictError,
    ObjectInUseError,
    ObjectNotFoundError,
    SnapshotError,
    Store,
    StoredObject,
    View,
)
from manager.store.kinds import Assigned, Reference
from proto.dispatcher_pb2 import AssignmentKind, AssignmentsMessage
from proto.objects_pb2 import Config, Node, Secret, SpecVersion, Task
from proto.specs_pb2 import ServiceSpec
from tests.unit.dispatcher.support import make_task
from worker.agent.assignments import ReceivedAssignments


def _gadgets_of(task: Task, spec: ServiceSpec | None) -> Iterable[str]:
    return () if spec is None else filter(None, spec.labels["gadgets"].split(","))


def _without_data(gadget: Config) -> Config:
    copy = Config()
    copy.CopyFrom(gadget)
    copy.spec.ClearField("data")
    return copy


GADGETS = Kind(
    name="config",
    plural="gadgets",
    message=Config,
    names=lambda gadget: (gadget.spec.name,),
    unique_names=True,
    labels=lambda gadget: gadget.spec.labels,
    indexes={"colour": lambda gadget: (gadget.spec.labels["colour"],)},
    assigned=Assigned(AssignmentKind.ASSIGNMENT_KIND_CONFIG, _gadgets_of, sent=_without_data),
)


def _gadget_of(owner: Secret) -> Collection[tuple[str, str]]:
    return [(owner.spec.labels["gadget"], "the gadget")]


OWNERS = Kind(
    name="secret",
    plural="owners",
    message=Secret,
    names=lambda owner: (owner.spec.name,),
    references=(Reference(GADGETS, _gadget_of),),
)

TOYS = Kinds(CLUSTERS, NODES, SPEC_VERSIONS, TASKS, GADGETS, OWNERS)


@pytest_asyncio.fixture
async def store() -> AsyncIterator[Store]:
    log = InProcessConsensus()
    made = Store(log, clock=lambda: 1000.0, debug=True, kinds=TOYS)
    await log.start(made)
    yield made
    await log.stop()


def gadget(name: str, colour: str = "red") -> Config:
    made = Config(id=f"id-{name}")
    made.spec.name, made.spec.data, made.spec.labels["colour"] = name, b"inside", colour
    return made


def owner(name: str, gadget_name: str) -> Secret:
    made = Secret(id=f"id-{name}")
    made.spec.name, made.spec.labels["gadget"] = name, f"id-{gadget_name}"
    return made


async def put(store: Store, *new: StoredObject) -> None:
    working = store.begin()
    for obj in new:
        working.create(obj)
    await store.commit(working)


def ids(found: Iterable[Config | Secret]) -> set[str]:
    return {obj.id for obj in found}


async def test_it_is_stored_found_and_indexed(store: Store) -> None:
    await put(store, gadget("lamp"), gadget("lens"), gadget("fuse", "blue"))
    gadgets = store.view.of(GADGETS)
    assert gadgets.find("lamp").id == gadgets.find("id-la").id == "id-lamp"
    assert ids(gadgets) == {"id-lamp", "id-lens", "id-fuse"}
    assert ids(gadgets.lookup("colour", "red")) == {"id-lamp", "id-lens"}
    working = store.begin()
    working.remove(gadgets.find("lens"))
    assert ids(working.of(GADGETS).lookup("colour", "red")) == {"id-lamp"}
    twin = gadget("lamp")
    twin.id = "another"
    with pytest.raises(NameConflictError, match="config lamp already exists"):
        working.create(twin)


async def test_watchers_see_it_as_what_it_is(store: Store) -> None:
    with store.watch(GADGETS) as watch:
        await put(store, Node(id="n1"), gadget("lamp"))
        changes = await anext(watch)
    assert isinstance(changes, list)
    assert [(change.kind, change.id) for change in changes] == [(GADGETS, "id-lamp")]


async def test_it_comes_through_a_snapshot(store: Store) -> None:
    await put(store, gadget("lamp"), owner("ann", "lamp"))
    chunks = list(store.snapshot()())
    other = Store(InProcessConsensus(), clock=lambda: 0.0, kinds=TOYS)
    other.load(chunks, store.index)()
    assert other.view.of(GADGETS).find("lamp") == store.view.of(GADGETS).find("lamp")
    assert ids(other.view.of(OWNERS).naming(GADGETS, "id-lamp")) == {"id-ann"}
    assert list(other.snapshot()()) == chunks
    stranger = Store(InProcessConsensus(), clock=lambda: 0.0, kinds=Kinds(CLUSTERS, NODES))
    with pytest.raises(SnapshotError, match="a kind that this version does not know"):
        stranger.load(chunks, store.index)


async def test_it_cannot_go_while_it_is_named(store: Store) -> None:
    with pytest.raises(ObjectNotFoundError, match="config the gadget not found"):
        await put(store, owner("ann", "lamp"))
    await put(store, gadget("lamp"), owner("ann", "lamp"), owner("bob", "lamp"))
    working = store.begin()
    with pytest.raises(ObjectInUseError, match="config 'lamp' is in use by the following secrets: ann, bob"):
        working.remove(working.of(GADGETS).find("lamp"))
    for name in ("ann", "bob"):
        working.remove(working.of(OWNERS).find(name))
    working.remove(working.of(GADGETS).find("lamp"))
    await store.commit(working)
    assert not len(store.view.of(GADGETS))


async def test_an_agent_gets_what_its_tasks_need_of_it(store: Store) -> None:
    """From the store to what an agent holds, and away again."""
    version = SpecVersion(id="web.1", service_id="web", spec_version=1)
    version.spec.labels["gadgets"] = "id-lamp"
    await put(store, gadget("lamp"), gadget("lens"), owner("ann", "lamp"), version, make_task("t1", "n1"))
    sent, packer, received = AssignmentSet("n1", TOYS), MessagePacker(), ReceivedAssignments("n1")

    for message in packer.complete(sent.complete(store.view)):
        received.apply(AssignmentsMessage.FromString(message))
    held = received.contents.of(Config)
    assert set(held) == {"id-lamp"}
    assert held["id-lamp"] == _without_data(store.view.of(GADGETS).find("lamp"))
    assignment = received.assignment("t1")
    assert assignment is not None
    assert set(assignment.needed.of(Config)) == {"id-lamp"}
    assert assignment.is_whole
    assert not received.contents.of(Secret), "owners are no agent's business"
    assert sent.uses(GADGETS, "id-lamp")
    assert not sent.uses(GADGETS, "id-lens")

    changed = gadget("lamp", "green")
    changed.version.CopyFrom(store.view.of(GADGETS).find("lamp").version)
    await store.update(lambda working: working.update(changed))
    for message in packer.incremental(sent.update([], [(GADGETS, "id-lamp")], store.view)):
        received.apply(AssignmentsMessage.FromString(message))
    assert received.contents.of(Config)["id-lamp"].spec.labels == {"colour": "green"}

    await store.update(lambda working: working.remove(working.tasks.find("t1")))
    for message in packer.incremental(sent.update(["t1"], [], store.view)):
        received.apply(AssignmentsMessage.FromString(message))
    assert received.contents.keys() == set()


async def test_what_is_named_and_is_not_there_is_told(store: Store) -> None:
    await put(store, gadget("lamp"))
    (reference,) = OWNERS.references
    assert list(store.view.missing(OWNERS, owner("ann", "lens"))) == [(GADGETS, "the gadget")]
    assert list(store.view.missing(OWNERS, owner("ann", "lamp"))) == [(GADGETS, "the gadget")], "by another name"
    renamed = gadget("lamp")
    renamed.spec.name = "the gadget"
    renamed.version.CopyFrom(store.view.of(GADGETS).find("lamp").version)
    await store.update(lambda working: working.update(renamed))
    assert not list(store.view.missing(OWNERS, owner("ann", "lamp")))
    assert reference.ids(owner("ann", "lamp")) == {"id-lamp"}


async def test_users_make_list_change_and_remove_it(store: Store) -> None:
    now = Timestamp(seconds=5)

    def change_colour(changed: Config, wanted: Config) -> None:
        changed.spec.labels["colour"] = wanted.spec.labels["colour"]

    managed = Managed[Config](GADGETS, validate=lambda gadget: None, change=change_colour)
    working = store.begin()
    made = [
        objects.create(working, managed, managed.wanted(gadget(name, colour).spec), object_id=f"id-{name}", now=now)
        for name, colour in (("lamp", "red"), ("lens", "blue"))
    ]
    with pytest.raises(AlreadyExistsError, match="config lamp already exists"):
        objects.create(working, managed, made[0], object_id="another", now=now)
    working.create(owner("ann", "lamp"))
    await store.commit(working)

    def listed(**filters: str) -> set[str]:
        matches = object_filter(GADGETS, {key: [value] for key, value in filters.items()})
        return ids(obj for obj in store.view.of(GADGETS) if matches(obj))

    assert listed() == listed(name="l") == listed(id="id") == {"id-lamp", "id-lens"}
    assert listed(name="la") == listed(label="colour=red") == listed(names="lamp") == {"id-lamp"}
    assert listed(names="la") == set()
    working = store.begin()
    lens = find(working, GADGETS, "lens")
    wanted = managed.wanted(gadget("lens", "green").spec)
    with pytest.raises(OutOfSequenceError):
        objects.update(working, managed, lens, wanted, version=lens.version.index - 1, now=now)
    objects.update(working, managed, lens, wanted, version=lens.version.index, now=now)
    assert ids(working.of(GADGETS).lookup("colour", "green")) == {"id-lens"}
    with pytest.raises(ObjectInUseError, match="config 'lamp' is in use by the following secret: ann"):
        working.remove(find(working, GADGETS, "lamp"))
    with pytest.raises(NotFoundError, match="config fuse not found"):
        find(working, GADGETS, "fuse")


async def test_a_change_in_place_is_noticed(store: Store) -> None:
    await put(store, gadget("lamp"))
    store.view.of(GADGETS).find("lamp").spec.name = "changed"
    with pytest.raises(MutatedObjectError, match="config id-lamp"):
        store.check_unmutated()


def test_a_kind_that_does_not_fit_the_schema_is_refused() -> None:
    with pytest.raises(TypeError, match="StoreObject has no field gadget for Config"):
        Kinds(Kind(name="gadget", plural="gadgets", message=Config))
    with pytest.raises(TypeError, match="AssignmentChange has no field secret for Config"):
        Kinds(
            Kind(
                name="config",
                plural="gadgets",
                message=Config,
                assigned=Assigned(AssignmentKind.ASSIGNMENT_KIND_SECRET, _gadgets_of),
            )
        )


def test_the_tables_that_views_spell_out_are_those_of_the_kinds() -> None:
    spelled_out = inspect.get_annotations(View)
    assert set(spelled_out) <= {kind.plural for kind in KINDS}


GENERIC = {
    "manager/store": ["rows", "tables", "machine", "snapshot", "mutation", "watch", "store"],
    "manager/dispatcher": ["assignments", "session", "dispatcher"],
    "manager/control": ["objects", "lookup"],
    "worker/agent": ["contents", "persistence"],
}
OTHERWISE_MEANT = {"secrets", "payload"}  # of the standard library; of a record in a file
ROOT = Path(__file__).parents[3]


def _words(source: str) -> Iterator[str]:
    """The identifiers of a module, and its strings that are no texts."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_what_serves_every_kind_names_none() -> None:
    named = re.compile(r"(?i)(.*_)?(secret|config|payload)(s|_id|_name|reference|spec)?")
    for folder, modules in GENERIC.items():
        for module in modules:
            source = (ROOT / folder / f"{module}.py").read_text()
            found = {word for word in _words(source) if named.fullmatch(word)}
            assert found <= OTHERWISE_MEANT, f"{folder}/{module}.py"


def test_the_page_that_says_how_to_add_a_kind_names_files_that_there_are() -> None:
    page = (ROOT / "docs/design/store.md").read_text()
    section = page.partition("## Adding a kind of objects")[2].partition("\n## ")[0]
    files = re.findall(r"`([\w/]+/[\w./]*)`", section)
    assert len(files) >= 10
    assert [file for file in files if not (ROOT / file).exists()] == []
    for folder, modules in GENERIC.items():
        assert [module for module in modules if f"`{module}`" not in section] == [], folder
