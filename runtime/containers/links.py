"""Legacy links (``--link NAME:ALIAS`` on the default bridge): lines of /etc/hosts and variables of the environment.

Who is linked is settled at create and kept by ID (``Record.Links``); on networks of the user's a link is an alias in the
resolver instead. Source: moby daemon/links, daemon/container_operations_unix.go, opts/parse.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from runtime.containers import files
from runtime.containers.container import Container
from runtime.errors import ConflictError, ContainerNotFoundError, HostError, InvalidParameterError
from runtime.networks.driver import Endpoint
from runtime.networks.ports import parse_port

NETWORK = "bridge"
HOST_MODE = (
    "conflicting options: host type networking can't be used with links. This would result in undefined behavior"
)
_CONTAINER = "container:"
_NOT_HANDED_ON = ("HOME", "PATH")


class Linked(msgspec.Struct, frozen=True):
    """A container as the one that links to it sees it: by which alias, under which names, and where."""

    alias: str
    names: tuple[str, ...]
    addresses: tuple[str, ...]
    env: Sequence[str] = ()
    ports: Sequence[str] = ()


def parse(text: str) -> tuple[str, str]:
    """Name and alias of ``NAME[:ALIAS]``, also as inspect shows it, ``/NAME:/PARENT/ALIAS``. Raises InvalidParameterError."""
    if not text:
        raise InvalidParameterError("empty string specified for links")
    name, separator, alias = text.partition(":")
    if ":" in alias:
        raise InvalidParameterError(f"bad format for links: {text[:200]}")
    if not separator:
        return name, name
    return (name[1:], alias.rpartition("/")[2]) if name.startswith("/") else (name, alias)


def settle(wanted: Sequence[str], lookup: Callable[[str], Container]) -> dict[str, str]:
    """IDs by alias; of one that shares another's namespace that other's. Raises InvalidParameterError."""
    found = {}
    for text in wanted:
        name, alias = parse(text)
        try:
            child = lookup(name)
            while child.record.HostConfig.NetworkMode.startswith(_CONTAINER):
                name = child.record.HostConfig.NetworkMode.removeprefix(_CONTAINER)
                child = lookup(name)
        except ContainerNotFoundError as error:
            raise InvalidParameterError(f"could not get container for {name}: {error}") from error
        if child.record.HostConfig.NetworkMode == "host":
            raise InvalidParameterError(HOST_MODE)
        found[alias] = child.id
    return found


def linked(parent: Container, lookup: Callable[[str], Container | None]) -> list[Linked]:
    """Those that a container on the default bridge sees at its start. Raises ConflictError, HostError."""
    if NETWORK not in parent.record.networks():
        return []
    seen = []
    for alias, child in _children(parent, lookup):
        if not child.running:
            raise ConflictError(
                f"Cannot link to a non running container: /{child.record.Name} AS /{parent.record.Name}/{alias}"
            )
        if NETWORK not in child.state.Endpoints:
            raise HostError(f"Cannot link to /{child.record.Name}, as it does not belong to the default network")
        seen.append(as_linked(alias, child, child.state.Endpoints[NETWORK]))
    return seen


def as_linked(alias: str, child: Container, endpoint: Endpoint | None) -> Linked:
    """One child, where it is."""
    config, name = child.record.Config, child.record.Name
    names = tuple(dict.fromkeys(each for each in (alias, config.Hostname, name) if each))
    addresses = tuple(str(each.ip) for each in endpoint.interfaces()) if endpoint else ()
    return Linked(alias, names, addresses, config.Env or (), [*(config.ExposedPorts or ())])


def shown(parent: Container, lookup: Callable[[str], Container | None]) -> list[str] | None:
    """``HostConfig.Links`` of inspect."""
    return [f"/{child.record.Name}:/{parent.record.Name}/{alias}" for alias, child in _children(parent, lookup)] or None


def _children(parent: Container, lookup: Callable[[str], Container | None]) -> Iterator[tuple[str, Container]]:
    """Those that are there still."""
    for alias, container_id in parent.record.Links.items():
        if (child := lookup(container_id)) is not None:
            yield alias, child


def environment(name: str, each: Linked) -> list[str]:
    """``ALIAS_PORT_80_TCP=tcp://ADDRESS:80`` and the like, for a container called ``name``."""
    address = next(iter(each.addresses), "")
    prefix = each.alias.upper().replace("-", "_")
    ports = sorted((parse_port(key) for key in each.ports), key=lambda port: (port[0] != "tcp", port[0], port[1]))
    found = [f"{prefix}_PORT={protocol}://{address}:{number}" for protocol, number in ports[:1]]
    for protocol, number in ports:
        own = f"{prefix}_PORT_{number}_{protocol.upper()}"
        found += [
            f"{own}={protocol}://{address}:{number}",
            f"{own}_ADDR={address}",
            f"{own}_PORT={number}",
            f"{own}_PROTO={protocol}",
        ]
    for first, last in _ranges(ports):
        own = f"{prefix}_PORT_{first[1]}_{first[0].upper()}"
        found += [
            f"{own}_START={first[0]}://{address}:{first[1]}",
            f"{own}_PORT_START={first[1]}",
            f"{own}_END={last[0]}://{address}:{last[1]}",
            f"{own}_PORT_END={last[1]}",
        ]
    found.append(f"{prefix}_NAME=/{name}/{each.alias}")
    for item in each.env:
        key, separator, value = item.partition("=")
        if separator and key not in _NOT_HANDED_ON:
            found.append(f"{prefix}_ENV_{key}={value}")
    return found


def _ranges(ports: Sequence[tuple[str, int]]) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """First and last of each run of ports that follow each other."""
    runs: list[list[tuple[str, int]]] = []
    for protocol, number in ports:
        if runs and runs[-1][-1] == (protocol, number - 1):
            runs[-1].append((protocol, number))
        else:
            runs.append([(protocol, number)])
    return [(run[0], run[-1]) for run in runs if len(run) > 1]


def hosts_lines(children: Sequence[Linked]) -> str:
    """Of /etc/hosts."""
    return "".join(f"{address}\t{' '.join(each.names)}\n" for each in children for address in each.addresses)


def changed_hosts(text: str, child: Linked) -> str:
    """/etc/hosts of a parent once a child has other addresses, or none; what else is in it stays."""
    names = " ".join(child.names)
    kept = [line for line in text.splitlines(keepends=True) if line.rstrip("\n").partition("\t")[2] != names]
    return "".join(kept) + hosts_lines([child])


def refresh(child: Container, parents: Iterable[tuple[Container, str]]) -> None:
    """Have those that link to a container, each by its alias, find it where it is now. What fails is logged."""
    for parent, alias in parents:
        if parent.running:
            endpoint = child.state.Endpoints.get(NETWORK) if child.running else None
            rewrite(parent, as_linked(alias, child, endpoint))


def rewrite(parent: Container, child: Linked) -> None:
    """What fails is logged: the parent's next start writes it anew."""
    try:
        files.rewrite(parent.folder / "hosts", lambda text: changed_hosts(text, child))
    except HostError as error:
        parent.log.warning("hosts.not_written", reason=str(error))
