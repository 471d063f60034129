"""/etc/hosts of a container, as text, and the mounts of its three files. /etc/resolv.conf: ``runtime.resolver.resolv_conf``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from runtime.errors import HostError, InvalidParameterError

_CHARACTERS_MAX = 1 << 20
_LOCAL = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
_IPV6 = "fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"


def hosts_text(extra: Sequence[str], *, addresses: Sequence[str], names: Sequence[str], gateway: str) -> str:
    """``extra`` and ``gateway`` as in ``extra_lines``. Raises InvalidParameterError."""
    return _LOCAL + _IPV6 + extra_lines(extra, gateway) + _hosts_lines(addresses, names)


def extra_lines(extra: Sequence[str], gateway: str) -> str:
    """``extra`` are "name:ip" or "name=ip"; "host-gateway" stands for ``gateway``. Raises InvalidParameterError."""
    text = ""
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
    return text


def _hosts_lines(addresses: Sequence[str], names: Sequence[str]) -> str:
    return "".join(f"{address}\t{' '.join(names)}\n" for address in addresses)


def changed_hosts(text: str, names: Sequence[str], *, come: Sequence[str] = (), gone: Sequence[str] = ()) -> str:
    """/etc/hosts of a container with other addresses of its own; what else is in it stays, whoever wrote it."""
    ours = _hosts_lines([*come, *gone], names).splitlines(keepends=True)
    return "".join(line for line in text.splitlines(keepends=True) if line not in ours) + _hosts_lines(come, names)


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Other text in place, as the file is mounted in the container. Raises HostError.

    The container may have written to it what it likes: one that has become large is left alone.
    """
    try:
        with path.open("r+", encoding="utf-8", errors="surrogateescape", newline="") as file:
            before = file.read(_CHARACTERS_MAX + 1)
            if len(before) > _CHARACTERS_MAX:
                raise HostError(f"cannot write {path}: it is larger than {_CHARACTERS_MAX >> 20} MiB")
            text = change(before)
            file.seek(0)
            file.write(text)
            file.truncate()
    except OSError as error:
        raise HostError(f"cannot write {path}: {error}") from error


def oci_mounts(folder: Path, taken: Sequence[str]) -> list[dict[str, object]]:
    """The three files as OCI mounts, but where the user mounts something of their own."""
    names = {"/etc/resolv.conf": "resolv.conf", "/etc/hostname": "hostname", "/etc/hosts": "hosts"}
    return [
        {"destination": target, "type": "bind", "source": str(folder / name), "options": ["rbind", "rprivate", "rw"]}
        for target, name in names.items()
        if target not in taken
    ]
