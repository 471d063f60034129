"""What managers say of published ports reaches the mesh of this node."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from ipaddress import IPv4Address

import pytest

from proto.dispatcher_pb2 import NetworkPeer, NetworkService
from proto.objects_pb2 import Network
from proto.specs_pb2 import PORT_PROTOCOL_TCP, IPAMConfig, PortConfig
from worker.network.mesh import Mesh
from worker.network.mesh_rules import Key
from worker.network.published import Published
from worker.network.types import DataPath, IngressPort, OverlayNetwork, PeerEndpoint

NODE = DataPath(ipaddress.ip_address("192.0.2.1"))


class ToldMesh(Mesh):
    """Keeps what it is told and asks no kernel."""

    def __init__(self, node: DataPath) -> None:
        self.node, self.address, self.removed = node, "", 0
        self.nodes: dict[str, str] = {}
        self.ports: dict[Key, IngressPort] = {}

    def set_node(self, node: DataPath) -> None:
        self.node = node

    def set_network(self, network: OverlayNetwork, address: IPv4Address) -> None:
        self.address = str(address)

    def set_nodes(self, nodes: Iterable[PeerEndpoint]) -> None:
        self.nodes = {str(each.addresses[0]): str(each.node) for each in nodes}

    def set_ports(self, ports: Iterable[IngressPort]) -> None:
        self.ports = {(port.protocol, port.published): port for port in ports}

    def change_ports(self, changed: Iterable[IngressPort], gone: Iterable[Key] = ()) -> None:
        for key in gone:
            self.ports.pop(key, None)
        self.ports.update({(port.protocol, port.published): port for port in changed})

    def remove(self) -> None:
        self.removed += 1

    async def close(self) -> None:
        pass


class Host:
    """Node n1 of three, with the addresses of its tasks on the bridge that leads out."""

    def __init__(self) -> None:
        self.local: dict[str, str] = {}
        self.meshes: list[ToldMesh] = []
        self.published = Published(self._make, lambda task_id: self.local.get(task_id, ""))

    def _make(self, node: DataPath) -> Mesh:
        self.meshes.append(ToldMesh(node))
        return self.meshes[-1]

    @property
    def mesh(self) -> ToldMesh:
        (made,) = self.meshes
        return made

    def backends(self, number: int, weight: int = 1) -> list[tuple[str, str]]:
        """Of a published port: node, and address on it where that is known."""
        backends = self.mesh.ports["tcp", number].backends
        return [(str(each.node), str(each.address or "")) for each in backends if each.weight == weight]


def network() -> Network:
    made = Network(id="mesh")
    made.spec.name, made.spec.ingress = "ingress", True
    made.driver_state.name = "overlay"
    made.driver_state.options["com.docker.network.driver.overlay.vxlanid_list"] = "4096"
    made.ipam.configs.append(IPAMConfig(subnet="10.0.0.0/24", gateway="10.0.0.1"))
    return made


def node(number: int) -> NetworkPeer:
    return NetworkPeer(
        node_id=f"n{number}", node_addr=f"192.0.2.{number}", addresses=[f"10.0.0.{number + 10}/24"], network_id="mesh"
    )


def task(task_id: str, number: int, *, ready: bool = True) -> NetworkPeer:
    peer = node(number)
    peer.task_id, peer.service_id, peer.ready = task_id, "web", ready
    return peer


def service(*ports: int) -> NetworkService:
    published = [PortConfig(target_port=80, published_port=each, protocol=PORT_PROTOCOL_TCP) for each in ports]
    return NetworkService(service_id="web", network_id="mesh", ports=published)


@pytest.fixture
def host() -> Host:
    made = Host()
    made.local["t1"] = "172.19.0.2"
    made.published.replace(
        network(),
        [node(1), node(2), node(3), task("t1", 1), task("t2", 2), task("t3", 3, ready=False)],
        [service(8080)],
    )
    made.published.set_node(NODE, "n1")
    return made


def test_a_port_leads_to_the_tasks_of_this_node_by_address_and_to_others_by_node(host: Host) -> None:
    assert host.mesh.address == "10.0.0.11"
    assert host.mesh.nodes == {"10.0.0.12": "192.0.2.2", "10.0.0.13": "192.0.2.3"}
    assert host.backends(8080) == [("10.0.0.11", "172.19.0.2"), ("10.0.0.12", "")]
    assert host.mesh.ports["tcp", 8080].target == 80


def test_a_task_here_is_known_from_its_start_and_until_it_is_gone(host: Host) -> None:
    """With weight 0: other nodes hear of it at another moment than this one, and their clients are served meanwhile."""
    host.published.change({"t5": task("t5", 1, ready=False)}, {})
    assert ("10.0.0.11", "172.19.0.5") not in host.backends(8080, weight=0)
    host.local["t5"] = "172.19.0.5"
    host.published.task_changed("t5")
    assert ("10.0.0.11", "172.19.0.5") in host.backends(8080, weight=0)


def test_changes_of_tasks_ports_and_nodes_reach_it(host: Host) -> None:
    host.published.change({"t2": task("t2", 2, ready=False), "t3": task("t3", 3)}, {})
    assert host.backends(8080) == [("10.0.0.11", "172.19.0.2"), ("10.0.0.13", "")]
    host.published.change({"t1": None}, {"web": service(8080, 9090)})
    assert host.backends(9090) == [("10.0.0.13", "")]
    host.published.change({"n2": None}, {"web": service(9090)})
    assert (set(host.mesh.ports), host.mesh.nodes) == ({("tcp", 9090)}, {"10.0.0.13": "192.0.2.3"})
    host.published.change({}, {"web": None})
    assert host.mesh.ports == {}


def test_a_task_of_this_node_that_has_no_address_yet_gets_nothing(host: Host) -> None:
    host.published.change({"t4": task("t4", 1)}, {})
    assert host.backends(8080) == [("10.0.0.11", "172.19.0.2"), ("10.0.0.12", "")]


def test_a_port_that_went_from_one_service_to_another_stays(host: Host) -> None:
    other = service(8080)
    other.service_id = "shop"
    for services in ({"web": None, "shop": other}, {"web": service(8080), "shop": None}):
        host.published.change({}, services)
        assert set(host.mesh.ports) == {("tcp", 8080)}


def test_what_a_daemon_before_left_goes_when_there_is_no_mesh() -> None:
    host = Host()
    host.published.replace(None, (), ())
    assert host.mesh.removed == 1


def test_there_is_no_mesh_before_this_node_has_an_address_on_it() -> None:
    host = Host()
    host.published.set_node(NODE, "n1")
    host.published.replace(network(), [node(2)], [service(8080)])
    assert host.meshes == []
    host.published.change({"n1": node(1)}, {})
    assert set(host.mesh.ports) == {("tcp", 8080)}


def test_it_goes_with_the_network(host: Host) -> None:
    host.published.replace(None, (), ())
    assert host.mesh.removed == 1
