"""Who has which address."""

from __future__ import annotations

import pytest

from manager.allocator.addresses import Addresses
from manager.allocator.networks import NoRoomError
from proto.objects_pb2 import Network, NetworkAttachment
from proto.specs_pb2 import IPAMConfig


def network(*configs: IPAMConfig, network_id: str = "net") -> Network:
    made = Network(id=network_id)
    made.spec.name = "front"
    made.ipam.configs.extend(configs)
    return made


def small() -> Network:
    """Five addresses: .2 to .6."""
    return network(IPAMConfig(subnet="10.0.0.0/29", gateway="10.0.0.1"))


def given(addresses: Addresses, name: str, network_id: str = "net") -> list[str]:
    return list(addresses.allocate(("task", name), network_id).addresses)


def test_an_address_is_given_once_and_rests_when_it_is_given_back() -> None:
    addresses = Addresses()
    addresses.put_network(small())
    assert [given(addresses, name) for name in "abc"] == [["10.0.0.2/29"], ["10.0.0.3/29"], ["10.0.0.4/29"]]
    assert addresses.settle(("task", "b"), ()) == {"net"}
    assert [given(addresses, name) for name in "de"] == [["10.0.0.5/29"], ["10.0.0.6/29"]]
    assert given(addresses, "f") == ["10.0.0.3/29"]
    with pytest.raises(NoRoomError, match=r"addresses on network front: all 5 of 10\.0\.0\.0/29 are in use"):
        given(addresses, "g")
    assert addresses.usage("net") == {"10.0.0.0/29": (5, 5)}


def test_what_others_say_they_have_is_not_given() -> None:
    """As a new leader hears it: in any order, some of it before the network itself."""
    addresses = Addresses()
    addresses.settle(("task", "a"), [NetworkAttachment(network_id="net", addresses=["10.0.0.3/29"])])
    addresses.put_network(small())
    addresses.settle(("service", "s"), [NetworkAttachment(network_id="net", addresses=["10.0.0.2/29"])])
    assert [given(addresses, name) for name in "bcd"] == [["10.0.0.4/29"], ["10.0.0.5/29"], ["10.0.0.6/29"]]
    with pytest.raises(NoRoomError):
        given(addresses, "e")


def test_the_range_is_what_is_given_and_reserved_addresses_are_not() -> None:
    addresses = Addresses()
    config = IPAMConfig(subnet="10.0.0.0/24", range="10.0.0.8/30", gateway="10.0.0.9")
    config.auxiliary_addresses["router"] = "10.0.0.10"
    addresses.put_network(network(config))
    assert [given(addresses, name) for name in "ab"] == [["10.0.0.8/24"], ["10.0.0.11/24"]]
    with pytest.raises(NoRoomError):
        given(addresses, "c")


def test_one_of_each_family_or_none() -> None:
    addresses = Addresses()
    tiny = IPAMConfig(subnet="10.0.0.0/30", gateway="10.0.0.1")
    addresses.put_network(network(tiny, IPAMConfig(subnet="fd00::/64", gateway="fd00::1")))
    assert given(addresses, "a") == ["10.0.0.2/30", "fd00::2/64"]
    with pytest.raises(NoRoomError, match="IPv4"):
        given(addresses, "b")
    assert addresses.usage("net")["fd00::/64"][0] == 1


def test_a_second_subnet_of_the_family_serves_when_the_first_is_full() -> None:
    addresses = Addresses()
    addresses.put_network(
        network(
            IPAMConfig(subnet="10.0.0.0/30", gateway="10.0.0.1"), IPAMConfig(subnet="10.0.4.0/30", gateway="10.0.4.1")
        )
    )
    assert [given(addresses, name) for name in "ab"] == [["10.0.0.2/30"], ["10.0.4.2/30"]]


def test_telling_the_same_again_changes_nothing_and_a_network_that_went_takes_its_addresses_along() -> None:
    addresses = Addresses()
    addresses.put_network(small())
    attachment = addresses.allocate(("task", "a"), "net")
    assert addresses.settle(("task", "a"), [attachment]) == set()
    addresses.drop_network("net")
    assert addresses.settle(("task", "a"), ()) == set()
    addresses.put_network(small())
    assert addresses.usage("net") == {"10.0.0.0/29": (0, 5)}


def test_one_that_comes_back_under_another_owner_stays_with_the_first() -> None:
    addresses = Addresses()
    addresses.put_network(small())
    attachment = addresses.allocate(("task", "a"), "net")
    addresses.settle(("task", "b"), [attachment])
    addresses.settle(("task", "b"), ())
    assert given(addresses, "c") == ["10.0.0.3/29"]
    fresh = Addresses()
    fresh.put_network(small())
    assert list(addresses.differences(fresh))
