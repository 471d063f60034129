"""From the body of ``POST /networks/create`` to a network as it will be kept: checked, with what was left out. Pure.

Source: moby ``daemon/network.go`` (``createNetwork``), ``api/types/network/ipam.go`` (``ValidateIPAM``),
``libnetwork/controller.go`` (``NewNetwork``), ``libnetwork/network.go`` (``validateConfiguration``).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping

import msgspec

from runtime.errors import ForbiddenError, InvalidParameterError, NotFoundError
from runtime.network_types import IPAM, IPAMConfig, NetworkCreateRequest
from runtime.networks import options
from runtime.networks.addresses import IPNetwork
from runtime.networks.driver import Network

PREDEFINED = ("bridge", "host", "none", "default")
DEFAULT_DRIVER = "bridge"
CONFIG_DRIVER = "null"
_SCOPES = ("", "local", "swarm")


def define(
    request: NetworkCreateRequest, network_id: str, created: str, find: Callable[[str], Network | None]
) -> Network:
    """The network that is asked for, not settled yet.

    Args:
        find: a network by its name, for ``ConfigFrom``.

    Raises:
        ForbiddenError, InvalidParameterError, NotFoundError: with dockerd's text.
    """
    _check_name(request.Name)
    network = Network(
        ID=network_id,
        Name=request.Name,
        Driver=request.Driver or DEFAULT_DRIVER,
        Created=created,
        Scope=request.Scope,
        Options=_without_versions(request),
        Labels=request.Labels,
        EnableIPv4=_enabled(request.EnableIPv4, request.Options, "enable_ipv4", default=True),
        EnableIPv6=_enabled(request.EnableIPv6, request.Options, "enable_ipv6", default=False),
        Internal=request.Internal,
        Attachable=request.Attachable,
        Ingress=request.Ingress,
        ConfigOnly=request.ConfigOnly,
        ConfigFrom=request.ConfigFrom.Network if request.ConfigFrom else "",
        IPAM=request.IPAM or IPAM(),
    )
    _check_ipam(network)
    if network.ConfigOnly:
        return _config_only(network)
    if network.Scope not in _SCOPES:
        raise InvalidParameterError(f"invalid network scope {network.Scope[:100]!r}: want local or swarm")
    return _with_config(network, find) if network.ConfigFrom else network


def warnings(network: Network) -> list[str]:
    """What was asked for and has no effect, as sentences."""
    found = []
    if network.Driver == DEFAULT_DRIVER and (names := options.unknown(network.Options)):
        found.append(f"options that the bridge driver does not know are kept without effect: {', '.join(names)}")
    if network.IPAM.Options:
        found.append(f"IPAM options are kept without effect: {', '.join(sorted(network.IPAM.Options))}")
    if not network.EnableIPv6 and any(subnet.version == 6 for subnet in _subnets(network.IPAM)):
        found.append("IPv6 subnets are kept without effect: IPv6 is not enabled")
    return found


def _check_name(name: str) -> None:
    if name in PREDEFINED:
        raise ForbiddenError(f"operation is not permitted on predefined {name} network ")
    if not name.strip():
        raise InvalidParameterError("invalid name: name is empty")


def _enabled(asked: bool | None, given: Mapping[str, str], option: str, *, default: bool) -> bool:
    name = f"{options.PREFIX}{option}"
    if asked is not None:
        return asked
    if name not in given:
        return default
    try:
        return options.parse_bool(given[name])
    except ValueError:
        raise InvalidParameterError(f'driver-opt "{name}" is not a valid bool') from None


def _without_versions(request: NetworkCreateRequest) -> dict[str, str]:
    """Options less those that the request's own fields overrule."""
    overruled = {
        f"{options.PREFIX}{option}"
        for option, asked in (("enable_ipv4", request.EnableIPv4), ("enable_ipv6", request.EnableIPv6))
        if asked is not None
    }
    return {name: text for name, text in request.Options.items() if name not in overruled}


def _config_only(network: Network) -> Network:
    if network.Ingress or network.Internal or network.Attachable or network.Scope:
        raise ForbiddenError(
            "configuration network can only contain network specific fields. Network operator fields like "
            "[ ingress | internal | attachable | scope ] are not supported."
        )
    if network.ConfigFrom:
        raise ForbiddenError("a configuration network cannot depend on another configuration network")
    return msgspec.structs.replace(network, Driver=CONFIG_DRIVER)


def _with_config(network: Network, find: Callable[[str], Network | None]) -> Network:
    has_own = network.Labels or network.IPAM.Options or network.IPAM.Config or network.IPAM.Driver != "default"
    if has_own or not network.EnableIPv4 or network.EnableIPv6:
        raise ForbiddenError(
            "user specified configurations are not supported if the network depends on a configuration network"
        )
    if network.Options:
        raise ForbiddenError(
            "network driver options are not supported if the network depends on a configuration network"
        )
    config = find(network.ConfigFrom)
    if config is None or not config.ConfigOnly:
        raise NotFoundError(f'configuration network "{network.ConfigFrom}" does not exist')
    return msgspec.structs.replace(
        network,
        EnableIPv4=config.EnableIPv4,
        EnableIPv6=config.EnableIPv6,
        Labels=config.Labels,
        IPAM=config.IPAM,
        Options=config.Options,
    )


def _check_ipam(network: Network) -> None:
    if network.IPAM.Driver != "default":
        raise NotFoundError(f'plugin "{network.IPAM.Driver}" not found')
    faults = [
        fault for config in network.IPAM.Config or () for fault in _faults(config, enable_ipv6=network.EnableIPv6)
    ]
    if len(faults) == 1:
        raise InvalidParameterError(f"invalid network config:\n{faults[0]}")
    if faults:
        raise InvalidParameterError("invalid network config:\n* " + "\n* ".join(faults))


def _faults(config: IPAMConfig, *, enable_ipv6: bool) -> Iterator[str]:
    subnet = _block(config.Subnet)
    if subnet is None:
        yield f"invalid subnet {config.Subnet}: invalid CIDR block notation"
        return
    if subnet.version == 6 and not enable_ipv6:
        return
    network = subnet.network
    if subnet.ip != network.network_address:
        yield f"invalid subnet {config.Subnet}: it should be {network}"
    if config.IPRange:
        yield from _range_faults(config.IPRange, network)
    if config.Gateway and (fault := _address_fault(config.Gateway, network)):
        yield f"invalid gateway {config.Gateway}: {fault}"
    for name, text in config.AuxiliaryAddresses.items():
        if fault := _address_fault(text, network):
            yield f"invalid auxiliary address {name}: {fault}"


def _range_faults(text: str, subnet: IPNetwork) -> Iterator[str]:
    part = _block(text)
    if part is None:
        yield f"invalid ip-range {text}: invalid CIDR block notation"
    elif part.version != subnet.version:
        yield f"invalid ip-range {text}: parent subnet is an IPv{subnet.version} block"
    else:
        if part.network.prefixlen < subnet.prefixlen:
            yield f"invalid ip-range {text}: CIDR block is bigger than its parent subnet {subnet}"
        if part.ip != part.network.network_address:
            yield f"invalid ip-range {text}: it should be {part.network}"
        if not part.network.overlaps(subnet):
            yield f"invalid ip-range {text}: parent subnet {subnet} doesn't contain ip-range"


def _address_fault(text: str, subnet: IPNetwork) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "invalid address"
    if "%" in text:
        return "invalid address: it has a zone"
    if address.version != subnet.version:
        return f"parent subnet is an IPv{subnet.version} block"
    return "" if address in subnet else f"parent subnet {subnet} doesn't contain this address"


def _block(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface | None:
    """Address and prefix length, as Go's ParsePrefix reads them: no netmask, no zone."""
    address, separator, length = text.partition("/")
    if not separator or not length.isascii() or not length.isdigit() or len(length) > 3 or "%" in address:
        return None
    try:
        return ipaddress.ip_interface(text)
    except ValueError:
        return None


def _subnets(ipam: IPAM) -> list[IPNetwork]:
    return [ipaddress.ip_network(config.Subnet, strict=False) for config in ipam.Config or ()]
