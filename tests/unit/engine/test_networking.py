"""The default bridge, ports, the other network modes: real packets in a network namespace of the test's own."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from runtime.errors import InvalidParameterError, NetworkNotFoundError, UnavailableError
from runtime.types import (
    ContainerConfig,
    HostConfig,
    PortBinding,
)
from tests.support_images import BUSYBOX_TAG
from tests.unit.engine.support import Bench
from tests.waiting import until

pytestmark = pytest.mark.root
SERVER = ["sh", "-c", "mkdir /w; hostname > /w/index.html; httpd -f -p 80 -h /w"]


@pytest.fixture
async def outside(bench: Bench) -> AsyncIterator[Callable[..., str]]:
    """A second host, 203.0.113.2, on a cable to ours (203.0.113.1), which it knows no route beyond; runs commands."""
    holder = await asyncio.to_thread(subprocess.Popen, ["unshare", "--net", "sleep", "600"], start_new_session=True)
    namespace = f"/proc/{holder.pid}/ns/net"
    while Path(namespace).stat().st_ino == Path("/proc/thread-self/ns/net").stat().st_ino:
        await asyncio.sleep(0.005)
    for command in (
        f"ip link add outside0 type veth peer name eth0 netns {holder.pid}",
        "ip addr add 203.0.113.1/24 dev outside0",
        "ip link set outside0 up",
        f"nsenter --net={namespace} ip addr add 203.0.113.2/24 dev eth0",
        f"nsenter --net={namespace} ip link set eth0 up",
        f"nsenter --net={namespace} ip link set lo up",
    ):
        subprocess.run(command.split(), check=True)  # noqa: ASYNC221 - a moment

    def run(*command: str) -> str:
        done = subprocess.run(["nsenter", f"--net={namespace}", *command], capture_output=True, text=True, timeout=60)
        return done.stdout

    yield run
    holder.kill()
    holder.wait()


async def fetch(address: str, port: int) -> str:
    """Body of GET / once the server answers."""
    deadline = asyncio.get_running_loop().time() + 30
    while True:
        try:
            return await asyncio.to_thread(_fetch, address, port)
        except OSError:
            assert asyncio.get_running_loop().time() < deadline, f"no answer from {address}:{port}"
            await asyncio.sleep(0.02)


def _fetch(address: str, port: int) -> str:
    with socket.create_connection((address, port), timeout=10) as made:
        made.sendall(b"GET / HTTP/1.0\r\n\r\n")
        data = b""
        while piece := made.recv(4096):
            data += piece
    return data.partition(b"\r\n\r\n")[2].decode().strip()


async def test_containers_reach_each_other_and_the_world_behind_our_address(
    bench: Bench, outside: Callable[..., str]
) -> None:
    first = await bench.run(*SERVER, host=HostConfig())
    endpoint = bench.engine.inspect(first).NetworkSettings.Networks["bridge"]
    assert (endpoint.IPAddress, endpoint.IPPrefixLen, endpoint.Gateway) == ("172.17.0.2", 16, "172.17.0.1")
    assert endpoint.MacAddress == "02:42:ac:11:00:02"
    assert await fetch("172.17.0.2", 80) == first[:12]
    second = await bench.run("sh", "-c", "wget -qO- 172.17.0.2 && ping -c1 -W30 203.0.113.2", host=HostConfig())
    assert (await bench.engine.wait(second)).StatusCode == 0, await bench.output(second)
    network = bench.engine.networks.inspect("bridge")
    assert network.Containers[first].IPv4Address == "172.17.0.2/16"
    assert [pool.Subnet for pool in network.IPAM.Config or ()] == ["172.17.0.0/16"]
    assert "172.17" not in outside("ip", "neigh")


async def test_published_ports_from_outside_from_the_host_and_from_a_container(
    bench: Bench, outside: Callable[..., str]
) -> None:
    host = HostConfig(PortBindings={"80/tcp": [PortBinding(HostPort="8080"), PortBinding(HostIp="127.0.0.1")]})
    web = await bench.run(*SERVER, host=host)
    bindings = bench.engine.inspect(web).NetworkSettings.Ports["80/tcp"] or []
    assert (bindings[0].HostIp, bindings[0].HostPort) == ("0.0.0.0", "8080")
    assert await fetch("127.0.0.1", 8080) == web[:12]
    assert await fetch("203.0.113.1", 8080) == web[:12]
    assert await fetch("127.0.0.1", int(bindings[1].HostPort)) == web[:12]
    assert outside("wget", "-qO-", "-T30", "http://203.0.113.1:8080").strip() == web[:12]
    assert outside("wget", "-qO-", "-T1", "-t1", f"http://203.0.113.1:{bindings[1].HostPort}") == ""
    itself = await bench.run("wget", "-qO-", "http://203.0.113.1:8080/", host=HostConfig())
    assert (await bench.engine.wait(itself)).StatusCode == 0
    assert (await bench.output(itself)).strip() == web[:12]

    clash = await bench.create("true", host=HostConfig(PortBindings={"80/tcp": [PortBinding(HostPort="8080")]}))
    with pytest.raises(UnavailableError, match=r"Bind for 0.0.0.0:8080 failed: port is already allocated"):
        await bench.engine.start(clash)
    await bench.engine.stop(web, timeout_s=0)
    await bench.engine.remove(web)
    await bench.engine.start(clash)
    assert (await bench.engine.wait(clash)).StatusCode == 0


async def test_host_none_and_container_modes(bench: Bench) -> None:
    web = await bench.run(*SERVER, host=HostConfig())
    joined = await bench.run(
        "sh", "-c", "until wget -qO- 127.0.0.1; do sleep 0.05; done", host=HostConfig(NetworkMode=f"container:{web}")
    )
    assert (await bench.engine.wait(joined)).StatusCode == 0
    assert web[:12] in await bench.output(joined)
    named = await bench.run("sh", "-c", "hostname", host=HostConfig(NetworkMode=f"container:{web}"))
    await bench.engine.wait(named)
    assert await bench.output(named) == f"{web[:12]}\n"
    assert bench.engine.inspect(named).Config.Hostname == web[:12]
    with pytest.raises(InvalidParameterError, match="hostname and the network mode"):
        await bench.create("true", host=HostConfig(NetworkMode=f"container:{web}"), Hostname="own")
    with pytest.raises(InvalidParameterError, match="hostname and the UTS mode"):
        await bench.create("true", host=HostConfig(UTSMode="host"), Hostname="own")
    on_host = await bench.run("ip", "-o", "link", host=HostConfig(NetworkMode="host"))
    await bench.engine.wait(on_host)
    assert "swarm0" in await bench.output(on_host)
    extra = await bench.run("cat", "/etc/hosts", host=HostConfig(NetworkMode="host", ExtraHosts=["db:10.0.0.9"]))
    await bench.engine.wait(extra)
    assert await bench.output(extra) == Path("/etc/hosts").read_text() + "10.0.0.9\tdb\n"
    alone = await bench.run("ip", "-o", "link", host=HostConfig(NetworkMode="none"))
    await bench.engine.wait(alone)
    output = await bench.output(alone)
    assert "lo:" in output
    assert "eth0" not in output


async def test_unknown_networks(bench: Bench) -> None:
    config = ContainerConfig(Image=BUSYBOX_TAG, Cmd=["sleep", "1000"])
    with pytest.raises(NetworkNotFoundError, match="network nowhere not found"):
        await bench.engine.create(config, HostConfig(NetworkMode="nowhere"))


async def test_a_subnet_the_host_uses_is_avoided(bench: Bench) -> None:
    for command in ("ip link add busy type bridge", "ip addr add 172.17.5.1/24 dev busy", "ip link set busy up"):
        subprocess.run(command.split(), check=True)  # noqa: ASYNC221 - a moment
    container_id = await bench.run("sleep", "1000", host=HostConfig())
    assert bench.engine.inspect(container_id).NetworkSettings.Networks["bridge"].IPAddress == "172.18.0.2"


async def test_links_and_addresses_are_given_back(bench: Bench) -> None:
    for _ in range(3):
        container_id = await bench.run("true", host=HostConfig())
        await bench.engine.wait(container_id)
        await bench.engine.remove(container_id)
    assert bench.engine.networks.inspect("bridge").Containers == {}
    await until(lambda: not any(name.startswith("veth") for name in _link_names()), what="links gone")


def _link_names() -> list[str]:
    """Of this network namespace (/sys may show another's)."""
    return [line.split(":")[0].strip() for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]]
