"""Which subnets and addresses networks get: no kernel."""

from __future__ import annotations

import ipaddress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ForbiddenError, InvalidParameterError
from runtime.network_types import IPAM, IPAMConfig
from runtime.networks.addresses import AddressPool
from runtime.networks.driver import Network
from runtime.networks.pools import DEFAULT_POOLS, DefaultPool, choose, next_free, overlapping, parse_default_pools, ula

Net = ipaddress.ip_network


def network(*configs: IPAMConfig, ipv4: bool = True, ipv6: bool = False) -> Network:
    return Network(
        ID="n" * 64,
        Name="n",
        Driver="bridge",
        Created="",
        EnableIPv4=ipv4,
        EnableIPv6=ipv6,
        IPAM=IPAM(Config=[*configs]),
    )


def test_default_pools_are_dockers_in_order() -> None:
    taken: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
    for _ in range(31):
        taken.append(next_free(DEFAULT_POOLS, taken))
    assert [str(each) for each in taken] == [
        *(f"172.{second}.0.0/16" for second in range(17, 32)),
        *(f"192.168.{third}.0/20" for third in range(0, 256, 16)),
    ]
    with pytest.raises(InvalidParameterError, match="all predefined address pools have been fully subnetted"):
        next_free(DEFAULT_POOLS, taken)


@given(
    st.lists(
        st.builds(
            lambda number, length: ipaddress.ip_network((0x0A000000 + number, length), strict=False),
            st.integers(0, 0xFFFF),
            st.integers(18, 32),
        ),
        max_size=12,
    ),
    st.integers(18, 26),
)
def test_the_next_free_subnet_is_the_first_that_overlaps_with_nothing(
    used: list[ipaddress.IPv4Network], size: int
) -> None:
    base = ipaddress.IPv4Network("10.0.0.0/17")
    first = next((each for each in base.subnets(new_prefix=size) if not any(each.overlaps(o) for o in used)), None)
    try:
        assert next_free([DefaultPool(base, size)], used) == first
    except InvalidParameterError:
        assert first is None


def test_a_big_pool_with_much_taken_is_no_walk_through_all() -> None:
    pool = DefaultPool(Net("fd00::/8"), 64)
    assert str(next_free([pool], [Net("fd00::/16"), Net("fd01::/16"), Net("fd02::/65")])) == "fd02:0:0:1::/64"


def test_address_families_do_not_overlap() -> None:
    assert not overlapping(Net("0.0.0.0/0"), [Net("::/0")])
    assert overlapping(Net("10.0.0.0/8"), [Net("10.9.0.0/16")])


def test_ula_blocks_follow_from_the_host_alone() -> None:
    assert ula("host") == ula("host") != ula("other")
    assert Net("fd00::/8").supernet_of(ula("host").base)  # type: ignore[arg-type]  # both of IPv6


def test_gateways_are_asked_for_or_the_first_of_the_range() -> None:
    for config, gateway in (
        (IPAMConfig(Subnet="10.9.0.0/24"), "10.9.0.1"),
        (IPAMConfig(Subnet="10.9.0.0/16", IPRange="10.9.5.0/24"), "10.9.5.0"),
        (IPAMConfig(Subnet="10.9.0.0/16", IPRange="10.9.5.0/24", Gateway="10.9.0.9"), "10.9.0.9"),
        (IPAMConfig(Subnet="10.9.0.0/31"), "10.9.0.0"),
        (IPAMConfig(Subnet="10.9.0.0/32"), "10.9.0.0"),
    ):
        (pool,) = choose(network(config), taken=[], avoid=[], defaults=DEFAULT_POOLS)
        assert (pool.Subnet, pool.Gateway) == (config.Subnet, gateway)
    (pool,) = choose(network(), taken=[], avoid=[], defaults=DEFAULT_POOLS, versions_without_gateway=[4])
    assert pool.Gateway == ""


def test_what_is_asked_for_overlaps_with_no_network_but_may_with_the_host() -> None:
    asked = network(IPAMConfig(Subnet="10.9.0.0/24"))
    assert choose(asked, taken=[], avoid=[Net("10.9.0.0/16")], defaults=DEFAULT_POOLS)[0].Subnet == "10.9.0.0/24"
    for taken in ("10.9.0.0/25", "10.0.0.0/8"):
        with pytest.raises(ForbiddenError, match="Pool overlaps with other one on this address space"):
            choose(asked, taken=[Net(taken)], avoid=[], defaults=DEFAULT_POOLS)
    twice = network(IPAMConfig(Subnet="10.9.0.0/24"), IPAMConfig(Subnet="10.9.0.0/24"))
    with pytest.raises(ForbiddenError, match="Pool overlaps"):
        choose(twice, taken=[], avoid=[], defaults=DEFAULT_POOLS)
    automatic = choose(network(), taken=[Net("172.17.0.0/16")], avoid=[Net("172.18.4.0/24")], defaults=DEFAULT_POOLS)
    assert automatic[0].Subnet == "172.19.0.0/16"


def test_each_enabled_address_family_gets_a_pool() -> None:
    config = IPAMConfig(Subnet="2001:db8::/64")
    defaults = [*DEFAULT_POOLS, ula("host")]
    pools = choose(network(config, ipv6=True), taken=[], avoid=[], defaults=defaults)
    assert [(pool.Subnet, pool.Gateway) for pool in pools] == [
        ("172.17.0.0/16", "172.17.0.1"),
        ("2001:db8::/64", "2001:db8::1"),
    ]
    assert choose(network(config), taken=[], avoid=[], defaults=defaults)[0].Subnet == "172.17.0.0/16"
    (alone,) = choose(network(ipv4=False, ipv6=True), taken=[], avoid=[], defaults=defaults)
    assert alone.Subnet.startswith("fd")
    assert choose(network(ipv4=False), taken=[], avoid=[], defaults=defaults) == []


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (IPAMConfig(Subnet="10.9.0.0/24", Gateway="10.9.0.0"), r"failed to allocate gateway \(10.9.0.0\)"),
        (
            IPAMConfig(Subnet="10.9.0.0/24", AuxiliaryAddresses={"x": "10.9.0.1"}),
            r"failed to allocate secondary ip address \(x:10.9.0.1\): Address already in use",
        ),
    ],
)
def test_one_address_is_not_two_devices(config: IPAMConfig, text: str) -> None:
    with pytest.raises(ForbiddenError, match=text):
        choose(network(config), taken=[], avoid=[], defaults=DEFAULT_POOLS)


def test_a_range_and_what_is_reserved_is_kept_to() -> None:
    part, others = Net("10.0.5.0/30"), [ipaddress.ip_address("10.0.5.1")]
    pool = AddressPool(Net("10.0.0.0/16"), part, others)
    assert [str(pool.allocate()) for _ in range(3)] == ["10.0.5.0", "10.0.5.2", "10.0.5.3"]
    assert str(pool.allocate("10.0.9.9")) == "10.0.9.9"
    six = AddressPool(Net("fd00::/64"), reserved=[ipaddress.ip_address("fd00::1")])
    assert [str(six.allocate()) for _ in range(2)] == ["fd00::2", "fd00::3"]


@pytest.mark.parametrize(("base", "size"), [("10.0.0.0/16", 8), ("10.0.0.0/16", 33)])
def test_a_default_pool_has_subnets_of_its_size(base: str, size: int) -> None:
    with pytest.raises(InvalidParameterError, match="no subnets of size"):
        DefaultPool(Net(base), size)


def test_default_pools_of_the_operators() -> None:
    pools = parse_default_pools(["base=10.10.0.0/16,size=24", "size=64,base=fd00:1::/48"], seed="host")
    assert [(str(pool.base), pool.size) for pool in pools] == [("10.10.0.0/16", 24), ("fd00:1::/48", 64)]
    assert parse_default_pools(["base=fd00:1::/48,size=64"], seed="host")[1:] == list(DEFAULT_POOLS)
    assert parse_default_pools([], seed="host") == [*DEFAULT_POOLS, ula("host")]
    for bad in (
        "",
        "10.0.0.0/8",
        "base=10.0.0.0/8",
        "base=10.0.0.1/8,size=24",
        "base=x,size=24",
        "base=10.0.0.0/8,size=-1",
    ):
        with pytest.raises(InvalidParameterError, match="default address pool"):
            parse_default_pools([bad], seed="host")


def test_pools_are_kept_as_they_are() -> None:
    (pool,) = choose(
        network(IPAMConfig(Subnet="10.9.0.0/24", AuxiliaryAddresses={"x": "10.9.0.7"})),
        taken=[],
        avoid=[],
        defaults=DEFAULT_POOLS,
    )
    assert msgspec.json.decode(msgspec.json.encode(pool), type=type(pool)) == pool
