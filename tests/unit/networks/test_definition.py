"""What ``POST /networks/create`` takes and refuses, in dockerd's words: no kernel."""

from __future__ import annotations

import msgspec
import pytest

from runtime.errors import EngineError, ForbiddenError, InvalidParameterError, NotFoundError
from runtime.network_types import IPAM, ConfigReference, IPAMConfig, NetworkCreateRequest
from runtime.networks import options
from runtime.networks.definition import define, warnings
from runtime.networks.driver import Network

ID = "0123456789abcdef" * 4
NAME = "com.docker.network."


def made(request: NetworkCreateRequest, *others: Network) -> Network:
    known = {other.Name: other for other in others}
    return define(request, ID, "2026-01-01T00:00:00Z", known.get)


def asked(**fields: object) -> NetworkCreateRequest:
    request = NetworkCreateRequest(Name="n")
    for name, value in fields.items():
        request = msgspec.structs.replace(request, **{name: value})
    return request


def subnet(*configs: IPAMConfig, **fields: object) -> NetworkCreateRequest:
    return asked(IPAM=IPAM(Config=[*configs]), **fields)


def test_what_is_left_out_is_as_in_docker() -> None:
    network = made(NetworkCreateRequest(Name="n"))
    assert (network.Driver, network.EnableIPv4, network.EnableIPv6) == ("bridge", True, False)
    assert options.parse(network) == options.BridgeOptions(device="br-0123456789ab")


@pytest.mark.parametrize(
    ("request_", "kind", "text"),
    [
        (asked(Name="bridge"), ForbiddenError, "operation is not permitted on predefined bridge network "),
        (asked(Name="default"), ForbiddenError, "operation is not permitted on predefined default network "),
        (asked(Name=" \t"), InvalidParameterError, "invalid name: name is empty"),
        (asked(Scope="global"), InvalidParameterError, "invalid network scope 'global': want local or swarm"),
        (asked(IPAM=IPAM(Driver="foo")), NotFoundError, 'plugin "foo" not found'),
        (
            asked(Options={f"{NAME}enable_ipv6": "perhaps"}),
            InvalidParameterError,
            'driver-opt "com.docker.network.enable_ipv6" is not a valid bool',
        ),
        (
            subnet(IPAMConfig(Subnet="10.40.0.1/24")),
            InvalidParameterError,
            "invalid network config:\ninvalid subnet 10.40.0.1/24: it should be 10.40.0.0/24",
        ),
        (
            subnet(IPAMConfig(Subnet="10.40.0.0/255.255.255.0")),
            InvalidParameterError,
            "invalid network config:\ninvalid subnet 10.40.0.0/255.255.255.0: invalid CIDR block notation",
        ),
        (
            subnet(IPAMConfig(Subnet="10.40.0.0/24", Gateway="10.41.0.1", IPRange="10.42.0.0/16")),
            InvalidParameterError,
            "invalid network config:\n"
            "* invalid ip-range 10.42.0.0/16: CIDR block is bigger than its parent subnet 10.40.0.0/24\n"
            "* invalid ip-range 10.42.0.0/16: parent subnet 10.40.0.0/24 doesn't contain ip-range\n"
            "* invalid gateway 10.41.0.1: parent subnet 10.40.0.0/24 doesn't contain this address",
        ),
        (
            subnet(IPAMConfig(Subnet="10.40.0.0/24", Gateway="fd00::1", IPRange="fd00::/64")),
            InvalidParameterError,
            "invalid network config:\n"
            "* invalid ip-range fd00::/64: parent subnet is an IPv4 block\n"
            "* invalid gateway fd00::1: parent subnet is an IPv4 block",
        ),
        (
            subnet(IPAMConfig(Subnet="10.40.0.0/24", Gateway="x", AuxiliaryAddresses={"a": "y"})),
            InvalidParameterError,
            "invalid network config:\n* invalid gateway x: invalid address\n"
            "* invalid auxiliary address a: invalid address",
        ),
        (
            asked(ConfigOnly=True, Internal=True),
            ForbiddenError,
            "configuration network can only contain network specific fields. Network operator fields like "
            "[ ingress | internal | attachable | scope ] are not supported.",
        ),
        (
            asked(ConfigOnly=True, ConfigFrom=ConfigReference(Network="c")),
            ForbiddenError,
            "a configuration network cannot depend on another configuration network",
        ),
        (
            asked(ConfigFrom=ConfigReference(Network="nowhere")),
            NotFoundError,
            'configuration network "nowhere" does not exist',
        ),
        (
            asked(ConfigFrom=ConfigReference(Network="c"), Labels={"a": "b"}),
            ForbiddenError,
            "user specified configurations are not supported if the network depends on a configuration network",
        ),
        (
            asked(ConfigFrom=ConfigReference(Network="c"), Options={"a": "b"}),
            ForbiddenError,
            "network driver options are not supported if the network depends on a configuration network",
        ),
    ],
)
def test_what_cannot_be_is_refused(request_: NetworkCreateRequest, kind: type[EngineError], text: str) -> None:
    with pytest.raises(kind) as caught:
        made(request_)
    assert str(caught.value) == text


def test_a_configuration_is_taken_over() -> None:
    config = made(
        asked(
            Name="c",
            Driver="macvlan",
            ConfigOnly=True,
            EnableIPv6=True,
            Labels={"a": "b"},
            Options={"parent": "eth0"},
            IPAM=IPAM(Config=[IPAMConfig(Subnet="10.20.0.0/24")]),
        )
    )
    assert config.Driver == "null"
    network = made(asked(Driver="macvlan", Internal=True, ConfigFrom=ConfigReference(Network="c")), config)
    assert (network.Driver, network.Internal, network.ConfigFrom) == ("macvlan", True, "c")
    assert (network.EnableIPv6, network.Labels, network.Options, network.IPAM) == (
        True,
        {"a": "b"},
        {"parent": "eth0"},
        config.IPAM,
    )


def test_address_families_are_chosen_by_field_before_option() -> None:
    network = made(asked(Options={f"{NAME}enable_ipv6": "1", f"{NAME}enable_ipv4": "f"}))
    assert (network.EnableIPv4, network.EnableIPv6) == (False, True)
    network = made(asked(EnableIPv6=False, Options={f"{NAME}enable_ipv6": "1"}))
    assert (network.EnableIPv6, network.Options) == (False, {})


def test_what_has_no_effect_is_told() -> None:
    network = made(
        asked(
            Options={"foo": "bar", f"{NAME}driver.mtu": "1400"},
            IPAM=IPAM(Options={"a": "b"}, Config=[IPAMConfig(Subnet="2001:db8::1/64")]),
        )
    )
    assert warnings(network) == [
        "options that the bridge driver does not know are kept without effect: foo",
        "IPAM options are kept without effect: a",
        "IPv6 subnets are kept without effect: IPv6 is not enabled",
    ]


@pytest.mark.parametrize(
    ("option", "text", "reason"),
    [
        ("driver.mtu", "foo", 'strconv.Atoi: parsing "foo": invalid syntax'),
        ("driver.mtu", "\u0661", 'strconv.Atoi: parsing "\u0661": invalid syntax'),
        ("bridge.gateway_mode_ipv4", "foo", "unknown gateway mode foo"),
        ("bridge.enable_icc", "maybe", 'strconv.ParseBool: parsing "maybe": invalid syntax'),
        ("bridge.host_binding_ipv4", "x", "nil ip"),
        *(
            (
                f"bridge.{name}",
                text,
                "want the name of a network device: 1 to 15 letters, digits, dots, dashes, underscores",
            )
            for name, text in (
                ("name", 'x" accept'),
                ("name", "averyveryverylongname"),
                ("name", ""),
                ("name", ".."),
                ("trusted_host_interfaces", "eth0:a b"),
            )
        ),
    ],
)
def test_a_bad_value_of_an_option_is_named(option: str, text: str, reason: str) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        options.parse(made(asked(Options={f"{NAME}{option}": text})))
    assert str(caught.value) == f"failed to parse {NAME}{option} value: {text} ({reason})"


@pytest.mark.parametrize(("mtu", "ipv6"), [("-1", False), ("67", False), ("65536", False), ("1279", True)])
def test_an_mtu_that_no_link_has_is_refused(mtu: str, ipv6: bool) -> None:
    with pytest.raises(InvalidParameterError, match=f"invalid MTU number: {mtu}"):
        options.parse(made(asked(EnableIPv6=ipv6, Options={f"{NAME}driver.mtu": mtu})))


def test_options_of_a_bridge() -> None:
    given = {
        "bridge.name": "br7",
        "driver.mtu": "1400",
        "bridge.enable_icc": "false",
        "bridge.enable_ip_masquerade": "0",
        "bridge.gateway_mode_ipv4": "routed",
        "bridge.gateway_mode_ipv6": "nat-unprotected",
        "bridge.inhibit_ipv4": "T",
        "bridge.trusted_host_interfaces": "eth0:eth1",
        "container_iface_prefix": "net",
    }
    parsed = options.parse(made(asked(Options={f"{NAME}{name}": text for name, text in given.items()})))
    assert parsed == options.BridgeOptions(
        device="br7",
        mtu=1400,
        icc=False,
        masquerade=False,
        mode_ipv4="routed",
        mode_ipv6="nat-unprotected",
        inhibit_ipv4=True,
        trusted_interfaces=("eth0", "eth1"),
        interface_prefix="net",
    )


def test_isolation_is_for_internal_networks() -> None:
    isolated = {f"{NAME}bridge.gateway_mode_ipv4": "isolated"}
    with pytest.raises(InvalidParameterError, match="gateway mode 'isolated' can only be used for an internal network"):
        options.parse(made(asked(Options=isolated)))
    parsed = options.parse(made(asked(Internal=True, Options=isolated)))
    assert parsed.versions_without_gateway(internal=True) == [4]
