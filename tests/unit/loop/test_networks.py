"""Addresses and ports: what the loop gives, what it gives back, and who waits for some."""

from __future__ import annotations

from proto.objects_pb2 import TASK_STATE_NEW, TASK_STATE_PENDING, TASK_STATE_RUNNING
from proto.specs_pb2 import (
    ENDPOINT_MODE_DNSRR,
    FAILURE_ACTION_ROLLBACK,
    PORT_PROTOCOL_TCP,
    PORT_PROTOCOL_UDP,
    PUBLISH_MODE_INGRESS,
    NetworkAttachmentConfig,
    PortConfig,
    PortProtocol,
    ServiceSpec,
)
from tests.unit.loop.harness import Change, Harness


def on(*networks: str, dnsrr: bool = False) -> Change:
    def change(spec: ServiceSpec) -> None:
        del spec.task_template.networks[:]
        spec.task_template.networks.extend(NetworkAttachmentConfig(target=network) for network in networks)
        if dnsrr:
            spec.endpoint_spec.mode = ENDPOINT_MODE_DNSRR

    return change


def publishing(*ports: int, protocol: PortProtocol.ValueType = PORT_PROTOCOL_TCP) -> Change:
    def change(spec: ServiceSpec) -> None:
        del spec.endpoint_spec.ports[:]
        spec.endpoint_spec.ports.extend(
            PortConfig(target_port=80 + n, published_port=port, protocol=protocol, publish_mode=PUBLISH_MODE_INGRESS)
            for n, port in enumerate(ports)
        )

    return change


def addresses(cluster: Harness, service_id: str) -> list[list[str]]:
    """Of the live tasks: each one's, over all networks."""
    return [
        [address for attachment in task.networks_attachments for address in attachment.addresses]
        for task in cluster.live(service_id)
    ]


def virtual_ips(cluster: Harness, service_id: str) -> list[tuple[str, str]]:
    return [(each.network_id, each.addr) for each in cluster.service(service_id).endpoint.virtual_ips]


def ports(cluster: Harness, service_id: str) -> list[int]:
    return [port.published_port for port in cluster.service(service_id).endpoint.ports]


async def test_a_service_and_its_tasks_have_an_address_on_each_of_its_networks() -> None:
    cluster = await Harness.started(nodes=2)
    await cluster.create_network("front", subnet="10.0.1.0/24")
    await cluster.create_network("back", subnet="10.0.2.0/24")
    web = await cluster.create_service("web", replicas=2, change=on("front", "network-back"))
    await cluster.work()
    assert len(cluster.running(web)) == 2
    assert virtual_ips(cluster, web) == [("network-front", "10.0.1.2/24"), ("network-back", "10.0.2.2/24")]
    assert sorted(addresses(cluster, web)) == [["10.0.1.3/24", "10.0.2.3/24"], ["10.0.1.4/24", "10.0.2.4/24"]]


async def test_tasks_that_find_no_address_say_so_and_wait_for_one() -> None:
    cluster = await Harness.started(nodes=1)
    await cluster.create_network("tiny", subnet="10.0.1.0/29")  # .2 to .6, one of them the virtual IP
    web = await cluster.create_service("web", replicas=6, change=on("tiny"))
    await cluster.work()
    waiting = [task for task in cluster.live(web) if task.status.state == TASK_STATE_NEW]
    assert len(cluster.running(web)) == 4
    assert {task.status.err for task in waiting} == {
        "no available IPv4 addresses on network tiny: all 5 of 10.0.1.0/29 are in use"
    }
    assert len(waiting) == 2
    await cluster.fail(cluster.running(web)[0])
    await cluster.wait(10)
    assert len(cluster.running(web)) == 4, "whoever waits gets what the failed task gave back"
    await cluster.scale(web, 4)
    await cluster.wait(10)
    assert [task.status.state for task in cluster.live(web)] == [TASK_STATE_RUNNING] * 4


async def test_a_service_that_finds_no_virtual_ip_keeps_its_tasks_until_there_is_one() -> None:
    cluster = await Harness.started(nodes=1)
    await cluster.create_network("tiny", subnet="10.0.1.0/30")  # one address
    first = await cluster.create_service("first", replicas=1, change=on("tiny", dnsrr=True))
    await cluster.work()
    second = await cluster.create_service("second", replicas=0, change=on("tiny"))
    third = await cluster.create_service("third", replicas=1, change=on("tiny", dnsrr=True))
    await cluster.work()
    assert (len(cluster.running(first)), virtual_ips(cluster, second), len(cluster.running(third))) == (1, [], 0)
    await cluster.remove_service(third)
    await cluster.remove_service(first)
    await cluster.work()
    assert virtual_ips(cluster, second) == [("network-tiny", "10.0.1.2/30")]
    await cluster.scale(second, 1)
    await cluster.work()
    assert [task.status.state for task in cluster.live(second)] == [TASK_STATE_NEW]


async def test_virtual_ips_follow_the_networks_and_the_mode() -> None:
    cluster = await Harness.started(nodes=1)
    await cluster.create_network("front", subnet="10.0.1.0/24")
    await cluster.create_network("back", subnet="10.0.2.0/24")
    web = await cluster.create_service("web", change=on("front"))
    await cluster.work()
    await cluster.update_service(web, on("network-front", "back"))
    await cluster.wait(10)
    assert virtual_ips(cluster, web) == [("network-front", "10.0.1.2/24"), ("network-back", "10.0.2.2/24")]
    assert [len(each) for each in addresses(cluster, web)] == [2]
    await cluster.update_service(web, on("network-back", dnsrr=True))
    await cluster.wait(10)
    assert virtual_ips(cluster, web) == []
    assert cluster.loop.known.allocation.addresses.usage("network-front") == {"10.0.1.0/24": (0, 253)}
    assert cluster.loop.known.allocation.addresses.usage("network-back") == {"10.0.2.0/24": (1, 253)}


async def test_ports_that_are_left_open_are_given_once_and_kept() -> None:
    cluster = await Harness.started(nodes=1)
    await cluster.create_network("ingress", subnet="10.0.0.0/24", ingress=True)
    fixed = await cluster.create_service("fixed", change=publishing(30001))
    open_ = await cluster.create_service("open", change=publishing(0, 0))
    other = await cluster.create_service("other", change=publishing(0, protocol=PORT_PROTOCOL_UDP))
    await cluster.work()
    assert (ports(cluster, fixed), ports(cluster, open_), ports(cluster, other)) == ([30001], [30000, 30002], [30000])
    await cluster.scale(open_, 3)
    await cluster.work()
    assert ports(cluster, open_) == [30000, 30002]
    await cluster.remove_service(open_)
    again = await cluster.create_service("again", change=publishing(0))
    await cluster.work()
    assert ports(cluster, again) == [30000]


async def test_a_service_that_failed_does_not_go_back_to_a_port_that_another_has_now() -> None:
    cluster = await Harness.started(nodes=1)
    await cluster.create_network("ingress", subnet="10.0.0.0/24", ingress=True)
    web = await cluster.create_service("web", change=publishing(8080))
    await cluster.wait(10)

    def failing(spec: ServiceSpec) -> None:
        publishing()(spec)
        spec.task_template.container_spec.image = "broken"
        spec.update_config.failure_action = FAILURE_ACTION_ROLLBACK
        spec.update_config.monitor_ns = 5 * 10**9

    await cluster.update_service(web, failing)
    await cluster.create_service("other", change=publishing(8080))
    for _ in range(4):
        await cluster.work()
        for task in cluster.running(web):
            await cluster.fail(task)
        await cluster.wait(2)
    status = cluster.service(web).update_status
    assert "port 8080, which service other publishes" in status.message
    assert ports(cluster, web) == []


async def test_every_node_has_an_address_on_the_mesh_once_something_is_published_there() -> None:
    cluster = await Harness.started(nodes=2)
    await cluster.create_network("ingress", subnet="10.0.0.0/24", ingress=True)
    await cluster.settle()
    assert not any(node.HasField("ingress") for node in cluster.store.view.nodes)
    await cluster.create_service("web", change=publishing(80))
    await cluster.settle()
    await cluster.add_node("n3")
    await cluster.settle()
    assert sorted(address for node in cluster.store.view.nodes for address in node.ingress.addresses) == [
        "10.0.0.2/24",
        "10.0.0.3/24",
        "10.0.0.4/24",
    ]


async def test_another_leader_gives_nobody_what_somebody_has() -> None:
    cluster = await Harness.started(nodes=2)
    await cluster.create_network("front", subnet="10.0.1.0/28")
    web = await cluster.create_service("web", replicas=4, change=on("front"))
    await cluster.work()
    cluster.change_leader()
    await cluster.scale(web, 9)
    await cluster.work()
    taken = [address for each in addresses(cluster, web) for address in each] + [virtual_ips(cluster, web)[0][1]]
    assert len(taken) == len(set(taken)) == 10


async def test_a_network_that_goes_takes_its_addresses_along_though_tasks_are_still_on_it() -> None:
    cluster = await Harness.started()
    front = await cluster.create_network("front", subnet="10.0.1.0/24")
    web = await cluster.create_service("web", change=on(front))
    await cluster.settle()
    assert [task.status.state for task in cluster.live(web)] == [TASK_STATE_PENDING]
    await cluster.remove_service(web)
    await cluster.remove_network(front)
    await cluster.create_network("next", subnet="10.0.1.0/24")
    other = await cluster.create_service("other", change=on("next"))
    await cluster.settle()
    assert virtual_ips(cluster, other) == [("network-next", "10.0.1.2/24")]
