"""The entries of a service's ``volumes``, in short or long form."""

from __future__ import annotations

import os
from pathlib import Path

from cli import values
from cli.composefile import keys
from cli.composefile.cursor import Cursor
from cli.composefile.model import BindMount, Mount, TmpfsMount, VolumeMount

PROPAGATIONS = ("shared", "slave", "private", "rshared", "rslave", "rprivate")


def read_mount(directory: Path, item: Cursor) -> Mount:
    """One mount.

    Args:
        directory: where relative sources start.

    Raises:
        ManifestError: it is none.
    """
    mount = item if isinstance(item.value, dict) else item.instead(short_form(item))
    mount.check(keys.MOUNT)
    kind = mount.get("type").choice("volume", "bind", "tmpfs") if mount.get("type") else "volume"
    target, source = mount.get("target").text(), mount.get("source").text()
    if not target:
        raise item.error("target is required")
    for other in ("bind", "volume", "tmpfs"):
        if other != kind and mount.get(other):
            raise mount.get(other).error(f"does not go with type {kind}")
    read_only, consistency = mount.get("read_only").boolean(), mount.get("consistency").text()
    if kind == "bind":
        if not source:
            raise item.error("source is required of a bind mount")
        options = mount.get("bind", keys.MOUNT_BIND)
        recursive = options.get("recursive")
        made = BindMount(
            target=target,
            read_only=read_only,
            consistency=consistency,
            source=absolute(directory, source),
            propagation=options.get("propagation").optional_text(),
            recursive=recursive.read(lambda cursor: cursor.choice(*values.BIND_RECURSIVE)),
            create_host_path=options.get("create_host_path").read(Cursor.boolean),
        )
        below = {**values.BIND_RECURSIVE[made.recursive or "enabled"], "Propagation": made.propagation}
        try:
            values.check_recursive(below, read_only)
        except ValueError as error:
            raise recursive.error(str(error)) from error
        return made
    if kind == "tmpfs":
        options = mount.get("tmpfs", keys.MOUNT_TMPFS)
        return TmpfsMount(
            target=target,
            read_only=read_only,
            consistency=consistency,
            size_bytes=options.get("size").read(Cursor.size_bytes),
            mode=options.get("mode").read(file_mode),
        )
    options = mount.get("volume", keys.MOUNT_VOLUME)
    return VolumeMount(
        at=item.place,
        target=target,
        read_only=read_only,
        consistency=consistency,
        source=source,
        nocopy=options.get("nocopy").boolean(),
        subpath=options.get("subpath").text(),
    )


def file_mode(mode: Cursor) -> int:
    """``0440`` is octal already; as text (quoted, or out of a variable) it is read as octal too."""
    found = mode.parse(values.file_mode) if isinstance(mode.value, str) else mode.integer()
    if found > 0o7777:
        raise mode.error(f"is no file mode: {found:o}")
    return found


def absolute(directory: Path, source: str) -> str:
    """A path of this host as the caller means it; links on the way are left to the node.

    One that begins with a variable stays as it is: it may be absolute (``--skip-interpolation``).
    """
    if source.startswith("$"):
        return source
    return os.path.normpath(os.path.join(os.path.abspath(directory), os.path.expanduser(source)))


def short_form(item: Cursor) -> dict[str, object]:
    """``[SOURCE:]TARGET[:MODE[,MODE...]]`` in long form."""
    text = item.text()
    parts = text.split(":")
    if not text or len(parts) > 3 or not all(parts):
        raise item.error(f"invalid spec: {text[:100]}: want [SOURCE:]TARGET[:MODE]")
    made: dict[str, object] = {"type": "volume", "target": parts[-1]}
    if len(parts) > 1 and not parts[-1].startswith("/"):
        modes = parts.pop().split(",")
        propagation = [mode for mode in modes if mode in PROPAGATIONS]
        for mode in modes:
            if mode not in (*PROPAGATIONS, "ro", "rw", "nocopy", "z", "Z", "cached", "delegated", "consistent"):
                raise item.error(f"invalid spec: {text[:100]}: unknown mode {mode[:40]!r}")
        made = {"type": "volume", "target": parts[-1], "read_only": "ro" in modes}
        if "nocopy" in modes:
            made["volume"] = {"nocopy": True}
        if propagation:
            made["bind"] = {"propagation": propagation[-1]}
    if len(parts) > 2:
        raise item.error(f"invalid spec: {text[:100]}: unknown mode {parts[-1][:40]!r}")
    if len(parts) == 2:
        made["source"] = parts[0]
        if parts[0].startswith(("/", ".", "~")):
            made["type"] = "bind"
            made.pop("volume", None)
    return made
