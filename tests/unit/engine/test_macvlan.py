"""Containers on the cable of the host, with real packets. Kernels without a kind of device have it left out."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any  # Any: options of a network, beside an argument of another type

import pytest

from runtime.errors import HostError
from runtime.network_types import IPAM, IPAMConfig, NetworkCreateRequest
from runtime.types import EndpointSettings, HostConfig
from tests.unit.engine.support import Bench
from tests.unit.networks.places import Place, place, sh

pytestmark = pytest.mark.root


@pytest.fixture
def lan(bench: Bench) -> Iterator[Place]:
    """A host at 10.7.0.254 (and, in VLAN 10, at 10.10.0.254) on the cable of our cable0."""
    with place() as other:
        sh(f"ip link add cable0 type veth peer name eth0 netns {other.pid}")
        sh("ip link set cable0 up")
        other.run("ip", "addr", "add", "10.7.0.254/24", "dev", "eth0")
        other.run("ip", "link", "set", "eth0", "up")
        yield other
        subprocess.run(["ip", "link", "del", "cable0"], check=False)


async def create(bench: Bench, name: str, driver: str, subnet: str, *, internal: bool = False, **options: Any) -> None:
    ipam = IPAM(Config=[IPAMConfig(Subnet=subnet, Gateway="" if internal else subnet.replace("0/24", "254"))])
    request = NetworkCreateRequest(Name=name, Driver=driver, Options=options, IPAM=ipam)
    try:
        await bench.engine.networks.create(request)
    except HostError as error:
        if "not supported" not in str(error):
            raise
        pytest.skip(str(error))


async def run(bench: Bench, network: str) -> str:
    try:
        return await bench.run("sleep", "1000", host=HostConfig(NetworkMode=network))
    except HostError as error:
        if "not supported" not in str(error):
            raise
        pytest.skip(str(error))


def inside(bench: Bench, container_id: str, *command: str) -> str:
    pid = bench.engine.inspect(container_id).State.Pid
    enter = ["nsenter", f"--net=/proc/{pid}/ns/net", *command]
    done = subprocess.run(enter, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def ping(bench: Bench, container_id: str, address: str) -> None:
    await asyncio.to_thread(inside, bench, container_id, "busybox", "ping", "-c1", "-W30", address)


def links() -> set[str]:
    listed = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    return {line.split(":")[0].strip() for line in listed}


@pytest.mark.parametrize(
    ("driver", "options"),
    [("macvlan", {}), ("macvlan", {"macvlan_mode": "passthru"}), ("ipvlan", {}), ("ipvlan", {"ipvlan_mode": "l3s"})],
)
async def test_neighbours_on_the_cable_reach_each_other(
    bench: Bench, lan: Place, driver: str, options: dict[str, Any]
) -> None:
    engine = bench.engine
    await create(bench, "lan", driver, "10.7.0.0/24", parent="cable0", **options)
    first = await run(bench, "lan")
    endpoint = engine.inspect(first).NetworkSettings.Networks["lan"]
    assert endpoint.IPAddress == "10.7.0.1"
    if options.get("ipvlan_mode") == "l3s":  # layer 3 does not answer for its addresses: the cable has to know a route
        assert endpoint.Gateway == ""
        assert "default dev eth0" in inside(bench, first, "ip", "route")
        second = await run(bench, "lan")
        await ping(bench, second, "10.7.0.1")
    else:
        assert endpoint.Gateway == "10.7.0.254"
        assert "default via 10.7.0.254 dev eth0" in inside(bench, first, "ip", "route")
        await ping(bench, first, "10.7.0.254")
        await asyncio.to_thread(lan.run, "busybox", "ping", "-c1", "-W30", "10.7.0.1")
    if options == {}:
        second = await run(bench, "lan")
        await ping(bench, second, "10.7.0.1")
        await engine.disconnect("lan", second)
        assert "eth0" not in inside(bench, second, "ip", "link")
        await engine.connect("lan", second, EndpointSettings())
        await ping(bench, second, "10.7.0.1")
        await engine.close()
        bench.engine = engine = bench.make()
        await engine.open()
        third = await run(bench, "lan")
        addresses = [engine.inspect(each).NetworkSettings.Networks["lan"].IPAddress for each in (first, second, third)]
        assert len(set(addresses)) == 3
        await ping(bench, third, addresses[0])
    for summary in engine.list(all=True):
        await engine.remove(summary.Id, force=True)
    await engine.networks.remove("lan")
    assert "cable0" in links()


async def test_a_vlan_is_made_and_goes_with_its_network(bench: Bench, lan: Place) -> None:
    await create(bench, "ten", "macvlan", "10.10.0.0/24", parent="cable0.10")
    lan.run("ip", "link", "add", "link", "eth0", "name", "eth0.10", "type", "vlan", "id", "10")
    lan.run("ip", "addr", "add", "10.10.0.254/24", "dev", "eth0.10")
    lan.run("ip", "link", "set", "eth0.10", "up")
    container_id = await run(bench, "ten")
    await ping(bench, container_id, "10.10.0.254")
    await bench.engine.remove(container_id, force=True)
    await bench.engine.networks.remove("ten")
    assert not {name for name in links() if name.startswith("cable0.")}


async def test_without_a_parent_containers_have_each_other(bench: Bench) -> None:
    await create(bench, "alone", "macvlan", "10.11.0.0/24", internal=True)
    first, second = [await run(bench, "alone") for _ in range(2)]
    await ping(bench, second, bench.engine.inspect(first).NetworkSettings.Networks["alone"].IPAddress)
    assert "default" not in inside(bench, first, "ip", "route")
    for each in (first, second):
        await bench.engine.remove(each, force=True)
    await bench.engine.networks.remove("alone")
    assert not {name for name in links() if name.startswith("dm-")}
