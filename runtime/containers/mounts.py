"""What is mounted where: the requests of a create call as one list (pure), and that list in OCI form."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from typing import Any  # Any: a value of the OCI spec's JSON

import msgspec

from runtime.errors import InvalidParameterError
from runtime.types import ContainerConfig, HostConfig, Mount, MountPoint

_PROPAGATIONS = {"private", "rprivate", "shared", "rshared", "slave", "rslave"}
_MODES = {"ro", "rw", "z", "Z", "nocopy", "cached", "delegated", "consistent", "ro,z", "volume-nocopy", "rbind", "bind"}


class MountRequest(msgspec.Struct, frozen=True):
    """One wanted mount. ``kind`` is bind, volume or tmpfs; ``source`` a host path, a volume name or "" (anonymous).

    ``options`` are mount(8) options of a tmpfs; ``create_source`` makes a missing host folder, as ``-v`` does;
    ``subpath`` is a folder inside the volume; ``driver_options`` are of a volume that is made for it.
    ``submounts`` says of a read-only one what is mounted below it: "writable", "readonly" (or the start fails), or ""
    (read-only where the host can do that).
    """

    kind: str
    source: str
    target: str
    read_only: bool = False
    mode: str = ""
    propagation: str = ""
    copy: bool = True
    create_source: bool = False
    recursive: bool = True
    options: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    driver: str = ""
    subpath: str = ""
    driver_options: tuple[tuple[str, str], ...] = ()
    submounts: str = ""


def plan(config: ContainerConfig, host: HostConfig, inherited: Iterable[MountRequest] = ()) -> list[MountRequest]:
    """Everything to be mounted, by target, parents before children.

    ``inherited`` are the mounts of ``VolumesFrom``; Binds and Mounts replace them, and both replace the image's
    anonymous volumes at the same place. Raises InvalidParameterError, also for two explicit mounts of one target.
    """
    found: dict[str, MountRequest] = {}
    for target in config.Volumes or ():
        found[_target(target)] = MountRequest("volume", "", _target(target))
    found |= {request.target: request for request in inherited}
    explicit: set[str] = set()
    requests = [parse_bind(bind) for bind in host.Binds or ()]
    requests += [from_mount(mount) for mount in host.Mounts or ()]
    requests += [
        MountRequest("tmpfs", "", _target(target), options=tuple(filter(None, options.split(","))))
        for target, options in (host.Tmpfs or {}).items()
    ]
    for request in requests:
        if request.target in explicit:
            raise InvalidParameterError(f"Duplicate mount point: {request.target}")
        explicit.add(request.target)
        found[request.target] = request
    return sorted(found.values(), key=lambda request: request.target.count("/") if request.target != "/" else 0)


def parse_bind(text: str) -> MountRequest:
    """``[SOURCE:]TARGET[:OPTION,...]`` of ``-v``. Raises InvalidParameterError with dockerd's text."""
    parts = text.split(":")
    if len(parts) == 1:
        return MountRequest("volume", "", _target(parts[0]))
    if len(parts) > 3 or not parts[0] or not parts[1]:
        raise InvalidParameterError(f"invalid volume specification: '{text}'")
    options = [option for option in (parts[2] if len(parts) == 3 else "").split(",") if option]
    propagation = next((option for option in options if option in _PROPAGATIONS), "")
    for option in options:
        if option not in _MODES and option not in _PROPAGATIONS:
            raise InvalidParameterError(f"invalid mode: {','.join(options)}")
    is_path = parts[0].startswith("/")
    if not is_path and ("/" in parts[0] or parts[0].startswith((".", "~"))):
        raise InvalidParameterError(
            f'create {parts[0]}: "{parts[0]}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
        )
    return MountRequest(
        "bind" if is_path else "volume",
        posixpath.normpath(parts[0]) if is_path else parts[0],
        _target(parts[1]),
        read_only="ro" in options,
        mode=",".join(options),
        propagation=propagation or ("rprivate" if is_path else ""),
        copy="nocopy" not in options,
        create_source=is_path,
    )


def from_mount(mount: Mount) -> MountRequest:
    """A request from ``HostConfig.Mounts``. Raises InvalidParameterError."""
    target = _target(mount.Target)
    if mount.Type == "bind":
        options = mount.BindOptions
        if not mount.Source.startswith("/"):
            raise InvalidParameterError(f'invalid mount config for type "bind": invalid mount path: \'{mount.Source}\' mount path must be absolute')  # fmt: skip
        if options and options.Propagation and options.Propagation not in _PROPAGATIONS:
            raise InvalidParameterError(f"invalid propagation mode: {options.Propagation}")
        writable, forced = (options.ReadOnlyNonRecursive, options.ReadOnlyForceRecursive) if options else (False, False)
        if writable and forced:
            raise InvalidParameterError("mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive")
        return MountRequest(
            "bind",
            posixpath.normpath(mount.Source),
            target,
            mount.ReadOnly,
            propagation=(options.Propagation if options else "") or "rprivate",
            create_source=bool(options and options.CreateMountpoint),
            recursive=not (options and options.NonRecursive),
            submounts="writable" if writable else "readonly" if forced else "",
        )
    if mount.Type == "volume":
        volume = mount.VolumeOptions
        driver = volume.DriverConfig if volume else None
        labels = tuple(sorted((volume.Labels or {}).items())) if volume else ()
        subpath = volume.Subpath if volume else ""
        if subpath and (subpath.startswith("/") or ".." in subpath.split("/")):
            raise InvalidParameterError(f'invalid mount config for type "volume": invalid subpath {subpath}')
        copy = not (volume and volume.NoCopy)
        return MountRequest(
            "volume",
            mount.Source,
            target,
            mount.ReadOnly,
            copy=copy,
            labels=labels,
            driver=driver.Name if driver else "",
            subpath=subpath,
            driver_options=tuple(sorted((driver.Options or {}).items())) if driver else (),
        )
    if mount.Type == "tmpfs":
        if mount.Source:
            raise InvalidParameterError('invalid mount config for type "tmpfs": field Source must not be specified')
        return MountRequest("tmpfs", "", target, mount.ReadOnly, options=_tmpfs_options(mount))
    raise InvalidParameterError(f"mount type unknown: {mount.Type!r}")


def _tmpfs_options(mount: Mount) -> tuple[str, ...]:
    options = mount.TmpfsOptions
    if options is None:
        return ()
    result = [f"size={options.SizeBytes}"] if options.SizeBytes else []
    if options.Mode:
        result.append(f"mode={options.Mode:o}")
    return (*result, *("=".join(pair) for pair in options.Options or ()))


def _target(text: str) -> str:
    if not text.startswith("/"):
        raise InvalidParameterError(f"invalid mount path: '{text}' mount path must be absolute")
    target = posixpath.normpath("/" + text.lstrip("/"))
    if target == "/":
        raise InvalidParameterError("invalid specification: destination can't be '/'")
    return target


def mount_point(request: MountRequest, *, source: str, name: str = "") -> MountPoint:
    """What inspect shows, once the source on the host is known."""
    volume = request.kind == "volume"
    return MountPoint(
        Type=request.kind,
        Name=name,
        Source=source,
        Destination=request.target,
        Driver="local" if volume else "",
        Mode=request.mode or ("z" if volume else ""),
        RW=not request.read_only,
        Propagation=request.propagation,
    )


def to_oci(request: MountRequest, source: str, *, recursive_read_only: bool) -> dict[str, Any]:
    """The OCI mount of one request; ``source`` is the path on the host.

    Args:
        recursive_read_only: whether the host can make what is mounted below read-only too.

    Raises:
        InvalidParameterError: it cannot, and that was asked for.
    """
    access = "ro" if request.read_only else "rw"
    if request.kind == "tmpfs":
        own = [option for option in request.options if option not in ("rw", "ro")]
        read_only = request.read_only or "ro" in request.options
        options = ["noexec", "nosuid", "nodev", "rprivate", "ro" if read_only else "rw"]
        for positive in ("exec", "suid", "dev"):
            if positive in own:
                options.remove(f"no{positive}")
        return {
            "destination": request.target,
            "type": "tmpfs",
            "source": "tmpfs",
            "options": list(dict.fromkeys([*options, *own])),
        }
    bind = "rbind" if request.recursive else "bind"
    options = [bind, access, request.propagation or "rprivate"]
    if request.read_only and request.submounts != "writable":
        if recursive_read_only:
            options.append("rro")  # beside "ro", which a runc that does not know it would leave out
        elif request.submounts == "readonly":
            raise InvalidParameterError("a read-only bind cannot be made so recursively here: that needs Linux 5.12")
    return {"destination": request.target, "type": "bind", "source": source, "options": options}


def default_mounts(shm_size_bytes: int, *, cgroup_version: int, privileged: bool) -> list[dict[str, Any]]:
    """/proc, /dev, /sys and their like (moby oci/defaults.go)."""
    access = "rw" if privileged else "ro"

    def mount(target: str, kind: str, *options: str) -> dict[str, Any]:
        return {"destination": target, "type": kind, "source": kind, "options": list(options)}

    safe = ("nosuid", "noexec", "nodev")
    # Version 1 needs the private cgroup namespace's view, which runc makes from type "cgroup" in both layouts.
    return [
        mount("/proc", "proc", *safe),
        mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        mount("/sys", "sysfs", *safe, access),
        mount("/sys/fs/cgroup", "cgroup", access, *safe, *(("relatime",) if cgroup_version == 1 else ())),
        mount("/dev/mqueue", "mqueue", *safe),
        mount("/dev/shm", "tmpfs", *safe, "mode=1777", f"size={shm_size_bytes}"),
    ]


def merge(
    defaults: Iterable[Mapping[str, Any]], files: Iterable[Mapping[str, Any]], own: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """All mounts in the order to be made; a user's mount replaces a default of the same target."""
    own = list(own)
    taken = {mount["destination"] for mount in own}
    base = [dict(mount) for mount in (*defaults, *files) if mount["destination"] not in taken]
    return [*base, *(dict(mount) for mount in own)]
