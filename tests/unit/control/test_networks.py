"""Networks of the cluster through the control API (features A11)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from manager.control.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
)
from manager.control.networks import ingress_network, resolve_networks
from manager.store import ObjectInUseError
from proto import control_pb2 as pb
from proto.objects_pb2 import TASK_STATE_RUNNING, Cluster, Network, NetworkAttachment, Service, Task
from proto.specs_pb2 import IPAMConfig, NetworkAttachmentConfig, NetworkSpec, PortConfig, ServiceSpec
from tests.unit.control.builders import service_spec
from tests.unit.control.managed import Managed

VNI = "com.docker.network.driver.overlay.vxlanid_list"


def network_spec(
    name: str = "front", *, subnet: str = "", gateway: str = "", options: Mapping[str, str] | None = None
) -> NetworkSpec:
    spec = NetworkSpec(name=name)
    spec.driver_configuration.name = "overlay"
    spec.driver_configuration.options.update(options or {})
    if subnet:
        spec.ipam_options.configs.append(IPAMConfig(subnet=subnet, gateway=gateway))
    return spec


async def create(manager: Managed, spec: NetworkSpec) -> Network:
    response = await manager.call("CreateNetwork", pb.CreateNetworkRequest(spec=spec))
    assert isinstance(response, pb.CreateNetworkResponse)
    return response.network


async def remove(manager: Managed, ref: str) -> None:
    await manager.call("RemoveNetwork", pb.RemoveNetworkRequest(ref=ref))


async def add_service(manager: Managed, spec: ServiceSpec, *, pending_delete: bool = False) -> None:
    service = Service(id=f"id-{spec.name}", spec=spec, pending_delete=pending_delete)
    resolve_networks(manager.store.view, service.spec)
    service.endpoint.ports.extend(spec.endpoint_spec.ports)
    await manager.commit(lambda working: working.create(service))


def on(*targets: str) -> ServiceSpec:
    spec = service_spec()
    spec.task_template.networks.extend(NetworkAttachmentConfig(target=target) for target in targets)
    return spec


async def test_a_network_gets_the_next_number_and_a_free_subnet(manager: Managed) -> None:
    front, back = await create(manager, network_spec("front")), await create(manager, network_spec("back"))
    assert [(each.vni, each.ipam.configs[0].subnet, each.ipam.configs[0].gateway) for each in (front, back)] == [
        (4096, "10.0.0.0/24", "10.0.0.1"),
        (4097, "10.0.1.0/24", "10.0.1.1"),
    ]
    assert dict(back.driver_state.options) == {VNI: "4097"}
    await remove(manager, "back")
    again = await create(manager, network_spec("back"))
    assert (again.vni, again.ipam.configs[0].subnet) == (4098, "10.0.1.0/24")


async def test_what_was_asked_for_is_kept_and_shown(manager: Managed) -> None:
    spec = network_spec(subnet="192.168.7.0/24", gateway="192.168.7.254", options={VNI: "5000"})
    spec.labels["tier"] = "front"
    network = await create(manager, spec)
    assert (network.vni, network.ipam.configs[0].gateway) == (5000, "192.168.7.254")
    found = await manager.call("GetNetwork", pb.GetNetworkRequest(ref="front"))
    assert found.network == network
    listed = await manager.call(
        "ListNetworks",
        pb.ListNetworksRequest(filters=pb.Filters(by_key={"label": pb.FilterValues(values=["tier=front"])})),
    )
    assert [Network.FromString(each).id for each in listed.networks] == [network.id]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (network_spec(""), "name must be provided"),
        (network_spec("a b"), "name must be valid as a DNS name component"),
        (network_spec(subnet="10.1.0.0"), "subnet 10.1.0.0/32 is too small"),
        (network_spec(subnet="10.1.0.7/24"), "invalid subnet 10.1.0.7/24"),
        (network_spec(subnet="10.1.0.0/24", gateway="10.2.0.1"), "does not belong to the subnet"),
        (network_spec(subnet="10.1.0.0/24", gateway="x"), "invalid gateway x"),
        (network_spec(subnet="fd00::/64"), "wants a network with IPv6 enabled"),
        (network_spec(subnet="224.0.0.0/24"), "is no subnet of hosts"),
        (network_spec(subnet="10.1.0.0/24", gateway="10.1.0.1%x"), "invalid gateway"),
        (NetworkSpec(name="mesh", ingress=True, ipv6_enabled=True), "ingress network wants IPv4 and one subnet"),
        (network_spec(options={"com.docker.network.driver.mtu": "much"}), "invalid com.docker.network.driver.mtu"),
        (network_spec(options={VNI: "16777216"}), "want a number from 1 to 16777215"),
        (network_spec(options={"com.docker.network.bridge.name": "x"}), "an overlay has no such option"),
    ],
)
async def test_what_cannot_be_is_refused(manager: Managed, spec: NetworkSpec, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        await create(manager, spec)
    assert len(manager.store.view.networks) == 0


async def test_what_is_taken_is_refused(manager: Managed) -> None:
    await create(manager, network_spec("front", subnet="10.5.0.0/16", options={VNI: "5000"}))
    with pytest.raises(AlreadyExistsError, match="network front already exists"):
        await create(manager, network_spec("front"))
    with pytest.raises(AlreadyExistsError, match="network with name host already exists"):
        await create(manager, network_spec("host"))
    with pytest.raises(InvalidArgumentError, match="Pool overlaps with other one on this address space"):
        await create(manager, network_spec("back", subnet="10.5.3.0/24"))
    with pytest.raises(InvalidArgumentError, match="VXLAN network identifier 5000 is in use"):
        await create(manager, network_spec("back", options={VNI: "5000"}))


async def test_what_is_not_served_says_so(manager: Managed) -> None:
    macvlan = network_spec("lan")
    macvlan.driver_configuration.name = "macvlan"
    for spec in (
        macvlan,
        network_spec(options={"encrypted": ""}),
        network_spec(options={"dsr": ""}),
        NetworkSpec(name="x", config_from="y"),
    ):
        with pytest.raises(UnimplementedError, match="not served"):
            await create(manager, spec)
    await create(manager, network_spec(options={"encrypted": "false"}))


async def test_there_is_one_ingress_network_which_stays_while_ports_are_published(manager: Managed) -> None:
    publishing = service_spec()
    publishing.endpoint_spec.ports.append(PortConfig(target_port=80, published_port=80))
    with pytest.raises(FailedPreconditionError, match="no ingress network is present"):
        resolve_networks(manager.store.view, publishing)
    mesh = await create(manager, NetworkSpec(name="mesh", ingress=True))
    with pytest.raises(AlreadyExistsError, match=f"ingress network \\({mesh.id}\\) is already present"):
        await create(manager, NetworkSpec(name="other", ingress=True))
    with pytest.raises(InvalidArgumentError, match="cannot be explicitly attached to the ingress network"):
        resolve_networks(manager.store.view, on("mesh"))
    await add_service(manager, publishing)
    with pytest.raises(FailedPreconditionError, match="service web depends on it"):
        await remove(manager, "mesh")
    await manager.commit(lambda working: working.remove(working.services.find("web")))
    await remove(manager, "mesh")


async def test_a_new_cluster_has_an_ingress_network(manager: Managed) -> None:
    cluster = Cluster()
    cluster.CopyFrom(manager.store.view.cluster)
    network = ingress_network(cluster, "an-id")
    assert (network.spec.name, network.vni, network.ipam.configs[0].subnet) == ("ingress", 4096, "10.0.0.0/24")
    assert cluster.last_vni == 4096


async def test_a_service_names_networks_by_id_and_keeps_them(manager: Managed) -> None:
    front = await create(manager, network_spec("front"))
    spec = on("front", "host")
    await add_service(manager, spec)
    named = manager.store.view.services.find("web").spec.task_template.networks
    assert [each.target for each in named] == [front.id, "host"]
    with pytest.raises(ObjectInUseError, match="network 'front' is in use by the following service: web"):
        await remove(manager, "front")
    with pytest.raises(NotFoundError, match="network back not found"):
        resolve_networks(manager.store.view, on("back"))
    with pytest.raises(InvalidArgumentError, match="network front is named twice"):
        resolve_networks(manager.store.view, on("front", front.id[:12]))


async def test_a_network_stays_while_a_task_of_an_earlier_spec_runs_on_it(manager: Managed) -> None:
    front = await create(manager, network_spec("front"))
    task = Task(id="t1", service_id="web", desired_state=TASK_STATE_RUNNING)
    task.status.state = TASK_STATE_RUNNING
    task.networks_attachments.append(NetworkAttachment(network_id=front.id, addresses=["10.0.0.2/24"]))
    await manager.commit(lambda working: working.create(task))
    with pytest.raises(FailedPreconditionError, match="network front is in use by task t1"):
        await remove(manager, "front")


async def test_a_network_can_go_while_tasks_of_a_removed_service_still_stop(manager: Managed) -> None:
    await create(manager, network_spec("front"))
    await add_service(manager, on("front"), pending_delete=True)
    await remove(manager, "front")
