"""Addresses: what the user wrote against what the host has (features A1.02 to A1.04)."""

from __future__ import annotations

import pytest

from pki.addresses import AddressError
from worker.membership.addresses import (
    SystemAddress,
    follows_host,
    is_here,
    resolve_advertise,
    resolve_data_path,
    resolve_listen,
)

ONE = [SystemAddress("eth0", "10.0.0.5"), SystemAddress("docker0", "172.17.0.1")]
TWO = [*ONE, SystemAddress("eth1", "10.1.0.5")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "0.0.0.0:2377"),
        (":2399", "0.0.0.0:2399"),
        ("eth0", "10.0.0.5:2377"),
        ("eth0:2400", "10.0.0.5:2400"),
        ("10.9.9.9:1", "10.9.9.9:1"),
        ("[::]:2377", "[::]:2377"),
        ("::1", "[::1]:2377"),
    ],
)
def test_listen_address_takes_ip_interface_or_port(text: str, expected: str) -> None:
    assert resolve_listen(text, ONE) == expected


def test_advertise_address_is_the_only_one_of_the_host_with_the_listen_port() -> None:
    assert resolve_advertise("", "0.0.0.0:2399", ONE) == "10.0.0.5:2399"


def test_advertise_address_is_the_listen_address_when_that_is_one() -> None:
    assert resolve_advertise("", "10.1.0.5:2377", TWO) == "10.1.0.5:2377"


def test_several_addresses_must_be_chosen_from() -> None:
    with pytest.raises(
        AddressError, match=r"10\.0\.0\.5 on eth0 and 10\.1\.0\.5 on eth1\) - specify one with --advertise-addr"
    ):
        resolve_advertise("", "0.0.0.0:2377", TWO)


def test_unknown_interface_and_zero_address_are_refused() -> None:
    with pytest.raises(AddressError, match="nope"):
        resolve_advertise("nope", "0.0.0.0:2377", ONE)
    with pytest.raises(AddressError, match="non-zero"):
        resolve_advertise("0.0.0.0", "0.0.0.0:2377", ONE)


@pytest.mark.parametrize(
    ("text", "listen", "follows"),
    [
        ("", "0.0.0.0:2377", True),
        ("", "[::]:2377", True),
        ("eth0", "0.0.0.0:2377", True),
        ("eth0:2378", "10.0.0.1:2377", True),
        ("", "10.0.0.1:2377", False),
        ("10.0.0.1", "0.0.0.0:2377", False),
        ("[fd00::1]:2377", "0.0.0.0:2377", False),
    ],
)
def test_an_address_that_nobody_named_follows_the_host(text: str, listen: str, follows: bool) -> None:
    assert follows_host(text, listen) is follows


def test_what_the_host_has_is_here() -> None:
    assert is_here("127.77.0.1")
    assert not is_here("192.0.2.1")
    assert not is_here("2001:db8::1")


def test_data_path_defaults_to_the_advertise_address() -> None:
    assert resolve_data_path("", "10.0.0.5:2377", TWO) == "10.0.0.5"
    assert resolve_data_path("eth1", "10.0.0.5:2377", TWO) == "10.1.0.5"


@pytest.mark.parametrize("text", ["eth0:b", "eth0:0", "eth0:70000", "eth0:", "[::1", "10.0.0.5:1:2"])
def test_what_is_no_address_is_refused_wherever_it_is_written(text: str) -> None:
    for resolve in (resolve_listen, lambda text, system: resolve_advertise(text, "0.0.0.0:2377", system)):
        with pytest.raises(AddressError, match="invalid address"):
            resolve(text, ONE)


def test_an_advertise_address_needs_a_host() -> None:
    with pytest.raises(AddressError, match="no host"):
        resolve_advertise(":2399", "0.0.0.0:2377", ONE)
