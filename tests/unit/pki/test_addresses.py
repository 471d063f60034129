"""``HOST:PORT`` as people write it (features A1.02, A1.03, A1.15)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pki.addresses import AddressError, join_host_port, split_host_port


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1", ("10.0.0.1", 2377)),
        ("10.0.0.1:99", ("10.0.0.1", 99)),
        ("manager:2377", ("manager", 2377)),
        ("manager:1", ("manager", 1)),
        ("manager:65535", ("manager", 65535)),
        ("[fe80::1]:5", ("fe80::1", 5)),
        ("[fe80::1]", ("fe80::1", 2377)),
        ("fe80::1", ("fe80::1", 2377)),
        ("[fe80::1%eth0]:5", ("fe80::1%eth0", 5)),
        ("::", ("::", 2377)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert split_host_port(text) == address


def test_a_missing_port_is_the_one_that_is_asked_for() -> None:
    assert split_host_port("manager", 99) == split_host_port("manager:99") == ("manager", 99)


@pytest.mark.parametrize(("text", "address"), [("", ("", 2377)), (":99", ("", 99))])
def test_an_empty_host_is_one_only_where_it_is_asked_for(text: str, address: tuple[str, int]) -> None:
    assert split_host_port(text, empty_host=True) == address
    with pytest.raises(AddressError, match="no host"):
        split_host_port(text)


@pytest.mark.parametrize("text", ["host:", "[::1]:", ":", "host:0", "host:65536", "host:x", "host:-1", "host: 1"])
@pytest.mark.parametrize("empty_host", [False, True])
def test_a_port_that_is_none_is_refused(text: str, empty_host: bool) -> None:
    with pytest.raises(AddressError, match="invalid address"):
        split_host_port(text, empty_host=empty_host)


@pytest.mark.parametrize("port", ["\u0661", "\u00b2", "1_0", "9" * 5000])
def test_a_port_is_a_few_ascii_digits(port: str) -> None:
    with pytest.raises(AddressError, match="invalid port"):
        split_host_port(f"host:{port}")


@pytest.mark.parametrize("text", ["[::1", "[::1]x", "[]", "[]:1", "[host]:1", "[10.0.0.1]:1", "10.0.0.1:1:2", "a:b:c"])
def test_brackets_and_colons_belong_to_ipv6(text: str) -> None:
    with pytest.raises(AddressError, match="invalid address"):
        split_host_port(text, empty_host=True)


@given(st.one_of(st.ip_addresses().map(str), st.from_regex("[a-z0-9.-]{1,30}", fullmatch=True)), st.integers(1, 65535))
def test_what_was_joined_is_split_again(host: str, port: int) -> None:
    assert split_host_port(join_host_port(host, port)) == (host, port)


@given(st.text())
def test_any_text_is_split_or_refused(text: str) -> None:
    try:
        host, port = split_host_port(text)
    except AddressError:
        return
    assert host
    assert 0 < port < 65536
