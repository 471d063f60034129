"""Networks that users make and remove: the table, what is left after a failure or a crash, prune and filters: no root."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import msgspec
import pytest

from runtime.errors import ConflictError, ForbiddenError, HostError, InvalidParameterError, NetworkNotFoundError
from runtime.events import EventBus, EventMessage
from runtime.kernel.network import AddBridge
from runtime.network_types import IPAM, ConfigReference, IPAMConfig, NetworkCreateRequest
from runtime.networks import Networks, predefined
from runtime.types import EndpointSettings
from tests.unit.networks.fakes import Device, RecordingKernel


class Host:
    """One host: ``networks`` is the table of its present daemon."""

    def __init__(self, state: Path) -> None:
        self.state, self.kernel, self.told = state, RecordingKernel(), list[EventMessage]()
        self.kernel.add_namespace("/proc/7/ns/net")
        self.networks = self.daemon()

    def daemon(self) -> Networks:
        bus = EventBus()
        bus.on_event(self.told.append)
        self.networks = Networks(
            self.state,
            drivers=predefined.drivers(self.kernel, self.state),
            predefined=predefined.networks(bridge="br7", subnet="172.17.0.0/16"),
            events=bus,
            name_of={"c1": "one"}.__getitem__,
            kernel=self.kernel,
        )
        return self.networks

    async def restart(self) -> None:
        await self.networks.close()
        await self.daemon().open()
        await self.networks.reconcile()

    async def make(self, name: str, **fields: object) -> str:
        request = msgspec.structs.replace(NetworkCreateRequest(Name=name), **fields)
        return (await self.networks.create(request)).Id

    def names(self) -> list[str]:
        return [network.Name for network in self.networks.list()]

    def bridges(self) -> set[str]:
        return {name for name, device in self.kernel.devices[""].items() if device.kind == "bridge"}


@pytest.fixture
async def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    await made.networks.open()
    return made


def subnet(text: str) -> IPAM:
    return IPAM(Config=[IPAMConfig(Subnet=text)])


async def test_a_network_is_made_shown_and_removed(host: Host) -> None:
    made = await host.make("back", Labels={"a": "b"})
    assert host.bridges() == {f"br-{made[:12]}"}
    shown = host.networks.inspect("back")
    assert (shown.Id, shown.Labels, shown.Driver) == (made, {"a": "b"}, "bridge")
    assert IPAM(Config=[IPAMConfig(Subnet="172.18.0.0/16", Gateway="172.18.0.1")]) == shown.IPAM
    await host.restart()
    assert host.networks.inspect("back") == shown
    await host.networks.remove(made[:8])
    assert host.bridges() == set()
    assert host.kernel.rules == {}
    assert host.names() == ["bridge", "host", "none"]
    assert [(event.Action, event.Actor.Attributes) for event in host.told] == [
        ("create", {"name": "back", "type": "bridge"}),
        ("destroy", {"name": "back", "type": "bridge"}),
    ]
    await host.restart()
    assert host.names() == ["bridge", "host", "none"]


async def test_what_was_asked_for_is_shown_as_it_was_asked(host: Host) -> None:
    await host.make("back", IPAM=subnet("10.9.0.0/24"))
    assert subnet("10.9.0.0/24") == host.networks.inspect("back").IPAM


async def test_names_subnets_and_devices_are_of_one_network(host: Host) -> None:
    await host.make("back", IPAM=subnet("10.9.0.0/24"), Options={"com.docker.network.bridge.name": "own"})
    with pytest.raises(ConflictError, match="network with name back already exists"):
        await host.make("back")
    with pytest.raises(ForbiddenError, match="Pool overlaps with other one on this address space"):
        await host.make("other", IPAM=subnet("10.9.0.0/16"))
    with pytest.raises(ForbiddenError, match="networks have same bridge name"):
        await host.make("other", Options={"com.docker.network.bridge.name": "own"})
    with pytest.raises(ForbiddenError, match="Pool overlaps"):
        await host.make("other", IPAM=subnet("172.17.9.0/24"))  # the default bridge's, though nobody is on it yet
    assert host.bridges() == {"own"}
    assert host.names() == ["bridge", "host", "none", "back"]


async def test_two_at_once_do_not_get_the_same(host: Host) -> None:
    done = await asyncio.gather(*(host.make(name) for name in ("a", "a", "b", "c")), return_exceptions=True)
    assert [type(each) for each in done] == [str, ConflictError, str, str]
    shown = [pool.Subnet for name in "abc" for pool in host.networks.inspect(name).IPAM.Config or ()]
    assert shown == ["172.18.0.0/16", "172.19.0.0/16", "172.20.0.0/16"]


@pytest.mark.parametrize("driver", ["host", "null"])
async def test_there_is_one_host_and_one_none(host: Host, driver: str) -> None:
    with pytest.raises(ForbiddenError, match=f'only one instance of "{driver}" network is allowed'):
        await host.make("other", Driver=driver)


async def test_what_a_local_driver_cannot_be(host: Host) -> None:
    with pytest.raises(ForbiddenError, match="Ingress network can only be global scope network"):
        await host.make("x", Ingress=True)
    with pytest.raises(ForbiddenError, match="cannot create a swarm scoped network when swarm is not active"):
        await host.make("x", Scope="swarm")
    with pytest.raises(InvalidParameterError, match="IPv4 or IPv6 must be enabled"):
        await host.make("x", EnableIPv4=False)
    two = IPAM(Config=[IPAMConfig(Subnet="10.1.0.0/24"), IPAMConfig(Subnet="10.2.0.0/24")])
    with pytest.raises(ForbiddenError, match="bridge driver doesn't support multiple subnets"):
        await host.make("x", IPAM=two)
    host.kernel.devices[""]["eth0"] = Device()
    with pytest.raises(InvalidParameterError, match="existing interface eth0 is not a bridge"):
        await host.make("x", Options={"com.docker.network.bridge.name": "eth0"})
    assert host.names() == ["bridge", "host", "none"]
    assert host.bridges() == set()


async def test_a_bridge_of_the_operators_stays(host: Host) -> None:
    await host.kernel.apply()
    host.kernel.devices[""]["own"] = Device(kind="bridge", up=True)
    await host.make("back", Options={"com.docker.network.bridge.name": "own"})
    await host.networks.remove("back")
    assert host.bridges() == {"own"}


async def test_a_network_that_somebody_is_on_stays(host: Host) -> None:
    await host.make("back")
    sandbox = await host.networks.reserve("c1", {"back": EndpointSettings()}, [])
    endpoint = sandbox.endpoints["back"].ID[:12]
    with pytest.raises(ForbiddenError) as caught:
        await host.networks.remove("back")
    assert str(caught.value) == (
        f'error while removing network: network back has active endpoints (name:"one" id:"{endpoint}")'
    )
    assert (await host.networks.prune({})).NetworksDeleted is None
    await host.networks.release("c1")
    await host.networks.remove("back")
    with pytest.raises(NetworkNotFoundError):
        await host.networks.reserve("c1", {"back": EndpointSettings()}, [])


async def test_removal_and_start_exclude_each_other(host: Host) -> None:
    for _ in range(20):
        await host.make("back")
        removal = asyncio.ensure_future(host.networks.remove("back"))
        start = asyncio.ensure_future(host.networks.reserve("c1", {"back": EndpointSettings()}, []))
        done = await asyncio.gather(removal, start, return_exceptions=True)
        assert sum(isinstance(each, BaseException) for each in done) == 1
        await host.networks.release("c1")
        if isinstance(done[0], BaseException):
            await host.networks.remove("back")
        assert host.bridges() == set()


async def test_predefined_networks_stay(host: Host) -> None:
    for name in ("bridge", "host", "none"):
        with pytest.raises(ForbiddenError, match=f"{name} is a pre-defined network and cannot be removed"):
            await host.networks.remove(name)
    with pytest.raises(NetworkNotFoundError, match="network nope not found"):
        await host.networks.remove("nope")


async def test_a_network_that_cannot_be_made_is_not_there(host: Host) -> None:
    host.kernel.refuse(AddBridge)
    with pytest.raises(HostError):
        await host.make("back")
    assert host.names() == ["bridge", "host", "none"]
    await host.make("back")


def full(path: Path, data: bytes, *, durable: bool) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_what_cannot_be_saved_is_neither_made_nor_removed(host: Host) -> None:
    with pytest.MonkeyPatch.context() as disk:
        disk.setattr("base.records.write_atomic", full)
        with pytest.raises(HostError, match="cannot save the networks"):
            await host.make("back")
    assert (host.bridges(), host.names()) == (set(), ["bridge", "host", "none"])
    made = await host.make("back")
    with pytest.MonkeyPatch.context() as disk:
        disk.setattr("base.records.write_atomic", full)
        with pytest.raises(HostError, match="cannot save the networks"):
            await host.networks.remove("back")
    assert host.bridges() == {f"br-{made[:12]}"}
    await host.networks.reserve("c1", {"back": EndpointSettings()}, [])


@pytest.mark.parametrize("step", ["making", "removing"])
async def test_the_next_start_finishes_what_a_crash_left(host: Host, step: str) -> None:
    """The kernel stops answering in the midst of it, and the daemon is killed then."""
    if step == "removing":
        await host.make("back")
    asked, answers = asyncio.Event(), asyncio.Event()

    async def hang(*batches: object) -> None:
        asked.set()
        await answers.wait()

    with pytest.MonkeyPatch.context() as kernel:
        kernel.setattr(host.kernel, "apply", hang)
        change = asyncio.ensure_future(host.make("back") if step == "making" else host.networks.remove("back"))
        await asyncio.wait_for(asked.wait(), 60)
        assert b'"Incomplete":true' in (host.state / "networks.json").read_bytes()
        made = host.networks.id_of("back")
    host.kernel.devices[""].setdefault(f"br-{made[:12]}", Device(kind="bridge", up=True))
    await host.restart()
    assert host.bridges() == set()
    assert host.names() == ["bridge", "host", "none"]
    await host.restart()
    assert host.names() == ["bridge", "host", "none"]
    change.cancel()
    await asyncio.gather(change, return_exceptions=True)


async def test_devices_that_are_gone_come_back_with_the_next_start(host: Host) -> None:
    made = await host.make("back")
    del host.kernel.devices[""][f"br-{made[:12]}"]
    host.kernel.rules.clear()
    await host.restart()
    assert host.bridges() == {f"br-{made[:12]}"}
    assert host.kernel.rules != {}


async def test_configurations_have_no_device_and_stay_while_used(host: Host) -> None:
    await host.make("config", ConfigOnly=True, IPAM=subnet("10.20.0.0/24"))
    assert host.bridges() == set()
    shown = host.networks.inspect("config")
    assert (shown.Driver, shown.ConfigOnly, shown.IPAM) == ("null", True, subnet("10.20.0.0/24"))
    await host.make("back", ConfigFrom=ConfigReference(Network="config"))
    assert subnet("10.20.0.0/24") == host.networks.inspect("back").IPAM
    with pytest.raises(ForbiddenError, match='configuration network "config" is in use'):
        await host.networks.remove("config")
    with pytest.raises(NetworkNotFoundError):
        await host.networks.reserve("c1", {"config": EndpointSettings()}, [])
    await host.restart()
    assert (await host.networks.prune({})).NetworksDeleted == ["back"]
    await host.networks.remove("config")


async def test_filters(host: Host) -> None:
    await host.make("back", Labels={"tier": "db"})
    await host.make("front", Labels={"tier": "web"})
    await host.networks.reserve("c1", {"front": EndpointSettings()}, [])
    for filters, names in (
        ({"label": ["tier"]}, ["back", "front"]),
        ({"label": ["tier=db"]}, ["back"]),
        ({"label": ["tier=db", "other"]}, []),
        ({"type": ["custom"], "name": ["^f"]}, ["front"]),
        ({"type": ["builtin", "custom"], "name": ["ck$", "none"]}, ["none", "back"]),
        ({"dangling": ["true"]}, ["back"]),
        ({"dangling": ["0"], "driver": ["bridge"]}, ["bridge", "front"]),
        ({"id": [host.networks.id_of("back")[:9]]}, ["back"]),
        ({"scope": ["swarm"]}, []),
    ):
        assert [network.Name for network in host.networks.list(filters)] == names
    for filters, text in (
        ({"colour": ["red"]}, "invalid filter 'colour'"),
        ({"type": ["foo"]}, "invalid filter: 'type'='foo'"),
        ({"dangling": ["foo"]}, "invalid value for filter 'dangling', must be"),
        ({"dangling": ["1", "0"]}, 'got more than one value for filter key "dangling"'),
    ):
        with pytest.raises(InvalidParameterError, match=text):
            host.networks.list(filters)


async def test_prune(host: Host) -> None:
    for name in ("a", "b", "c"):
        await host.make(name, Labels={"name": name})
    with pytest.raises(InvalidParameterError, match="invalid filter 'name'"):
        await host.networks.prune({"name": ["a"]})
    for moments in (["x"], ["1h", "2h"]):
        with pytest.raises(InvalidParameterError, match="until"):
            await host.networks.prune({"until": moments})
    assert (await host.networks.prune({"until": ["1h"]})).NetworksDeleted is None
    assert (await host.networks.prune({"label": ["name=a"]})).NetworksDeleted == ["a"]
    assert (await host.networks.prune({"label!": ["name=b"]})).NetworksDeleted == ["c"]
    assert (await host.networks.prune({})).NetworksDeleted == ["b"]
    assert host.told[-1].Action == "prune"


async def test_an_id_prefix_of_two_is_none(host: Host) -> None:
    found: dict[str, str] = {}
    for number in range(40):
        made = await host.make(f"n{number}", ConfigOnly=True)
        if made[0] in found:
            with pytest.raises(InvalidParameterError, match=rf"network {made[0]} is ambiguous \(\d+ matches found"):
                host.networks.inspect(made[0])
            return
        found[made[0]] = made
    raise AssertionError("forty IDs with as many first digits")
