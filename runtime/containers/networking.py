"""What a container may ask of networks: pure. The one place that decides it, at create and at connect.

The texts are dockerd's (moby runconfig/errors.go, daemon/container_operations.go, daemon/network/settings.go).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from runtime.errors import ForbiddenError, InvalidParameterError
from runtime.networks.addresses import parse_mac
from runtime.networks.driver import Network
from runtime.networks.predefined import NAMES
from runtime.networks.sandbox import IFNAME_OPTION, INTERFACE_NAME_MAX, SYSCTLS_OPTION
from runtime.types import (
    TASK_ID_LABEL,
    ContainerConfig,
    EndpointIPAMConfig,
    EndpointSettings,
    HostConfig,
    NetworkingConfig,
)

SHARED = "container sharing network namespace with another container or host cannot be connected to any other network"
NO_NETWORK = "container cannot be connected to multiple networks with one of the networks in private (none) mode"
TO_HOST = "cannot connect container to host network - container must be created in host network mode"
FROM_HOST = "cannot disconnect container from host network - container was created in host network mode"
_CONTAINER = "container:"
_SYSCTL = re.compile(r"[^.]*\.(?:ipv4|ipv6|mpls)\.[^.]*\.(?:IFNAME|ifname)\.[^=]+=.*")
_OF_INTERFACE = re.compile(r"net\.[^.]*\.[^.]*\.eth[^.]*\.")
_SYSCTL_TEXT = (
    "unrecognised network interface sysctl '{}'; represent 'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V', "
    "'X' must be 'ipv4', 'ipv6' or 'mpls'"
)

FindNetwork = Callable[[str], Network]
"""A network by name, ID or prefix. Raises NetworkNotFoundError."""


def check_modes(config: ContainerConfig, host: HostConfig) -> None:
    """What contradicts the network mode; ``config`` is the request's own. Raises InvalidParameterError."""
    if host.NetworkMode == "container" or host.NetworkMode.startswith(_CONTAINER):
        conflicts = (
            (
                not host.NetworkMode[len(_CONTAINER) :],
                "invalid network mode: invalid container format container:<name|id>",
            ),
            (config.Hostname, "conflicting options: hostname and the network mode"),
            (
                host.Links,
                "conflicting options: container type network can't be used with links. "
                "This would result in undefined behavior",
            ),
            (host.Dns, "conflicting options: dns and the network mode"),
            (host.ExtraHosts, "conflicting options: custom host-to-IP mapping and the network mode"),
            (
                host.PortBindings or host.PublishAllPorts,
                "conflicting options: port publishing and the container type network mode",
            ),
            (config.ExposedPorts, "conflicting options: port exposing and the container type network mode"),
        )
        for asked, text in conflicts:
            if asked:
                raise InvalidParameterError(text)
    if config.Hostname and host.UTSMode == "host":
        raise InvalidParameterError("conflicting options: hostname and the UTS mode")
    for name in host.Sysctls or {}:
        if _OF_INTERFACE.match(name) and host.NetworkMode != "host":
            raise InvalidParameterError(
                f"interface specific sysctl setting \"{name}\" must be supplied using driver option '{SYSCTLS_OPTION}'"
            )
    if host.NetworkMode == "host" and host.Links:
        raise InvalidParameterError(
            "conflicting options: host type networking can't be used with links. This would result in undefined behavior"
        )


def settle(
    config: ContainerConfig, host: HostConfig, networking: NetworkingConfig | None, find: FindNetwork
) -> tuple[str, dict[str, EndpointSettings]]:
    """The network mode by name, and what is asked of each network, by name; of ``container:ID`` nothing.

    A container is on the networks that ``EndpointsConfig`` names, else on that of its mode. Raises InvalidParameterError,
    NetworkNotFoundError.
    """
    asked = dict((networking.EndpointsConfig if networking else None) or {})
    if "default" in asked:
        asked["bridge"] = asked.pop("default")
    if host.NetworkMode.startswith(_CONTAINER):
        if asked:
            raise InvalidParameterError(SHARED)
        return host.NetworkMode, {}
    mode = "bridge" if host.NetworkMode in ("", "default") else find(host.NetworkMode).Name
    wanted: dict[str, EndpointSettings] = {}
    present: list[Network] = []
    for key, settings in _with_mac_address(asked or {mode: None}, config.MacAddress, mode).items():
        network = find(key)
        _refuse_unattachable(network, config)
        request = request_of(settings or EndpointSettings())
        if faults := _faults(network, request):
            raise InvalidParameterError(f"invalid config for network {key}: {_joined(faults)}")
        _refuse_combination(mode, present, network)
        present.append(network)
        wanted[network.Name] = request
    return mode, wanted


def check_connect(
    config: ContainerConfig,
    host: HostConfig,
    present: Iterable[Network],
    network: Network,
    settings: EndpointSettings,
) -> None:
    """Whether a container may come to be on ``network`` too. Raises InvalidParameterError, ForbiddenError."""
    _refuse_unattachable(network, config)
    if host.NetworkMode.startswith(_CONTAINER):
        raise InvalidParameterError(SHARED)
    if faults := _faults(network, settings):
        raise InvalidParameterError(_joined(faults))
    _refuse_combination(host.NetworkMode, present, network)


def request_of(settings: EndpointSettings) -> EndpointSettings:
    """What can be asked for; the rest are facts, which clients may send back as they were told."""
    return EndpointSettings(
        IPAMConfig=settings.IPAMConfig,
        Links=settings.Links,
        Aliases=settings.Aliases,
        MacAddress=settings.MacAddress,
        DriverOpts=settings.DriverOpts,
        GwPriority=settings.GwPriority,
    )


def _with_mac_address(
    asked: Mapping[str, EndpointSettings | None], mac: str, mode: str
) -> Mapping[str, EndpointSettings | None]:
    """``MacAddress`` of the container as older clients send it: that of the network of its mode."""
    if not mac or mode in ("host", "none"):
        return asked
    if mode not in asked:
        raise InvalidParameterError(
            "unable to migrate container-wide MAC address to a specific network: "
            "HostConfig.NetworkMode must match the identity of a network in NetworkSettings.Networks"
        )
    own = asked[mode] or EndpointSettings()
    if own.MacAddress not in ("", mac):
        raise InvalidParameterError(
            "the container-wide MAC address must match the endpoint-specific MAC address for the main network, "
            "or be left empty"
        )
    return {**asked, mode: msgspec.structs.replace(own, MacAddress=mac)}


def _refuse_unattachable(network: Network, config: ContainerConfig) -> None:
    """A network of the cluster is for tasks, and for others only where it says so. Raises ForbiddenError."""
    if network.Scope == "swarm" and not network.Attachable and TASK_ID_LABEL not in (config.Labels or {}):
        raise ForbiddenError(
            f"Could not attach to network {network.Name}: rpc error: code = PermissionDenied desc = "
            f"network {network.Name} not manually attachable"
        )


def _refuse_combination(mode: str, present: Iterable[Network], network: Network) -> None:
    if network.ConfigOnly:
        raise ForbiddenError("cannot create endpoint on configuration-only network")
    if network.Driver == "host" and mode != "host":
        raise InvalidParameterError(TO_HOST)
    for other in present:
        if other.Name == network.Name:
            return
        if "host" in (other.Driver, network.Driver):
            raise InvalidParameterError(SHARED)
        if "null" in (other.Driver, network.Driver):
            raise InvalidParameterError(NO_NETWORK)


def _faults(network: Network, settings: EndpointSettings) -> list[str]:
    """Everything that is wrong with a request, in words."""
    asked = settings.IPAMConfig or EndpointIPAMConfig()
    faults = []
    if network.Name in NAMES:
        if asked.IPv4Address or asked.IPv6Address:
            faults.append("user specified IP address is supported on user defined networks only")
        if settings.Aliases:
            faults.append("network-scoped alias is supported only for containers in user defined networks")
    wrong = [*_wrong_addresses(asked)]
    faults += wrong
    if network.Name not in NAMES and not wrong:
        faults += _out_of_subnets(network, asked)
    if settings.MacAddress:
        try:
            parse_mac(settings.MacAddress)
        except InvalidParameterError:
            faults.append(f"invalid MAC address {settings.MacAddress[:100]}")
    options = settings.DriverOpts or {}
    faults += [
        _SYSCTL_TEXT.format(entry)
        for entry in options.get(SYSCTLS_OPTION, "").split(",")
        if SYSCTLS_OPTION in options and not _SYSCTL.fullmatch(entry)
    ]
    if (name := options.get(IFNAME_OPTION)) is not None and not _is_interface_name(name):
        faults.append(f"invalid interface name {name[:100]!r}")
    return faults


def _wrong_addresses(asked: EndpointIPAMConfig) -> Iterable[str]:
    if asked.IPv4Address and not _is_address(asked.IPv4Address, 4):
        yield f"invalid IPv4 address: {asked.IPv4Address[:100]}"
    if asked.IPv6Address and not _is_address(asked.IPv6Address, 6):
        yield f"invalid IPv6 address: {asked.IPv6Address[:100]}"
    for address in asked.LinkLocalIPs or ():
        if not (_is_address(address, 4) or _is_address(address, 6)):
            yield f"invalid link-local IP address: {address[:100]}"


def _is_address(text: str, version: int) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.version == version and not address.is_unspecified and "%" not in text


def _out_of_subnets(network: Network, asked: EndpointIPAMConfig) -> Iterable[str]:
    """Addresses are chosen by users where they chose the subnet, or the network's would change under them."""
    subnets = [
        ipaddress.ip_network(config.Subnet, strict=False) for config in network.IPAM.Config or () if config.Subnet
    ]
    for version, text in ((4, asked.IPv4Address), (6, asked.IPv6Address)):
        if not text:
            continue
        own = [subnet for subnet in subnets if subnet.version == version]
        if not own:
            yield (
                "user specified IP address is supported only when connecting to networks with user configured subnets"
            )
        elif not any(ipaddress.ip_address(text) in subnet for subnet in own):
            yield f"no configured subnet or ip-range contain the IP address {text}"


def _is_interface_name(name: str) -> bool:
    return (
        0 < len(name.encode()) <= INTERFACE_NAME_MAX
        and name not in (".", "..", "lo")
        and not any(char.isspace() or char in "/:%" for char in name)
    )


def _joined(faults: Sequence[str]) -> str:
    """As dockerd joins them: a list once there are several."""
    return "invalid endpoint settings:\n" + (faults[0] if len(faults) == 1 else "* " + "\n* ".join(faults))
