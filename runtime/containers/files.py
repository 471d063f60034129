"""/etc/hosts, /etc/hostname and /etc/resolv.conf of a container: the texts are pure, the host's files are read here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from base.files import read_text
from runtime.errors import HostError, InvalidParameterError
from runtime.types import HostConfig

_LOCAL = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
_IPV6 = "fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
_FALLBACK = ("8.8.8.8", "8.8.4.4")
_RESOLVED = Path("/run/systemd/resolve/resolv.conf")


def hosts_text(extra: Sequence[str], *, addresses: Sequence[str], names: Sequence[str], gateway: str) -> str:
    """``extra`` are "name:ip" or "name=ip"; "host-gateway" stands for ``gateway``. Raises InvalidParameterError."""
    text = _LOCAL + _IPV6
    for entry in extra:
        name, sep, value = entry.partition("=") if "=" in entry else entry.partition(":")
        if not sep or not name or not value or any(char.isspace() for char in entry):
            raise InvalidParameterError(f'invalid IP address in add-host: "{entry}"')
        if value == "host-gateway":
            if not gateway:
                raise InvalidParameterError(
                    f"cannot set up {name}: host-gateway needs a container on the bridge network"
                )
            value = gateway
        text += f"{value.strip('[]')}\t{name}\n"
    return text + _hosts_lines(addresses, names)


def _hosts_lines(addresses: Sequence[str], names: Sequence[str]) -> str:
    return "".join(f"{address}\t{' '.join(names)}\n" for address in addresses)


def changed_hosts(text: str, names: Sequence[str], *, come: Sequence[str] = (), gone: Sequence[str] = ()) -> str:
    """/etc/hosts of a container with other addresses of its own; what else is in it stays, whoever wrote it."""
    ours = _hosts_lines([*come, *gone], names).splitlines(keepends=True)
    return "".join(line for line in text.splitlines(keepends=True) if line not in ours) + _hosts_lines(come, names)


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Other text in place, as the file is mounted in the container. Raises HostError."""
    try:
        with path.open("r+", encoding="utf-8", errors="surrogateescape") as file:
            text = change(file.read())
            file.seek(0)
            file.write(text)
            file.truncate()
    except OSError as error:
        raise HostError(f"cannot write {path}: {error}") from error


def resolv_text(host: HostConfig, source: str) -> str:
    """From the host's resolv.conf: its loopback resolvers cannot be reached from inside, so they are left out."""
    servers, search, options = [], [], []
    for line in source.splitlines():
        fields = line.split()
        if len(fields) < 2 or fields[0][0] in "#;":
            continue
        if fields[0] == "nameserver" and not fields[1].startswith(("127.", "::1")):
            servers.append(fields[1])
        elif fields[0] in ("search", "domain"):
            search = fields[1:]
        elif fields[0] == "options":
            options = fields[1:]
    servers = list(host.Dns or servers or _FALLBACK)
    search = [name for name in (host.DnsSearch or search) if name != "."]
    options = list(host.DnsOptions or options)
    lines = [f"nameserver {server}" for server in servers]
    if search:
        lines.append(f"search {' '.join(search)}")
    if options:
        lines.append(f"options {' '.join(options)}")
    return "\n".join(lines) + "\n"


def host_resolv() -> str:
    """The host's resolver configuration; behind systemd-resolved's stub, the one with the real servers."""
    text = read_text(Path("/etc/resolv.conf")) or ""
    servers = [
        line.split()[1] for line in text.splitlines() if line.startswith("nameserver ") and len(line.split()) > 1
    ]
    if servers == ["127.0.0.53"]:
        return read_text(_RESOLVED) or text
    return text


def oci_mounts(folder: Path, taken: Sequence[str]) -> list[dict[str, object]]:
    """The three files as OCI mounts, but where the user mounts something of their own."""
    names = {"/etc/resolv.conf": "resolv.conf", "/etc/hostname": "hostname", "/etc/hosts": "hosts"}
    return [
        {"destination": target, "type": "bind", "source": str(folder / name), "options": ["rbind", "rprivate", "rw"]}
        for target, name in names.items()
        if target not in taken
    ]
