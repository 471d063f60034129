"""What a container may ask of networks, with dockerd's words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from runtime.containers import networking
from runtime.errors import ForbiddenError, InvalidParameterError, NetworkNotFoundError
from runtime.network_types import IPAM, IPAMConfig
from runtime.networks.driver import Network
from runtime.networks.sandbox import IFNAME_OPTION, SYSCTLS_OPTION
from runtime.types import (
    TASK_ID_LABEL,
    ContainerConfig,
    EndpointIPAMConfig,
    EndpointSettings,
    HostConfig,
    NetworkingConfig,
    PortBinding,
)

TABLE = {
    name: Network(ID=f"id-{name}", Name=name, Driver=driver, Created="", IPAM=IPAM(Config=[IPAMConfig(Subnet=subnet)] if subnet else []))
    for name, driver, subnet in (
        ("bridge", "bridge", "172.17.0.0/16"),
        ("host", "host", ""),
        ("none", "null", ""),
        ("web", "bridge", "10.1.0.0/16"),
        ("db", "bridge", "10.2.0.0/16"),
    )
}  # fmt: skip


def find(ref: str) -> Network:
    for network in TABLE.values():
        if ref in (network.Name, network.ID):
            return network
    raise NetworkNotFoundError(ref)


def settle(
    mode: str = "", mac: str = "", **endpoints: EndpointSettings | None
) -> tuple[str, dict[str, EndpointSettings]]:
    config = ContainerConfig(MacAddress=mac)
    return networking.settle(
        config, HostConfig(NetworkMode=mode), NetworkingConfig(EndpointsConfig=endpoints or None), find
    )


def address(v4: str = "", v6: str = "", *link_local: str) -> EndpointSettings:
    asked = EndpointIPAMConfig(IPv4Address=v4, IPv6Address=v6, LinkLocalIPs=list(link_local) or None)
    return EndpointSettings(IPAMConfig=asked)


def test_a_container_is_on_the_networks_it_names_else_on_that_of_its_mode() -> None:
    nothing = EndpointSettings()
    assert settle() == settle("default") == ("bridge", {"bridge": nothing})
    assert settle("id-web") == ("web", {"web": nothing})
    assert settle("web", web=None, db=nothing) == ("web", {"web": nothing, "db": nothing})
    assert settle("none") == ("none", {"none": nothing})
    assert settle("container:x") == ("container:x", {})
    priority = EndpointSettings(GwPriority=3)
    assert settle(default=priority) == ("bridge", {"bridge": priority})


def test_what_clients_were_told_of_an_endpoint_is_no_request() -> None:
    told = EndpointSettings(EndpointID="e", IPAddress="10.1.0.9", NetworkID="n", DNSNames=["a"], Aliases=["db"])
    assert settle("web", web=told)[1] == {"web": EndpointSettings(Aliases=["db"])}


def test_the_mac_address_of_a_container_is_that_on_the_network_of_its_mode() -> None:
    mac = "02:42:ac:11:00:09"
    assert settle("web", mac)[1]["web"].MacAddress == mac
    assert [each.MacAddress for each in settle("db", mac, web=None, db=None)[1].values()] == ["", mac]
    assert settle("host", mac)[1]["host"].MacAddress == ""
    with pytest.raises(InvalidParameterError, match="must match the endpoint-specific MAC address"):
        settle("web", mac, web=EndpointSettings(MacAddress="02:42:ac:11:00:08"))
    with pytest.raises(InvalidParameterError, match="unable to migrate container-wide MAC address"):
        settle("web", mac, db=None)


@pytest.mark.parametrize(
    ("mode", "endpoints", "text"),
    [
        ("web", {"web": None, "none": None}, networking.NO_NETWORK),
        ("host", {"host": None, "web": None}, networking.SHARED),
        ("web", {"web": None, "host": None}, networking.TO_HOST),
        ("container:x", {"web": None}, networking.SHARED),
        ("", {"bridge": address("172.17.0.9")}, "user specified IP address is supported on user defined networks only"),
        ("", {"bridge": EndpointSettings(Aliases=["a"])}, "network-scoped alias is supported only for containers in user"),
        ("web", {"web": address("10.2.0.9")}, "no configured subnet or ip-range contain the IP address 10.2.0.9"),
        ("web", {"web": address("", "fd00::9")}, "user specified IP address is supported only when connecting to networks"),
        ("web", {"web": address("fd00::9")}, "invalid IPv4 address: fd00::9"),
        ("web", {"web": address("0.0.0.0")}, "invalid IPv4 address: 0.0.0.0"),
        ("web", {"web": address("", "10.1.0.9")}, "invalid IPv6 address: 10.1.0.9"),
        ("web", {"web": address("", "", "nine")}, "invalid link-local IP address: nine"),
        ("web", {"web": EndpointSettings(MacAddress="nine")}, "invalid MAC address nine"),
        ("web", {"web": EndpointSettings(DriverOpts={SYSCTLS_OPTION: "net.ipv4.conf.eth0.x=1"})}, "IFNAME"),
        ("web", {"web": EndpointSettings(DriverOpts={IFNAME_OPTION: "a/b"})}, "invalid interface name 'a/b'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_create_and_at_connect(
    mode: str, endpoints: dict[str, EndpointSettings | None], text: str
) -> None:
    with pytest.raises(InvalidParameterError) as refused:
        networking.settle(
            ContainerConfig(), HostConfig(NetworkMode=mode), NetworkingConfig(EndpointsConfig=endpoints), find
        )
    assert text in str(refused.value)
    names = list(endpoints)
    present = [TABLE[name] for name in names if name != names[-1]]
    with pytest.raises(InvalidParameterError) as refused:
        networking.check_connect(
            ContainerConfig(),
            HostConfig(NetworkMode=mode),
            present,
            TABLE[names[-1]],
            endpoints[names[-1]] or EndpointSettings(),
        )
    assert text in str(refused.value)


def test_a_configuration_is_no_network() -> None:
    with pytest.raises(ForbiddenError, match="cannot create endpoint on configuration-only network"):
        networking.check_connect(
            ContainerConfig(),
            HostConfig(),
            [],
            Network(ID="", Name="c", Driver="", Created="", ConfigOnly=True),
            EndpointSettings(),
        )


def test_a_network_of_the_cluster_is_for_tasks_and_where_it_says_so_for_others() -> None:
    network = Network(ID="", Name="ov", Driver="overlay", Created="", Scope="swarm")
    task = ContainerConfig(Labels={TASK_ID_LABEL: "t"})
    networking.check_connect(task, HostConfig(), [], network, EndpointSettings())
    attachable = msgspec.structs.replace(network, Attachable=True)
    networking.check_connect(ContainerConfig(), HostConfig(), [], attachable, EndpointSettings())
    for refused in (
        lambda: networking.check_connect(ContainerConfig(), HostConfig(), [], network, EndpointSettings()),
        lambda: networking.settle(ContainerConfig(), HostConfig(NetworkMode="ov"), None, lambda _ref: network),
    ):
        with pytest.raises(ForbiddenError, match="network ov not manually attachable"):
            refused()


def test_several_faults_are_a_list() -> None:
    with pytest.raises(InvalidParameterError) as refused:
        settle("web", web=msgspec.structs.replace(address("x", "y"), MacAddress="z"))
    assert str(refused.value) == (
        "invalid config for network web: invalid endpoint settings:\n"
        "* invalid IPv4 address: x\n* invalid IPv6 address: y\n* invalid MAC address z"
    )


@pytest.mark.parametrize(
    ("config", "host", "text"),
    [
        ({"Hostname": "h"}, {}, "conflicting options: hostname and the network mode"),
        ({}, {"Links": ["a"]}, "conflicting options: container type network can't be used with links."),
        ({}, {"Dns": ["1.1.1.1"]}, "conflicting options: dns and the network mode"),
        ({}, {"ExtraHosts": ["a:1.1.1.1"]}, "conflicting options: custom host-to-IP mapping and the network mode"),
        ({}, {"PublishAllPorts": True}, "conflicting options: port publishing and the container type network mode"),
        (
            {},
            {"PortBindings": {"80/tcp": [PortBinding()]}},
            "conflicting options: port publishing and the container type network mode",
        ),
        (
            {"ExposedPorts": {"80/tcp": {}}},
            {},
            "conflicting options: port exposing and the container type network mode",
        ),
        ({}, {"NetworkMode": "container:"}, "invalid network mode: invalid container format container:<name|id>"),
        ({}, {"NetworkMode": "container"}, "invalid network mode: invalid container format container:<name|id>"),
        (
            {},
            {"NetworkMode": "host", "Links": ["a"]},
            "conflicting options: host type networking can't be used with links.",
        ),
        (
            {},
            {"NetworkMode": "", "Sysctls": {"net.ipv4.conf.eth0.log_martians": "1"}},
            'interface specific sysctl setting "net.ipv4.conf.eth0.log_martians" must be supplied using driver option',
        ),
        ({"Hostname": "h"}, {"NetworkMode": "", "UTSMode": "host"}, "conflicting options: hostname and the UTS mode"),
    ],
)
def test_what_contradicts_the_mode(config: dict[str, Any], host: dict[str, Any], text: str) -> None:
    host = {"NetworkMode": "container:web", **host}
    with pytest.raises(InvalidParameterError) as refused:
        networking.check_modes(ContainerConfig(**config), HostConfig(**host))
    assert str(refused.value).startswith(text)
