"""Who is on a network: what nodes are told of it, and that they are told of every change."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from manager.dispatcher.assignments import AssignmentSet, Key, MessagePacker, SharedChanges
from manager.dispatcher.members import Entry, Members, key_of
from manager.store import KINDS, Change, StoredObject, View
from manager.store.kinds import AnyKind
from manager.store.views import empty_state
from proto.dispatcher_pb2 import AssignmentChange, AssignmentsMessage, NetworkPeer, NetworkService
from proto.objects_pb2 import (
    TASK_STATE_ASSIGNED,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    Network,
    NetworkAttachment,
    Node,
    Service,
    SpecVersion,
    Task,
    TaskState,
    Version,
    VirtualIP,
)
from proto.specs_pb2 import NetworkAttachmentConfig, PortConfig, ServiceSpec
from worker.agent.assignments import ReceivedAssignments
from worker.agent.contents import AssignedObject

NODES = ("n1", "n2", "n3")
NETWORKS = ("front", "back", "mesh")


class Cluster:
    """A store's rows, what is derived of them, and agents that follow the stream."""

    def __init__(self) -> None:
        self._rows = empty_state(KINDS)
        self.view = View(KINDS, self._rows)
        self.members = Members(self.view)
        shared = SharedChanges(self.members)
        self._shared = shared
        self.sent = {node_id: AssignmentSet(node_id, shared=shared) for node_id in NODES}
        self.received = {node_id: ReceivedAssignments(node_id) for node_id in NODES}
        self._packers = {node_id: MessagePacker() for node_id in NODES}
        self._index = 0
        self.bytes_sent = 0
        for node_id in NODES:
            for message in self._packers[node_id].complete(self.sent[node_id].complete(self.view)):
                self.received[node_id].apply(AssignmentsMessage.FromString(message))

    def put(self, obj: StoredObject) -> None:
        kind = KINDS.of(obj)
        old = self.view.of(kind).get(obj.id)
        self._index += 1
        obj.version.CopyFrom(Version(index=self._index))
        self._rows[kind.name].put(obj.id, obj)
        self._tell(Change(kind, obj.id, old, obj, self._index))

    def drop(self, kind: AnyKind, object_id: str) -> None:
        old = self.view.of(kind).get(object_id)
        if old is not None:
            self._rows[kind.name].drop(object_id)
            self._tell(Change(kind, object_id, old, None, self._index))

    def _tell(self, change: Change) -> None:
        entries: dict[str, list[Entry]] = {node_id: [] for node_id in NODES}
        for entry in self.members.follow(change):
            for known in self._shared.users(key_of(entry)):
                entries[known.node_id].append(entry)
        key: Key = (change.kind, change.id)
        tasks = [change.id] if isinstance(change.new or change.old, Task) else []
        for node_id in NODES:
            known = self.sent[node_id]
            keys = [key] if known.uses(*key) else []
            changes = known.update(tasks, keys, self.view, entries[node_id])
            self.bytes_sent += sum(map(len, changes))
            for message in self._packers[node_id].incremental(changes):
                self.received[node_id].apply(AssignmentsMessage.FromString(message))

    def told(self, node_id: str) -> dict[str, AssignedObject]:
        """What an agent knows of members."""
        contents = self.received[node_id].contents
        return {**contents.of(NetworkPeer), **contents.of(NetworkService)}

    def should_know(self, node_id: str) -> dict[str, AssignedObject]:
        """All of each network that is on the node, derived from nothing."""
        fresh = Members(self.view)
        fresh.begin()
        node = self.view.nodes.get(node_id)
        networks = {node.ingress.network_id} if node is not None and node.HasField("ingress") else set[str]()
        for task in self.view.tasks.by_node(node_id):
            if TASK_STATE_ASSIGNED <= task.status.state <= TASK_STATE_RUNNING:
                networks |= {attachment.network_id for attachment in task.networks_attachments}
        found: dict[str, AssignedObject] = {}
        for network_id in networks:
            if self.view.networks.get(network_id) is None:
                continue
            for each in map(AssignmentChange.FromString, fresh.of(network_id)):
                found[each.id] = each.network_peer if each.HasField("network_peer") else each.network_service
        return found


def network(network_id: str) -> Network:
    made = Network(id=network_id)
    made.spec.ingress = network_id == "mesh"
    return made


def node(node_id: str, *, addr: str = "", mesh: bool = False) -> Node:
    made = Node(id=node_id)
    made.status.addr = addr or f"192.168.0.{node_id[1:]}"
    if mesh:
        made.ingress.CopyFrom(NetworkAttachment(network_id="mesh", addresses=[f"10.255.0.{node_id[1:]}/24"]))
    return made


def service(service_id: str, *networks: str, published: int = 0) -> Service:
    made = Service(id=service_id, spec_version=1, spec=spec(service_id, *networks))
    made.endpoint.virtual_ips.extend(VirtualIP(network_id=each, addr="10.0.0.2/24") for each in networks)
    if published:
        made.endpoint.ports.append(PortConfig(target_port=80, published_port=published))
    return made


def spec(name: str, *networks: str) -> ServiceSpec:
    made = ServiceSpec(name=name)
    made.task_template.networks.extend(
        NetworkAttachmentConfig(target=each, aliases=[f"{name}-on-{each}"]) for each in networks
    )
    return made


def task(
    task_id: str,
    node_id: str,
    service_id: str,
    *networks: str,
    state: TaskState.ValueType = TASK_STATE_RUNNING,
    desired: TaskState.ValueType = TASK_STATE_RUNNING,
) -> Task:
    made = Task(id=task_id, node_id=node_id, service_id=service_id, spec_version=1, slot=1, desired_state=desired)
    made.status.state = state
    made.networks_attachments.extend(
        NetworkAttachment(network_id=each, addresses=[f"10.0.0.{task_id[1:]}/24"]) for each in networks
    )
    return made


def started() -> Cluster:
    cluster = Cluster()
    for network_id in NETWORKS:
        cluster.put(network(network_id))
    for node_id in NODES:
        cluster.put(node(node_id))
    return cluster


def test_a_node_knows_who_is_on_its_networks_and_of_no_other() -> None:
    cluster = started()
    for service_id, on in (("web", ("front",)), ("db", ("front", "back"))):
        cluster.put(service(service_id, *on))
        cluster.put(
            SpecVersion(id=f"{service_id}.1", service_id=service_id, spec_version=1, spec=spec(service_id, *on))
        )
    cluster.put(task("t11", "n1", "web", "front"))
    cluster.put(task("t12", "n2", "db", "front", "back"))
    told = cluster.told("n1")
    assert set(told) == {"front.t11", "front.t12", "front.web", "front.db"}
    peer, front = told["front.t12"], told["front.db"]
    assert isinstance(peer, NetworkPeer)
    assert isinstance(front, NetworkService)
    assert (peer.node_addr, [*peer.addresses], peer.name, peer.ready) == (
        "192.168.0.2",
        ["10.0.0.12/24"],
        "db.1.t12",
        True,
    )
    assert ([*front.virtual_ips], [*front.aliases]) == (["10.0.0.2/24"], ["db-on-front"])
    assert set(cluster.told("n2")) == {*told, "back.t12", "back.db"}
    assert cluster.told("n3") == {}
    cluster.put(task("t11", "n1", "web", "front", state=TASK_STATE_FAILED))
    assert cluster.told("n1") == {}
    assert "front.t11" not in cluster.told("n2")


def test_a_task_takes_no_more_connections_before_it_is_told_to_stop() -> None:
    cluster = started()
    cluster.put(task("t11", "n1", "web", "front"))
    cluster.put(task("t12", "n2", "web", "front"))
    cluster.put(task("t12", "n2", "web", "front", desired=TASK_STATE_SHUTDOWN))
    peer = cluster.told("n1")["front.t12"]
    assert isinstance(peer, NetworkPeer)
    assert not peer.ready


def test_what_is_published_is_known_on_every_node_that_has_an_address_on_the_mesh() -> None:
    cluster = started()
    cluster.put(service("web", published=8080))
    publishing = spec("web")
    publishing.endpoint_spec.ports.append(PortConfig(target_port=80, published_port=8080))
    cluster.put(SpecVersion(id="web.1", service_id="web", spec_version=1, spec=publishing))
    cluster.put(task("t11", "n1", "web"))
    assert cluster.told("n3") == {}
    for node_id in NODES:
        cluster.put(node(node_id, mesh=True))
    peer, published = cluster.told("n3")["mesh.t11"], cluster.told("n3")["mesh.web"]
    assert isinstance(peer, NetworkPeer)
    assert isinstance(published, NetworkService)
    assert ([*peer.addresses], [each.published_port for each in published.ports]) == (["10.255.0.1/24"], [8080])
    cluster.put(service("web"))
    assert set(cluster.told("n3")) == {f"mesh.{node_id}" for node_id in NODES}, (
        "the nodes themselves, as each may be an entry"
    )


def test_a_change_of_one_task_costs_the_same_however_many_there_are() -> None:
    sent = []
    for size in (10, 300):
        cluster = started()
        for number in range(size):
            cluster.put(task(f"t{number}", NODES[number % 3], "web", "front"))
        before = cluster.bytes_sent
        cluster.put(task("t5", NODES[5 % 3], "web", "front", desired=TASK_STATE_SHUTDOWN))
        sent.append(cluster.bytes_sent - before)
    assert abs(sent[0] - sent[1]) < 8  # the numbers of versions are longer


Event = Callable[[Cluster], None]

node_ids, network_ids = st.sampled_from(NODES), st.lists(st.sampled_from(NETWORKS[:2]), max_size=2, unique=True)
service_ids, task_ids = st.sampled_from(["web", "db"]), st.sampled_from(["t11", "t12", "t13"])
STATES = [TASK_STATE_PENDING, TASK_STATE_ASSIGNED, TASK_STATE_RUNNING, TASK_STATE_FAILED]
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(
        lambda task_id, node_id, service_id, on, state, desired: (
            lambda cluster: cluster.put(task(task_id, node_id, service_id, *on, state=state, desired=desired))
        ),
        task_ids,
        node_ids,
        service_ids,
        network_ids,
        st.sampled_from(STATES),
        st.sampled_from([TASK_STATE_RUNNING, TASK_STATE_SHUTDOWN]),
    ),
    st.builds(
        lambda service_id, on, published: lambda cluster: cluster.put(service(service_id, *on, published=published)),
        service_ids,
        network_ids,
        st.sampled_from([0, 8080]),
    ),
    st.builds(
        lambda node_id, addr, mesh: lambda cluster: cluster.put(node(node_id, addr=addr, mesh=mesh)),
        node_ids,
        st.sampled_from(["", "192.168.9.9"]),
        st.booleans(),
    ),
    st.builds(lambda network_id: lambda cluster: cluster.put(network(network_id)), st.sampled_from(NETWORKS)),
    st.builds(
        lambda kind, object_id: lambda cluster: cluster.drop(KINDS.named(kind), object_id),
        st.sampled_from(["task", "service", "node", "network"]),
        st.sampled_from(["t11", "t12", "t13", "web", "db", *NODES, *NETWORKS]),
    ),
)


@settings(max_examples=300, deadline=None)
@given(history=st.lists(events, max_size=30))
def test_after_any_history_nodes_know_what_they_should(history: list[Event]) -> None:
    cluster = started()
    for event in history:
        event(cluster)
    for node_id in NODES:
        if cluster.view.nodes.get(node_id) is not None:
            assert cluster.told(node_id) == cluster.should_know(node_id)
