"""Containers that find each other by name: real containers, real questions."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from runtime.network_types import NetworkCreateRequest
from runtime.types import EndpointSettings, HostConfig
from tests.unit.engine.support import Bench
from tests.unit.resolver.places import PTR, addresses, ask, rcode
from tests.waiting import until

pytestmark = pytest.mark.root


@pytest.fixture
async def nets(bench: Bench) -> Bench:
    """With a network of users, "back"."""
    await bench.engine.networks.create(NetworkCreateRequest(Name="back"))
    return bench


def found(bench: Bench, container_id: str, name: str) -> list[str]:
    """What one container gets for a name."""
    return addresses(ask(bench.engine.inspect(container_id).State.Pid, name))


async def test_containers_find_each_other_by_name_alias_and_short_id(nets: Bench) -> None:
    engine = nets.engine
    alias = {"back": EndpointSettings(Aliases=["store"])}
    web = await nets.run("sleep", "1000", host=HostConfig(NetworkMode="back"), networks=alias, name="web")
    address = engine.inspect(web).NetworkSettings.Networks["back"].IPAddress
    script = "for to in web store WEB web.back $0; do ping -c1 -W5 $to >/dev/null || exit 1; done; cat /etc/resolv.conf"
    other = await nets.run("sh", "-c", script, web[:12], host=HostConfig(NetworkMode="back"), name="other")
    ended = await engine.wait(other)
    output = await nets.output(other)
    assert ended.StatusCode == 0, output
    assert "nameserver 127.0.0.11\noptions ndots:0\n" in output or "nameserver 127.0.0.11\nsearch" in output
    assert found(nets, web, "web") == [address]
    assert not found(nets, web, "other")  # it has ended
    reverse = ".".join(reversed(address.split("."))) + ".in-addr.arpa"
    assert b"\3web\4back\0" in ask(engine.inspect(web).State.Pid, reverse, PTR)


async def test_the_default_bridge_has_no_names(nets: Bench) -> None:
    web = await nets.run("sleep", "1000", host=HostConfig(), name="web")
    with pytest.raises(ConnectionRefusedError):
        ask(nets.engine.inspect(web).State.Pid, "web")
    assert nets.engine.resolver.pid is None
    text = (nets.folder / "state" / "containers" / web / "resolv.conf").read_text()
    assert "127.0.0.11" not in text


async def test_names_follow_a_rename_a_join_and_a_stop(nets: Bench) -> None:
    engine = nets.engine
    web = await nets.run("sleep", "1000", host=HostConfig(NetworkMode="back"), name="web")
    late = await nets.run("sleep", "1000", host=HostConfig(), name="late")
    await engine.connect("back", late)
    assert "nameserver 127.0.0.11" in (nets.folder / "state" / "containers" / late / "resolv.conf").read_text()
    assert found(nets, late, "web") == [engine.inspect(web).NetworkSettings.Networks["back"].IPAddress]
    assert found(nets, web, "late") == [engine.inspect(late).NetworkSettings.Networks["back"].IPAddress]
    await engine.rename("web", "shop")
    assert found(nets, late, "shop") == [engine.inspect(web).NetworkSettings.Networks["back"].IPAddress]
    assert rcode(ask(engine.inspect(late).State.Pid, "web")) != 0
    await engine.disconnect("back", late)
    assert not found(nets, web, "late")
    await engine.stop(web, timeout_s=0)
    await engine.start(web)
    assert found(nets, web, "shop")


async def test_names_outlive_the_daemon_and_a_killed_resolver(nets: Bench) -> None:
    web = await nets.run("sleep", "1000", host=HostConfig(NetworkMode="back"), name="web")
    address, before = found(nets, web, "web"), nets.engine.resolver.pid
    pid = nets.engine.inspect(web).State.Pid
    await nets.engine.close()
    assert addresses(ask(pid, "web")) == address
    nets.engine = nets.make()
    await nets.engine.open()
    assert nets.engine.resolver.pid == before
    assert before is not None
    assert addresses(ask(pid, "web")) == address
    os.kill(before, signal.SIGKILL)
    await until(lambda: nets.engine.resolver.pid not in (None, before), "another resolver")
    db = await nets.run("sleep", "1000", host=HostConfig(NetworkMode="back"), name="db")
    assert found(nets, web, "db")
    assert found(nets, db, "web") == address


async def test_a_container_that_ended_leaves_no_namespace_behind(nets: Bench) -> None:
    web = await nets.run("sleep", "1000", host=HostConfig(NetworkMode="back"), name="web")
    namespace = os.stat(f"/proc/{nets.engine.inspect(web).State.Pid}/ns/net").st_ino
    await nets.engine.remove(web, force=True)

    def links() -> str:
        return subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout

    await until(lambda: "veth" not in links(), what="the kernel has taken the pair away")
    opened = os.listdir(f"/proc/{nets.engine.resolver.pid}/fd")
    paths = [f"/proc/{nets.engine.resolver.pid}/fd/{each}" for each in opened]
    assert namespace not in [os.stat(path).st_ino for path in paths if os.path.exists(path)]
