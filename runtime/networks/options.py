"""Options of a bridge network: what ``docker network create -o`` says. Pure.

Source: moby ``libnetwork/drivers/bridge/bridge_linux.go`` (``fromLabels``), ``labels.go``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import TypeVar, get_args

import msgspec

from runtime.errors import InvalidParameterError
from runtime.kernel.network import IPAddress
from runtime.networks.driver import Network
from runtime.networks.rules import GatewayMode

V = TypeVar("V")
PREFIX = "com.docker.network."
DEVICE = f"{PREFIX}bridge.name"
MTU = f"{PREFIX}driver.mtu"
DEFAULT_MTU = 1500
_MTU_MIN, _MTU_MAX = {4: 68, 6: 1280}, 65535
_DEVICE_NAME = re.compile(r"(?!\.{1,2}$)[a-zA-Z0-9_.-]{1,15}")
_READ_ELSEWHERE = {f"{PREFIX}enable_ipv4", f"{PREFIX}enable_ipv6", f"{PREFIX}bridge.default_bridge"}


class BridgeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a bridge, parsed.

    ``host_ipv4`` and ``host_ipv6`` are what the world sees instead of the address of the way out. ``binding`` is where
    ports are published that name no address. From ``trusted_interfaces`` containers are reached at their own addresses, by
    their published ports.
    """

    device: str
    mtu: int = 0
    icc: bool = True
    masquerade: bool = True
    mode_ipv4: GatewayMode = "nat"
    mode_ipv6: GatewayMode = "nat"
    inhibit_ipv4: bool = False
    binding: IPAddress = ipaddress.IPv4Address("0.0.0.0")
    host_ipv4: IPAddress | None = None
    host_ipv6: IPAddress | None = None
    trusted_interfaces: tuple[str, ...] = ()
    interface_prefix: str = ""

    def mode(self, version: int) -> GatewayMode:
        """That of an address family."""
        return self.mode_ipv4 if version == 4 else self.mode_ipv6

    def versions_without_gateway(self, *, internal: bool) -> list[int]:
        """Address families in which the host has no address here."""
        without_ipv4 = self.mode_ipv4 == "isolated" or (self.inhibit_ipv4 and internal)
        return [version for version, found in ((4, without_ipv4), (6, self.mode_ipv6 == "isolated")) if found]


def parse(network: Network) -> BridgeOptions:
    """Those of a network, and its device. Raises InvalidParameterError."""
    options = BridgeOptions(device=f"br-{network.ID[:12]}")
    for name, text in network.Options.items():
        if name in _READERS:
            field, read = _READERS[name]
            options = msgspec.structs.replace(options, **{field: read(name, text)})
    if "isolated" in (options.mode_ipv4, options.mode_ipv6) and not network.Internal:
        raise InvalidParameterError("gateway mode 'isolated' can only be used for an internal network")
    if options.mtu and not _MTU_MIN[6 if network.EnableIPv6 else 4] <= options.mtu <= _MTU_MAX:
        raise InvalidParameterError(f"invalid MTU number: {options.mtu}")
    return options


def unknown(options: Mapping[str, str]) -> list[str]:
    """Names of those that are kept and mean nothing here, sorted."""
    return sorted(set(options) - set(_READERS) - _READ_ELSEWHERE)


def parse_bool(text: str) -> bool:
    """As Go's ParseBool reads it. Raises ValueError with its words."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError(f'strconv.ParseBool: parsing "{text[:100]}": invalid syntax')


def _number(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", text, re.ASCII):
        raise ValueError(f'strconv.Atoi: parsing "{text[:100]}": invalid syntax')
    return int(text)


def _mode(text: str) -> str:
    if text not in get_args(GatewayMode):
        raise ValueError(f"unknown gateway mode {text[:100]}")
    return text


def _address(text: str) -> IPAddress:
    try:
        if "%" in text:  # a zone may be any text, and this goes into rules
            raise ValueError
        return ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("nil ip") from None


def _device(text: str) -> str:
    """The text goes into rules: what the kernel would take besides is refused."""
    if not _DEVICE_NAME.fullmatch(text):
        raise ValueError("want the name of a network device: 1 to 15 letters, digits, dots, dashes, underscores")
    return text


def _devices(text: str) -> tuple[str, ...]:
    return tuple(_device(each) for each in text.split(":") if each)


def _prefix(text: str) -> str:
    return _device(f"{text}000") and text  # room for a number


def _reader(read: Callable[[str], V]) -> Callable[[str, str], V]:
    def checked(name: str, text: str) -> V:
        try:
            return read(text)
        except ValueError as error:
            raise InvalidParameterError(f"failed to parse {name} value: {text[:100]} ({error})") from None

    return checked


_READERS: dict[str, tuple[str, Callable[[str, str], object]]] = {
    DEVICE: ("device", _reader(_device)),
    MTU: ("mtu", _reader(_number)),
    f"{PREFIX}bridge.enable_icc": ("icc", _reader(parse_bool)),
    f"{PREFIX}bridge.enable_ip_masquerade": ("masquerade", _reader(parse_bool)),
    f"{PREFIX}bridge.gateway_mode_ipv4": ("mode_ipv4", _reader(_mode)),
    f"{PREFIX}bridge.gateway_mode_ipv6": ("mode_ipv6", _reader(_mode)),
    f"{PREFIX}bridge.inhibit_ipv4": ("inhibit_ipv4", _reader(parse_bool)),
    f"{PREFIX}bridge.host_binding_ipv4": ("binding", _reader(_address)),
    f"{PREFIX}bridge.trusted_host_interfaces": ("trusted_interfaces", _reader(_devices)),
    f"{PREFIX}host_ipv4": ("host_ipv4", _reader(_address)),
    f"{PREFIX}host_ipv6": ("host_ipv6", _reader(_address)),
    f"{PREFIX}container_iface_prefix": ("interface_prefix", _reader(_prefix)),
}
