"""Addresses, ports, rules and netlink messages: no kernel."""

from __future__ import annotations

import ipaddress
import socket

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import InvalidParameterError, UnavailableError
from runtime.kernel import netlink
from runtime.kernel.linux_network import parse_routes
from runtime.kernel.network import IPAddress, Route
from runtime.networks.addresses import AddressPool, mac_for, parse_mac
from runtime.networks.ports import (
    PortClaims,
    PortRequest,
    PortTarget,
    parse_port,
    requests,
    requests_again,
    requests_of,
)
from runtime.networks.rules import PublishedPort
from runtime.types import ContainerConfig, HostConfig, PortBinding

Net = ipaddress.IPv4Network


def test_a_pool_hands_out_each_address_once_in_turn_until_none_is_left() -> None:
    gateway = ipaddress.IPv4Address("10.0.0.1")
    pool = AddressPool(Net("10.0.0.0/29"), reserved=[gateway])
    assert [str(pool.allocate()) for _ in range(5)] == [f"10.0.0.{n}" for n in range(2, 7)]
    with pytest.raises(UnavailableError, match="no available IPv4 addresses"):
        pool.allocate()
    pool.release(ipaddress.IPv4Address("10.0.0.3"))
    pool.release(gateway)
    assert str(pool.allocate()) == "10.0.0.3"
    with pytest.raises(UnavailableError):
        pool.allocate()


def test_wanted_addresses() -> None:
    pool = AddressPool(Net("10.0.0.0/24"))
    assert str(pool.allocate("10.0.0.9")) == "10.0.0.9"
    with pytest.raises(UnavailableError, match="Address already in use"):
        pool.allocate("10.0.0.9")
    for bad in ("10.0.1.1", "x", "10.0.0.0", "10.0.0.255"):
        with pytest.raises(InvalidParameterError):
            pool.allocate(bad)


@given(st.lists(st.sampled_from(["take", "give"]), max_size=60))
def test_a_pool_never_gives_one_address_to_two(steps: list[str]) -> None:
    pool = AddressPool(Net("10.0.0.0/28"))
    held: list[IPAddress] = []
    for step in steps:
        if step == "give" and held:
            pool.release(held.pop(0))
        elif len(held) < 14:
            address = pool.allocate()
            assert address not in held
            held.append(address)
    assert len(pool) == len(held)


def test_routes() -> None:
    table = (
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
    )
    table += "tun0\t0000000A\t010011AC\t0003\t0\t0\t0\t000000FF\t0\t0\t0\n"
    assert parse_routes(table) == [
        Route(Net("172.17.0.0/16"), "eth0"),
        Route(Net("10.0.0.0/8"), "tun0", on_link=False),
    ]


def test_mac() -> None:
    assert mac_for(ipaddress.IPv4Address("172.17.0.2")) == "02:42:ac:11:00:02"


def test_port_requests() -> None:
    config = ContainerConfig(ExposedPorts={"53/udp": {}, "80/tcp": {}})
    host = HostConfig(
        PortBindings={"80/tcp": [PortBinding(HostPort="8000-8002"), PortBinding(HostIp="127.0.0.1")]},
        PublishAllPorts=True,
    )
    assert requests(config, host) == [
        PortRequest("tcp", 80, "", (8000, 8001, 8002)),
        PortRequest("tcp", 80, "127.0.0.1", (0,)),
        PortRequest("udp", 53, "", (0,)),
    ]
    for bad in ("x/tcp", "80/icmp", "0/tcp", "70000", "8" * 5000):
        with pytest.raises(InvalidParameterError):
            parse_port(bad)
    for bad in ("9-1", "-", "80-", "-1", "8_0", "+80", "\u0668\u0660", "8" * 5000, "1-" + "8" * 5000, "65536"):
        with pytest.raises(InvalidParameterError, match="invalid port specification"):
            requests(ContainerConfig(), HostConfig(PortBindings={"80/tcp": [PortBinding(HostPort=bad)]}))


@pytest.mark.parametrize(
    "address",
    [
        *(
            "localhost",
            "127.1",
            "0x7f000001",
            "2130706433",
            "127.0.0.01",
            " 127.0.0.1",
            "127.0.0.1 ",
            "256.0.0.1",
            "x:y",
        ),
        "fe80::1%eth0",
        *("127.0.0.1 tcp dport 1-65535 accept #", "127.0.0.1\n}\ndelete table ip x\n", "1" * 5000),
    ],
)
def test_a_port_is_published_on_an_address_and_no_other_text(address: str) -> None:
    bindings: dict[str, list[PortBinding] | None] = {"80/tcp": [PortBinding(HostIp=address)]}
    with pytest.raises(InvalidParameterError, match=r"^invalid IP address: .{1,200}$"):
        requests(ContainerConfig(), HostConfig(PortBindings=bindings))


@pytest.mark.parametrize(
    ("address", "meant"), [("", ""), ("::", "::"), ("0:0::1", "::1"), ("::ffff:127.0.0.1", "127.0.0.1")]
)
def test_addresses_to_publish_on(address: str, meant: str) -> None:
    bindings: dict[str, list[PortBinding] | None] = {"80/tcp": [PortBinding(HostIp=address)]}
    (request,) = requests(ContainerConfig(), HostConfig(PortBindings=bindings))
    assert request.host_ip == meant


def test_macs() -> None:
    assert parse_mac("02:42:AC:11:00:02") == parse_mac("02-42-ac-11-00-02") == "02:42:ac:11:00:02"
    for bad in ("", "x", "02:42:ac:11:00", "02:42-ac:11:00:02", "02:42:ac:11:00:02:03", "0242ac110002", "2" * 5000):
        with pytest.raises(InvalidParameterError, match=r"^invalid MAC address: .{0,200}$"):
            parse_mac(bad)


FOUR = PortTarget(addresses={4: "10.0.0.2"})
BOTH = PortTarget(addresses={4: "10.0.0.2", 6: "fd00::2"})


def test_claims_are_all_or_none_and_skip_taken_ports_of_a_range() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        claims = PortClaims()
        fixed = PortRequest("tcp", 80, "127.0.0.1", (port,))
        other = PortRequest("tcp", 81, "127.0.0.1", (free_port(),))
        with pytest.raises(UnavailableError, match=f"Bind for 127.0.0.1:{port} failed: port is already allocated"):
            claims.claim("a", [other, fixed], FOUR)
        claims.claim("a", [other], FOUR)
        spread = PortRequest("tcp", 80, "127.0.0.1", (port, 0))
        (published,) = claims.claim("b", [spread], FOUR)
        assert published.host_port != port
        for owner in ("a", "b", "b"):
            claims.release(owner)
        claims.claim("c", [other], FOUR)
        claims.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as made:
        port: int = made.getsockname()[1]
        return port


def test_a_port_is_the_same_on_both_address_families() -> None:
    claims = PortClaims()
    four, six = claims.claim("a", [PortRequest("tcp", 80, "", (0,))], BOTH)
    assert (four.host_ip, six.host_ip, four.container_ip, six.container_ip) == ("0.0.0.0", "::", "10.0.0.2", "fd00::2")
    assert four.host_port == six.host_port
    assert requests_of([four, six]) == [PortRequest("tcp", 80, "", (four.host_port,))]
    with pytest.raises(UnavailableError, match="port is already allocated"):
        claims.claim("b", [PortRequest("tcp", 80, "::1", (four.host_port,))], BOTH)
    claims.release("a")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match=f"Bind for 0.0.0.0:{port} failed: port is already allocated"):
            claims.claim("b", [PortRequest("tcp", 80, "", (port,))], BOTH)
    claims.close()


@pytest.mark.parametrize(
    ("target", "host_ip", "found"),
    [
        (FOUR, "", ["0.0.0.0"]),
        (BOTH, "", ["0.0.0.0", "::"]),
        (PortTarget(addresses={6: "fd00::2"}), "", ["::"]),
        (msgspec.structs.replace(BOTH, binding="127.0.0.1"), "", ["127.0.0.1"]),
        (msgspec.structs.replace(BOTH, binding="127.0.0.1"), "0.0.0.0", ["0.0.0.0"]),
        (BOTH, "::1", ["::1"]),
    ],
)
def test_where_a_port_is_published(target: PortTarget, host_ip: str, found: list[str]) -> None:
    assert target.hosts(PortRequest("tcp", 80, host_ip, (0,))) == found


def test_a_port_leads_to_an_address_of_its_family() -> None:
    with pytest.raises(InvalidParameterError, match="cannot publish on ::1: the container has no IPv6 address"):
        FOUR.hosts(PortRequest("tcp", 80, "::1", (0,)))


def test_a_routed_network_takes_no_port_of_the_host() -> None:
    claims, routed = PortClaims(), msgspec.structs.replace(BOTH, routed=frozenset({6}))
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        four, six = claims.claim("a", [PortRequest("tcp", 80, "", (port,))], routed)
    assert (four.host_port, six.host_port, six.host_ip) == (port, 0, "::")
    claims.adopt("b", [six])
    claims.close()


def test_netlink_messages_are_aligned_and_numbered() -> None:
    messages = [
        netlink.add_bridge("b", "02:42:00:00:00:01", snooping=True),
        netlink.delete_link("xyz"),
        netlink.set_up(4),
    ]
    decoded = list(netlink.decode(netlink.encode(messages)))
    assert [(kind, number) for kind, number, _ in decoded] == [(16, 1), (17, 2), (16, 3)]
    assert [body for _, _, body in decoded] == [message.body for message in messages]


@given(st.binary(max_size=64))
def test_netlink_decoding_ends_on_any_input(data: bytes) -> None:
    list(netlink.decode(data))


def test_ports_that_move_keep_their_numbers_and_what_was_asked() -> None:
    any_port, ranged, fixed = PortRequest("tcp", 80, "", (0,)), PortRequest("tcp", 80, "", (8080, 8081)), PortRequest("udp", 53, "127.0.0.1", (53,))  # fmt: skip
    published = [
        PublishedPort("tcp", "0.0.0.0", 8081, "10.0.0.2", 80),
        PublishedPort("tcp", "::", 8081, "fd00::2", 80),
        PublishedPort("tcp", "0.0.0.0", 49153, "10.0.0.2", 80),
        PublishedPort("udp", "127.0.0.1", 53, "10.0.0.2", 53),
    ]
    assert requests_again([ranged, any_port, fixed], published) == [
        PortRequest("tcp", 80, "", (8081,)),
        PortRequest("tcp", 80, "", (49153,)),
        fixed,
    ]
    assert requests_again([any_port], []) == [any_port]
    assert requests_again([any_port], [PublishedPort("tcp", "0.0.0.0", 0, "10.0.0.2", 80)]) == [any_port]
