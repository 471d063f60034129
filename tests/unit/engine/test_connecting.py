"""Containers that come to be on networks and leave them: real containers, real packets."""

from __future__ import annotations

import asyncio
import json
import subprocess

import pytest

from runtime.errors import ForbiddenError, NotConnectedError
from runtime.network_types import IPAM, IPAMConfig, NetworkCreateRequest
from runtime.types import EndpointIPAMConfig, EndpointSettings, HostConfig, PortBinding
from tests.unit.engine.support import Bench
from tests.unit.engine.test_networking import SERVER, fetch

pytestmark = pytest.mark.root
PINGS = "for to in {}; do ping -c1 -W30 $to >/dev/null || exit 1; done"


@pytest.fixture
async def nets(bench: Bench) -> Bench:
    """With two networks more, "back" on 10.8.0.0/24 and "front" on 10.9.0.0/24."""
    for name, subnet in (("back", "10.8.0.0/24"), ("front", "10.9.0.0/24")):
        ipam = IPAM(Config=[IPAMConfig(Subnet=subnet)])
        await bench.engine.networks.create(NetworkCreateRequest(Name=name, IPAM=ipam))
    return bench


def addresses(bench: Bench, container_id: str) -> dict[str, str]:
    """Inside, by interface."""
    pid = bench.engine.inspect(container_id).State.Pid
    command = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-4", "-j", "addr"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return {each["ifname"]: each["addr_info"][0]["local"] for each in found if each["ifname"] != "lo"}


def hosts(bench: Bench, container_id: str) -> set[str]:
    text = (bench.folder / "state" / "containers" / container_id / "hosts").read_text()
    return {line.split()[0] for line in text.splitlines() if container_id[:12] in line}


async def test_a_running_container_joins_a_network_and_leaves_it(nets: Bench) -> None:
    engine = nets.engine
    web = await nets.run(*SERVER, host=HostConfig(NetworkMode="back"))
    joined = await nets.run("sleep", "1000", host=HostConfig())
    settings = EndpointSettings(
        DriverOpts={"com.docker.network.endpoint.sysctls": "net.ipv4.conf.IFNAME.log_martians=1"}
    )
    for _ in range(2):
        await engine.connect("back", joined, settings)
        found = engine.inspect(joined).NetworkSettings
        assert found.Networks["back"].IPAddress in addresses(nets, joined)["eth1"]
        assert hosts(nets, joined) == {each.IPAddress for each in found.Networks.values()}
        assert found.Networks["back"].EndpointID
        assert found.SandboxID == joined
        pid = engine.inspect(joined).State.Pid
        enter = ["nsenter", f"--net={found.SandboxKey}"]
        await asyncio.to_thread(subprocess.run, [*enter, "wget", "-qO-", "-T30", "http://10.8.0.2"], check=True)
        martians = ["cat", "/proc/sys/net/ipv4/conf/eth1/log_martians"]
        assert subprocess.run([*enter, *martians], capture_output=True, check=True).stdout == b"1\n"  # noqa: ASYNC221
        with pytest.raises(ForbiddenError, match="already exists in network back"):
            await engine.connect("back", joined)
        await engine.disconnect("back", joined)
        assert addresses(nets, joined) == {"eth0": found.Networks["bridge"].IPAddress}
        assert hosts(nets, joined) == {found.Networks["bridge"].IPAddress}
        assert engine.inspect(joined).State.Pid == pid
    with pytest.raises(NotConnectedError):
        await engine.disconnect("back", joined)
    assert [*engine.networks.inspect("back").Containers] == [web]


async def test_a_paused_one_too_and_a_stopped_one_at_its_next_start(nets: Bench) -> None:
    engine = nets.engine
    container_id = await nets.run("sleep", "1000", host=HostConfig())
    await engine.pause(container_id)
    await engine.connect("back", container_id)
    assert addresses(nets, container_id) == {"eth0": "172.17.0.2", "eth1": "10.8.0.2"}
    await engine.unpause(container_id)
    await engine.stop(container_id, timeout_s=0)
    await engine.disconnect("bridge", container_id)
    await engine.connect("front", container_id, EndpointSettings(GwPriority=9))
    assert {*engine.inspect(container_id).NetworkSettings.Networks} == {"back", "front"}
    await engine.start(container_id)
    assert sorted(addresses(nets, container_id).values()) == ["10.8.0.3", "10.9.0.2"]
    assert hosts(nets, container_id) == {"10.8.0.3", "10.9.0.2"}
    for name in ("back", "front"):
        await engine.disconnect(name, container_id)
    assert addresses(nets, container_id) == {}
    await engine.restart(container_id, timeout_s=0)
    assert addresses(nets, container_id) == {}
    await engine.connect("back", container_id)
    assert addresses(nets, container_id) == {"eth0": "10.8.0.4"}


async def test_several_networks_at_create_and_published_ports_that_move(nets: Bench) -> None:
    engine = nets.engine
    host = HostConfig(NetworkMode="back", PortBindings={"80/tcp": [PortBinding(HostIp="127.0.0.1")]})
    web = await nets.run(*SERVER, host=host, networks={"back": None, "bridge": None})

    async def port() -> int:
        (binding,) = engine.inspect(web).NetworkSettings.Ports["80/tcp"] or []
        assert await fetch("127.0.0.1", int(binding.HostPort)) == web[:12]
        return int(binding.HostPort)

    first = await port()
    assert engine.inspect(web).NetworkSettings.Networks["back"].DNSNames == [engine.inspect(web).Name[1:], web[:12]]
    await engine.connect("front", web, EndpointSettings(GwPriority=1))
    assert await port() == first
    await engine.disconnect("back", web)
    await engine.disconnect("front", web)
    assert await port() == first
    world = await nets.run("sh", "-c", PINGS.format("172.17.0.1"), host=HostConfig(NetworkMode=f"container:{web}"))
    assert (await engine.wait(world)).StatusCode == 0
    before = addresses(nets, web)

    await engine.close()
    nets.engine = engine = nets.make()
    await engine.open()
    assert addresses(nets, web) == before
    assert await port() == first
    await engine.connect("front", web)
    await engine.disconnect("bridge", web)
    assert await port() == first


async def test_an_address_asked_for_is_kept_for_a_stopped_container(nets: Bench) -> None:
    engine = nets.engine
    asked = {"back": EndpointSettings(IPAMConfig=EndpointIPAMConfig(IPv4Address="10.8.0.3"))}
    first = await nets.run("sleep", "1000", host=HostConfig(NetworkMode="back"), networks=asked, name="first")
    await engine.stop(first, timeout_s=0)
    others = [await nets.run("sleep", "1000", host=HostConfig(NetworkMode="back")) for _ in range(2)]
    assert [addresses(nets, each)["eth0"] for each in others] == ["10.8.0.2", "10.8.0.4"]
    second = await nets.create("sleep", "1000", host=HostConfig(NetworkMode="back"), networks=asked)
    await engine.close()
    nets.engine = engine = nets.make()
    await engine.open()
    with pytest.raises(ForbiddenError, match=r"Address already in use: 10.8.0.3 is reserved for container first"):
        await engine.start(second)
    taken = EndpointSettings(IPAMConfig=EndpointIPAMConfig(IPv4Address="10.8.0.2"))
    third = await nets.run("sleep", "1000", host=HostConfig())
    with pytest.raises(ForbiddenError, match=r"Address already in use: 10.8.0.2 is reserved for container"):
        await engine.connect("back", third, taken)
    await engine.remove(first)
    await engine.start(second)
    assert addresses(nets, second) == {"eth0": "10.8.0.3"}
