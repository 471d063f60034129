"""What is chosen for a network: number and subnets."""

from __future__ import annotations

import ipaddress

import pytest

from manager.allocator.networks import VNI_MAX, VNI_MIN, NoRoomError, choose_subnets, choose_vni
from proto.specs_pb2 import IPAMConfig, NetworkSpec

POOLS = ("10.0.0.0/8",)
UNIQUE = "fd11:2233:4455::/48"


def chosen(spec: NetworkSpec, *used: str, pools: tuple[str, ...] = POOLS, size: int = 24) -> list[tuple[str, str]]:
    ipam = choose_subnets(spec, [ipaddress.ip_network(each) for each in used], pools, size, UNIQUE)
    return [(config.subnet, config.gateway) for config in ipam.configs]


def asking_for(*subnets: str, ipv6: bool = False, ipv4: bool = True) -> NetworkSpec:
    wanted = NetworkSpec(ipv6_enabled=ipv6, ipv4_disabled=not ipv4)
    wanted.ipam_options.configs.extend(IPAMConfig(subnet=subnet) for subnet in subnets)
    return wanted


def test_numbers_go_on_after_the_last_one_and_come_round() -> None:
    assert choose_vni(0, ()) == VNI_MIN
    assert choose_vni(4100, {4101, 4102}) == 4103
    assert choose_vni(VNI_MAX, {VNI_MIN}) == VNI_MIN + 1
    assert choose_vni(VNI_MAX + 5, ()) == VNI_MIN


def test_what_is_left_open_is_the_first_free_part_of_the_pools() -> None:
    assert chosen(NetworkSpec()) == [("10.0.0.0/24", "10.0.0.1")]
    assert chosen(NetworkSpec(), "10.0.0.0/24", "10.0.2.0/24") == [("10.0.1.0/24", "10.0.1.1")]
    assert chosen(NetworkSpec(), "10.0.0.128/25", "10.0.1.7/32", "192.168.0.0/16") == [("10.0.2.0/24", "10.0.2.1")]
    assert chosen(NetworkSpec(), "10.0.0.0/15") == [("10.2.0.0/24", "10.2.0.1")]


def test_the_second_pool_serves_when_the_first_is_used_up() -> None:
    pools = ("10.9.0.0/25", "10.9.8.0/24")
    assert chosen(NetworkSpec(), "10.9.0.0/26", "10.9.0.64/26", pools=pools, size=26) == [("10.9.8.0/26", "10.9.8.1")]
    with pytest.raises(NoRoomError, match="could not find an available, non-overlapping IPv4 address pool"):
        chosen(NetworkSpec(), "10.9.0.0/16", pools=pools, size=26)


def test_what_is_asked_for_is_had_or_refused() -> None:
    assert chosen(asking_for("172.30.0.0/16")) == [("172.30.0.0/16", "172.30.0.1")]
    with pytest.raises(NoRoomError, match="Pool overlaps with other one on this address space"):
        chosen(asking_for("172.30.5.0/24"), "172.30.0.0/16")
    with pytest.raises(NoRoomError, match="Pool overlaps"):
        chosen(asking_for("172.30.0.0/16", "172.30.1.0/24"))


def test_each_address_family_that_is_wanted_has_a_subnet() -> None:
    both = asking_for(ipv6=True)
    assert chosen(both) == [("10.0.0.0/24", "10.0.0.1"), ("fd11:2233:4455::/64", "fd11:2233:4455::1")]
    assert chosen(both, "fd11:2233:4455::/64")[1] == ("fd11:2233:4455:1::/64", "fd11:2233:4455:1::1")
    assert chosen(asking_for("fd00:5::/64", ipv6=True, ipv4=False)) == [("fd00:5::/64", "fd00:5::1")]


def test_a_choice_among_a_thousand_networks_looks_at_each_of_them_once() -> None:
    used = [f"10.{n // 256}.{n % 256}.0/24" for n in range(1000)]
    assert chosen(NetworkSpec(), *used) == [("10.3.232.0/24", "10.3.232.1")]
