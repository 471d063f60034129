"""What the managers say of networks reaches the data plane and the resolver, by increments as in full."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Iterable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from proto.dispatcher_pb2 import NetworkPeer, NetworkService
from proto.objects_pb2 import Network as ClusterNetwork
from proto.specs_pb2 import IPAMConfig, PortConfig
from runtime.events import EventBus
from runtime.kernel.network import IPAddress
from runtime.networks import Networks
from tests.unit.networks.fakes import FakeDriver, RecordingKernel
from tests.unit.overlays.test_published import ToldMesh
from tests.unit.resolver.fakes import FakeResolver
from tests.waiting import until
from worker.network import told
from worker.network.members import ClusterNetworks
from worker.network.overlays import Overlays
from worker.network.published import Published
from worker.network.types import BalancedService, DataPath, NetworkID, OverlayNetwork, PeerEndpoint


class ToldOverlays(Overlays):
    """Keeps what it is told and asks no kernel."""

    def __init__(self) -> None:
        self.networks: dict[str, OverlayNetwork] = {}
        self.peers: dict[str, dict[IPAddress, PeerEndpoint]] = {}
        self.services: dict[str, dict[IPAddress, BalancedService]] = {}

    def set_network(self, network: OverlayNetwork) -> None:
        self.networks[network.id] = network

    def set_peers(self, network_id: NetworkID, peers: Iterable[PeerEndpoint]) -> None:
        self.peers[network_id] = {peer.addresses[0]: peer for peer in peers}

    def change_peers(
        self, network_id: NetworkID, changed: Iterable[PeerEndpoint], gone: Iterable[IPAddress] = ()
    ) -> None:
        for address in gone:
            self.peers[network_id].pop(address, None)
        self.peers[network_id].update({peer.addresses[0]: peer for peer in changed})

    def set_services(self, network_id: NetworkID, services: Iterable[BalancedService]) -> None:
        self.services[network_id] = {service.vip: service for service in services}

    def change_services(
        self, network_id: NetworkID, changed: Iterable[BalancedService], gone: Iterable[IPAddress] = ()
    ) -> None:
        for vip in gone:
            self.services[network_id].pop(vip, None)
        self.services[network_id].update({service.vip: service for service in changed})

    def forget_network(self, network_id: NetworkID) -> None:
        for kept in (self.networks, self.peers, self.services):
            kept.pop(network_id, None)


class Node:
    """A node, and what it was told last."""

    def __init__(self, state: Path) -> None:
        self.overlays, self.resolver = ToldOverlays(), FakeResolver()
        self.table = Networks(
            state,
            drivers=[FakeDriver("overlay")],
            predefined=[],
            kernel=RecordingKernel(),
            events=EventBus(),
            name_of=str,
        )
        self.published = Published(ToldMesh, str)
        self.networks = ClusterNetworks(self.table, self.overlays, self.resolver, self.published)
        self.known_networks: dict[str, ClusterNetwork] = {}
        self.peers: dict[str, NetworkPeer] = {}
        self.services: dict[str, NetworkService] = {}

    def put(self, obj: ClusterNetwork | NetworkPeer | NetworkService) -> None:
        if isinstance(obj, ClusterNetwork):
            self.known_networks[obj.id] = obj
            self.networks.change({obj.id: obj}, {}, {})
        elif isinstance(obj, NetworkPeer):
            self.peers[obj.id] = obj
            self.networks.change({}, {obj.id: obj}, {})
        else:
            self.services[obj.id] = obj
            self.networks.change({}, {}, {obj.id: obj})

    def drop(self, object_id: str) -> None:
        """A network as managers take it back: its members first."""
        if object_id in self.known_networks:
            for member in [each for each in (*self.peers, *self.services) if each.startswith(f"{object_id}.")]:
                self.drop(member)
            del self.known_networks[object_id]
            self.networks.change({object_id: None}, {}, {})
        elif self.peers.pop(object_id, None) is not None:
            self.networks.change({}, {object_id: None}, {})
        elif self.services.pop(object_id, None) is not None:
            self.networks.change({}, {}, {object_id: None})

    def tell_all(self) -> None:
        self.networks.replace(self.known_networks, self.peers.values(), self.services.values())

    async def state(self) -> object:
        await until(lambda: self.networks._telling is None or self.networks._telling.done(), what="all is told")
        holders = {network_id: found for network_id, found in self.resolver.told.holders.items() if found}
        return self.overlays.networks, self.overlays.peers, self.overlays.services, holders

    async def close(self) -> None:
        await self.networks.close()
        await self.table.close()


def network(network_id: str, *, ingress: bool = False) -> ClusterNetwork:
    made = ClusterNetwork(id=network_id, data_path_port=4789)
    made.spec.name, made.spec.ingress = f"{network_id}-name", ingress
    made.driver_state.name = "overlay"
    made.driver_state.options["com.docker.network.driver.overlay.vxlanid_list"] = "4097"
    made.ipam.configs.append(IPAMConfig(subnet="10.0.1.0/24", gateway="10.0.1.1"))
    return made


def peer(
    network_id: str, task_id: str, service_id: str = "web", *, ready: bool = True, node: str = "192.0.2.1"
) -> NetworkPeer:
    return NetworkPeer(
        id=f"{network_id}.{task_id}",
        network_id=network_id,
        task_id=task_id,
        service_id=service_id,
        name=f"{service_id}.1.{task_id}",
        node_addr=node,
        addresses=[f"10.0.1.{task_id[1:]}/24"],
        ready=ready,
    )


def service(network_id: str, service_id: str = "web", *, vip: str = "10.0.1.2/24", alias: str = "") -> NetworkService:
    return NetworkService(
        id=f"{network_id}.{service_id}",
        network_id=network_id,
        service_id=service_id,
        name=service_id,
        aliases=[alias] if alias else [],
        virtual_ips=[vip] if vip else [],
        ports=[PortConfig(name="http", target_port=80)],
    )


async def names(node: Node, name: str) -> list[str]:
    await node.state()
    return sorted(
        address
        for holder in node.resolver.told.holders.get("front", {}).values()
        if name in holder.names
        for address in holder.addresses
    )


async def test_a_service_is_its_virtual_ip_and_its_tasks_are_behind_it(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.put(network("front"))
    node.put(service("front", alias="shop"))
    for told_peer in (peer("front", "t11"), peer("front", "t12", node="192.0.2.2"), peer("front", "t13", ready=False)):
        node.put(told_peer)
    await node.state()
    ((vip, balanced),) = node.overlays.services["front"].items()
    assert (str(vip), [(str(each.address), each.weight) for each in balanced.backends]) == (
        "10.0.1.2",
        [("10.0.1.11", 1), ("10.0.1.12", 1), ("10.0.1.13", 0)],
    )
    assert sorted(map(str, node.overlays.peers["front"])) == ["10.0.1.11", "10.0.1.12", "10.0.1.13"]
    assert await names(node, "web") == await names(node, "shop") == ["10.0.1.2"]
    assert await names(node, "tasks.web") == await names(node, "tasks.shop") == ["10.0.1.11", "10.0.1.12"]
    assert await names(node, "web.1.t12") == ["10.0.1.12"]
    await node.close()


async def test_without_a_virtual_ip_the_name_is_the_tasks(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.put(network("front"))
    node.put(peer("front", "t11"))
    node.put(service("front"))
    node.put(service("front", vip=""))
    assert await names(node, "web") == ["10.0.1.11"]
    assert node.overlays.services["front"] == {}
    node.put(peer("front", "t11", ready=False))
    assert await names(node, "web") == await names(node, "tasks.web") == []
    await node.close()


async def test_what_is_no_address_costs_itself_alone(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.put(network("front"))
    node.put(peer("front", "t11", node="somewhere"))
    node.put(peer("front", "t12"))
    node.put(service("front", vip="many"))
    await node.state()
    assert [str(address) for address in node.overlays.peers["front"]] == ["10.0.1.12"]
    assert node.overlays.services["front"] == {}
    await node.close()


async def test_who_got_what_another_gave_back_keeps_it_in_whatever_order_it_is_told(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.put(network("front"))
    node.put(service("front", "old"))
    for names_in_order in (["old", "new"], ["new", "old"]):
        node.networks.change({}, {}, {"front.old": service("front", "old"), "front.new": None})
        told_now = {"front.old": None, "front.new": service("front", "new")}
        node.networks.change({}, {}, {f"front.{name}": told_now[f"front.{name}"] for name in names_in_order})
        await node.state()
        assert [str(vip) for vip in node.overlays.services["front"]] == ["10.0.1.2"]
    await node.close()


async def test_what_was_told_before_the_first_container_is_there_for_it(tmp_path: Path) -> None:
    """The data plane is told of the network with its members: it keeps those of one that nobody is on yet."""
    kernel = RecordingKernel()
    overlays = Overlays(kernel, tmp_path, DataPath(ipaddress.ip_address("192.0.2.9")))
    networks = ClusterNetworks(Node(tmp_path).table, overlays, FakeResolver(), Published(ToldMesh, str))
    networks.change({"front": network("front")}, {"front.t11": peer("front", "t11")}, {"front.web": service("front")})
    await overlays.settled(NetworkID("front"))
    overlay = overlays._overlays[NetworkID("front")]
    assert (overlay.network is not None, [str(each) for each in overlay.peers]) == (True, ["10.0.1.11"])
    await networks.close()
    await overlays.close()


async def test_the_routing_meshs_network_is_no_overlay_of_containers(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.put(network("mesh", ingress=True))
    node.put(peer("mesh", "t11"))
    node.tell_all()
    await node.state()
    assert (node.overlays.peers, node.resolver.told.holders) == ({}, {})
    await node.close()


async def test_the_engine_has_a_network_while_it_is_told_of(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.table.open()
    front = network("front")
    node.put(front)
    assert await node.networks.ready(front) == "front-name"
    assert node.table.find("front").Name == "front-name"
    again = Node(tmp_path)
    await again.table.open()
    again.tell_all()  # by a daemon that is told of nothing
    await until(lambda: again.table.list() == [], what="the network is gone")
    for each in (node, again):
        await each.close()


Event = Callable[[Node], None]
ids = st.sampled_from(["front", "back"])
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(lambda network_id: lambda node: node.put(network(network_id)), ids),
    st.builds(
        lambda network_id, task, service_id, ready, at: (
            lambda node: node.put(peer(network_id, task, service_id, ready=ready, node=at))
        ),
        ids,
        st.sampled_from(["t11", "t12", "t13"]),
        st.sampled_from(["web", "db"]),
        st.booleans(),
        st.sampled_from(["192.0.2.1", "192.0.2.2", "nowhere"]),
    ),
    st.builds(
        lambda network_id, service_id, vip, alias: (
            lambda node: node.put(service(network_id, service_id, vip=vip, alias=alias))
        ),
        ids,
        st.sampled_from(["web", "db"]),
        st.sampled_from(["10.0.1.2/24", "10.0.1.3/24", ""]),
        st.sampled_from(["", "shop"]),
    ),
    st.builds(
        lambda object_id: lambda node: node.drop(object_id),
        st.sampled_from(["front", "back", "front.t11", "front.t12", "back.t13", "front.web", "back.db"]),
    ),
    st.just(Node.tell_all),
)


@settings(max_examples=200, deadline=None)
@given(history=st.lists(events, max_size=25))
def test_after_any_history_it_is_as_if_all_was_told_at_once(history: list[Event]) -> None:
    async def play() -> None:
        state = Path("/nonexistent")
        node, fresh = Node(state), Node(state)
        for event in history:
            event(node)
        fresh.known_networks, fresh.peers, fresh.services = node.known_networks, node.peers, node.services
        # Managers tell of members with their network: those that came before it came are told again.
        node.tell_all()
        fresh.tell_all()
        assert await node.state() == await fresh.state()
        for each in (node, fresh):
            await each.networks.close()

    asyncio.run(play())


@settings(max_examples=200, deadline=None)
@given(history=st.lists(events, max_size=25))
def test_increments_alone_lead_to_the_same(history: list[Event]) -> None:
    async def play() -> None:
        state = Path("/nonexistent")
        node, fresh = Node(state), Node(state)
        for network_id in ("front", "back"):
            node.put(network(network_id))
        for event in history:
            if event is not Node.tell_all:
                event(node)
            for network_id in ("front", "back"):
                if network_id not in node.known_networks:
                    node.put(network(network_id))
        fresh.known_networks, fresh.peers, fresh.services = node.known_networks, node.peers, node.services
        fresh.tell_all()
        assert await node.state() == await fresh.state()
        for each in (node, fresh):
            await each.networks.close()

    asyncio.run(play())


def test_an_engine_network_is_as_the_cluster_made_it() -> None:
    made = told.engine_network(network("front"))
    assert (made.ID, made.Name, made.Driver, made.Scope, made.Settled) == (
        "front",
        "front-name",
        "overlay",
        "swarm",
        True,
    )
    assert [(pool.Subnet, pool.Gateway) for pool in made.Pools] == [("10.0.1.0/24", "10.0.1.1")]
