"""The loop of the overlays, on a kernel in memory that refuses when told to."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.errors import HostError
from runtime.kernel.network import (
    AddVeth,
    AddVxlan,
    DeleteLink,
    FlowPattern,
    SetForwarding,
    SetUp,
    Translation,
    VxlanLink,
)
from tests.unit.networks.fakes import RecordingKernel, Step
from worker.network.overlays import Overlays
from worker.network.types import (
    Backend,
    BalancedService,
    DataPath,
    LocalEndpoint,
    NetworkID,
    OverlayNetwork,
    PeerEndpoint,
    Subnet,
)

HERE, THERE = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")
NET = ipaddress.ip_network("10.0.1.0/24")
RED = NetworkID("red")
NETWORK = OverlayNetwork(id=RED, vni=4097, subnets=(Subnet(NET, NET[1]),))
VIP = NET[250]


@dataclass
class Bed:
    kernel: RecordingKernel
    overlays: Overlays
    run: Path

    async def join(self, number: int = 2) -> LocalEndpoint:
        sandbox = f"/proc/{number}/ns/net"
        await self.kernel.keep_namespace(sandbox)
        endpoint = LocalEndpoint(f"e{number}", (NET[number],), f"veth{number}", "eth0", sandbox)
        await self.overlays.join(RED, endpoint, [SetUp("eth0")])
        return endpoint

    @property
    def namespace(self) -> str:
        return str(self.run / "overlays" / "red")

    async def vxlan(self) -> VxlanLink:
        found = await self.kernel.vxlan("vxlan0", self.namespace)
        assert found
        return found

    async def settled(self) -> None:
        await asyncio.wait_for(self.overlays.settled(RED), 30)


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    kernel = RecordingKernel()
    made = Bed(kernel, Overlays(kernel, tmp_path, DataPath(HERE)), tmp_path)
    yield made
    await made.overlays.close()


async def test_nothing_is_made_before_somebody_here_needs_it(bed: Bed) -> None:
    bed.overlays.set_network(NETWORK)
    bed.overlays.set_peers(RED, [PeerEndpoint((NET[9],), THERE)])
    await bed.settled()
    assert bed.kernel.done == []
    endpoint = await bed.join()
    assert (await bed.vxlan()).neighbours == {NET[9]: "02:42:0a:00:01:09"}
    await bed.overlays.leave(RED, endpoint)
    await bed.settled()
    assert not await bed.kernel.has_namespace(bed.namespace)
    assert bed.kernel.link_watchers == []


async def test_a_network_that_nobody_told_of_cannot_be_joined(bed: Bed) -> None:
    with pytest.raises(HostError, match="red is not known on this node"):
        await bed.join()


@pytest.mark.parametrize("step", [AddVxlan, AddVeth, SetForwarding, SetUp, "rules", "sysctls"])
async def test_a_join_that_fails_leaves_nothing(bed: Bed, step: Step) -> None:
    bed.overlays.set_network(NETWORK)
    await bed.settled()
    bed.kernel.refuse(step)
    with pytest.raises(HostError):
        await bed.join()
    await bed.settled()
    assert bed.overlays.networks_in_use() == {}
    assert not await bed.kernel.has_namespace(bed.namespace)
    assert set(bed.kernel.devices["/proc/2/ns/net"]) == {"lo"}
    await bed.join()


async def test_what_the_kernel_refuses_is_tried_again_until_it_is_there(bed: Bed) -> None:
    bed.overlays.set_network(NETWORK)
    await bed.join()
    bed.overlays.set_peers(RED, [])
    await bed.settled()
    bed.kernel.refuse(SetForwarding)
    bed.overlays.change_peers(RED, [PeerEndpoint((NET[9],), THERE)])
    await bed.settled()
    assert (await bed.vxlan()).forwarding == {"02:42:0a:00:01:09": THERE}


async def test_changes_that_were_told_at_once_are_one_pass(bed: Bed) -> None:
    bed.overlays.set_network(NETWORK)
    await bed.join()
    bed.overlays.set_peers(RED, [])
    await bed.settled()
    bed.kernel.done.clear()
    for number in range(3, 9):
        bed.overlays.change_peers(RED, [PeerEndpoint((NET[number],), THERE)])
    bed.overlays.change_peers(RED, [], [NET[number] for number in range(3, 8)])
    await bed.settled()
    assert len(bed.kernel.done) == 2
    assert (await bed.vxlan()).neighbours.keys() == {NET[8]}


async def test_another_address_of_the_node_makes_the_device_anew(bed: Bed) -> None:
    bed.overlays.set_network(NETWORK)
    await bed.join()
    bed.overlays.set_peers(RED, [PeerEndpoint((NET[9],), THERE)])
    await bed.settled()
    bed.overlays.set_node(DataPath(ipaddress.ip_address("192.0.2.7"), 4790))
    await bed.settled()
    assert ((await bed.vxlan()).local, (await bed.vxlan()).port) == (ipaddress.ip_address("192.0.2.7"), 4790)
    assert (await bed.vxlan()).forwarding == {"02:42:0a:00:01:09": THERE}


async def test_a_forgotten_network_goes_with_its_last_endpoint(bed: Bed) -> None:
    bed.overlays.set_network(NETWORK)
    endpoint = await bed.join()
    bed.overlays.forget_network(RED)
    await bed.settled()
    assert await bed.kernel.has_namespace(bed.namespace)
    await bed.overlays.leave(RED, endpoint)
    await bed.settled()
    assert not await bed.kernel.has_namespace(bed.namespace)


async def test_a_service_is_the_same_in_every_container_and_flows_of_the_departed_end(bed: Bed) -> None:
    bed.overlays.set_network(NETWORK)
    endpoints = [await bed.join(2), await bed.join(3)]
    bed.overlays.set_services(RED, [BalancedService(VIP, (Backend(NET[9]), Backend(NET[10])))])
    await bed.settled()
    bed.kernel.flows[endpoints[0].sandbox] = {Translation(6, VIP, 80, NET[9]), Translation(17, VIP, 53, NET[10])}
    bed.overlays.change_services(RED, [BalancedService(VIP, (Backend(NET[10]),))])
    await bed.settled()
    first, second = (bed.kernel.rules_inside[each.sandbox]["ip overlay-red"] for each in endpoints)
    assert first == second
    assert bed.kernel.flows[endpoints[0].sandbox] == {Translation(17, VIP, 53, NET[10])}
    late = await bed.join(4)
    assert "goto of-1" in bed.kernel.rules_inside[late.sandbox]["ip overlay-red"]


async def test_one_container_whose_rules_cannot_be_changed_keeps_no_other_from_its_own(bed: Bed) -> None:
    bed.overlays.set_network(NETWORK)
    endpoints = [await bed.join(2), await bed.join(3)]
    bed.overlays.set_services(RED, [])
    await bed.settled()
    bed.kernel.refuse("rules")
    bed.overlays.change_services(RED, [BalancedService(VIP, (Backend(NET[9]),))])
    await bed.settled()
    for each in endpoints:
        assert "goto of-1" in bed.kernel.rules_inside[each.sandbox]["ip overlay-red"]


async def test_rules_of_an_adopted_container_stay_until_the_services_are_told(bed: Bed) -> None:
    bed.overlays.set_network(NETWORK)
    endpoint = await bed.join()
    bed.overlays.set_services(RED, [BalancedService(VIP, (Backend(NET[9]),))])
    await bed.settled()
    bed.kernel.flows[endpoint.sandbox] = {Translation(17, VIP, 53, NET[9])}
    before = bed.kernel.rules_inside[endpoint.sandbox]["ip overlay-red"]
    after = Overlays(bed.kernel, bed.run, DataPath(HERE))
    after.adopt(RED, endpoint)
    after.set_network(NETWORK)
    after.set_peers(RED, [])
    await after.settled(RED)
    assert bed.kernel.rules_inside[endpoint.sandbox]["ip overlay-red"] == before
    after.set_services(RED, [BalancedService(VIP, (Backend(NET[10]),))])
    await after.settled(RED)
    assert f"{NET[10]}" in bed.kernel.rules_inside[endpoint.sandbox]["ip overlay-red"]
    assert FlowPattern(address=VIP, target=NET[9]) in bed.kernel.done
    await after.close()


async def test_a_container_that_leaves_a_network_and_lives_on_keeps_nothing_of_it(bed: Bed) -> None:
    bed.overlays.set_network(NETWORK)
    endpoint = await bed.join()
    for _ in range(2):
        await bed.overlays.leave(RED, endpoint)
    assert bed.kernel.rules_inside[endpoint.sandbox] == {}
    assert DeleteLink("veth2") in bed.kernel.done
