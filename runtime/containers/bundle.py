"""Everything that has to lie ready on the host for one start: files, mounts, devices, and the spec made of them.

Blocks (file system); runs in the engine's thread pool. What it decides is in ``spec``, ``mounts`` and ``files``.
"""

from __future__ import annotations

import errno
import os
import platform
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any  # Any: a value of the OCI spec's JSON

from base.files import make_public_folder, read_text
from runtime.containers import files, links, mounts, spec, users
from runtime.containers.apparmor import AppArmor
from runtime.containers.conmon import CreateRequest, Paths
from runtime.containers.container import Container
from runtime.containers.naming import resolv_conf_of
from runtime.containers.pins import pin
from runtime.errors import ConflictError, HostError, InvalidParameterError
from runtime.kernel import rooted
from runtime.networks import Sandbox
from runtime.types import DeviceMapping
from runtime.volumes.local import Volumes
from runtime.volumes.population import populate


class BundleBuilder:
    """Builds create requests for conmon.

    ``lookup`` finds another container for the ``container:ID`` modes, ``find`` one that is linked to, if it is there.
    """

    def __init__(
        self,
        *,
        volumes: Volumes,
        facts: spec.HostFacts,
        cgroup_parent: str,
        paths: Paths,
        apparmor: AppArmor,
        lookup: Callable[[str], Container],
        find: Callable[[str], Container | None],
    ) -> None:
        self._volumes, self._facts, self._parent = volumes, facts, cgroup_parent
        self._paths, self._apparmor, self._lookup, self._find = paths, apparmor, lookup, find

    def build(self, container: Container, rootfs: Path, sandbox: Sandbox) -> CreateRequest:
        """Raises InvalidParameterError, ConflictError, HostError."""
        record = container.record
        config, host = record.Config, record.HostConfig
        hostname = hostname_of(container)
        security = spec.parse_security(host.SecurityOpt or ())
        profile = self._apparmor.choose(security.apparmor, privileged=host.Privileged)
        own = [self._mount(request, rootfs, record.ID) for request in record.Requests]
        children = links.linked(container, self._find)
        folder = self._files(container, hostname, sandbox, children)
        document = spec.build(
            spec.SpecInput(
                container_id=record.ID,
                rootfs=str(rootfs),
                cgroup_path=f"{self._parent.rstrip('/')}/{record.ID}",
                hostname=hostname,
                config=config,
                host=host,
                user=users.look_up(rootfs, config.User, host.GroupAdd or ()),
                mounts=own,
                files=files.oci_mounts(folder, [mount["destination"] for mount in own]),
                namespaces=self._namespaces(container),
                devices=devices(host.Devices or (), privileged=host.Privileged),
                facts=self._facts,
                apparmor=profile,
                sockets_hidden=self._apparmor.hides_sockets(profile),
                linked_env=[item for each in children for item in links.environment(record.Name, each)],
            )
        )
        return CreateRequest(
            container_id=record.ID,
            name=record.Name,
            spec=document,
            log_path=container.log_path,
            log_driver="none" if host.LogConfig.Type == "none" else "k8s-file",
            tty=config.Tty,
            open_stdin=config.OpenStdin,
            stdin_once=config.StdinOnce,
        )

    def _mount(self, request: mounts.MountRequest, rootfs: Path, container_id: str) -> dict[str, Any]:
        if request.kind == "tmpfs":
            return self._oci(request, "tmpfs")
        source = Path(request.source)
        if request.kind == "volume":
            source = self._volumes.hold(request.source, container_id)
            if request.subpath:
                source = self._subpath(source, request.subpath, container_id)
            elif request.copy:
                populate(source, rootfs, request.target)
        elif not source.exists():
            if not request.create_source:
                raise InvalidParameterError(
                    f'invalid mount config for type "bind": bind source path does not exist: {source}'
                )
            make_public_folder(source)
        return self._oci(request, str(source))

    def _oci(self, request: mounts.MountRequest, source: str) -> dict[str, Any]:
        return mounts.to_oci(request, source, recursive_read_only=self._facts.recursive_read_only)

    def _subpath(self, volume: Path, subpath: str, container_id: str) -> Path:
        """A pin of what is there now: another container with the volume could put a link in its place."""
        root = rooted.open_root(volume)
        try:
            found = rooted.open_beneath(root, subpath)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise InvalidParameterError(
                    f"path concatenation escapes the base directory, base: {volume}, subpath: {subpath}"
                ) from error
            reason = (error.strerror or "").lower()
            raise InvalidParameterError(f"cannot access path {volume / subpath}: {reason}") from error
        finally:
            os.close(root)
        try:
            return pin(self._paths.pins(container_id), found)
        finally:
            os.close(found)

    def _files(self, container: Container, hostname: str, sandbox: Sandbox, children: Sequence[links.Linked]) -> Path:
        host, folder = container.record.HostConfig, container.folder
        if host.NetworkMode.startswith("container:"):
            return self._lookup(host.NetworkMode.removeprefix("container:")).folder
        if host.NetworkMode == "host":
            hosts = (read_text(Path("/etc/hosts")) or "") + files.extra_lines(host.ExtraHosts or (), "")
        else:
            hosts = files.hosts_text(
                host.ExtraHosts or (),
                addresses=[*sandbox.addresses(container.record.networks())],
                names=names_in_hosts(container),
                gateway=sandbox.default_gateway(),
            ) + links.hosts_lines(children)
        try:
            for name, text in (
                ("hosts", hosts),
                ("hostname", hostname + "\n"),
                ("resolv.conf", resolv_conf_of(host, sandbox.endpoints).text),
            ):
                # Written in place: these are bind mounted into containers that may still hold the old inode.
                (folder / name).write_text(text)
                (folder / name).chmod(0o644)
        except OSError as error:
            raise HostError(f"cannot write the files of container {container.id[:12]}: {error}") from error
        return folder

    def _namespaces(self, container: Container) -> dict[str, str | None]:
        host = container.record.HostConfig
        result: dict[str, str | None] = {}
        for kind, mode, name in (
            ("network", host.NetworkMode, "net"),
            ("pid", host.PidMode, "pid"),
            ("ipc", host.IpcMode, "ipc"),
        ):
            if mode == "host" and not (kind == "network" and container.record.Config.NetworkDisabled):
                result[kind] = None
            elif mode.startswith("container:"):
                other = self._lookup(mode.removeprefix("container:"))
                if not other.running:
                    raise ConflictError(f"cannot join {kind} of a non running container: {other.id}")
                result[kind] = f"/proc/{other.state.Pid}/ns/{name}"
        return result


def hostname_of(container: Container) -> str:
    """Its own, the host's in host mode, else the first twelve digits of the ID."""
    record = container.record
    if record.Config.Hostname:
        return record.Config.Hostname
    if record.HostConfig.NetworkMode == "host" or record.HostConfig.UTSMode == "host":
        return platform.node()
    return record.ID[:12]


def names_in_hosts(container: Container) -> list[str]:
    """What its addresses are called in its own /etc/hosts."""
    hostname, domain = hostname_of(container), container.record.Config.Domainname
    return [f"{hostname}.{domain}", hostname] if domain else [hostname]


def devices(wanted: Sequence[DeviceMapping], *, privileged: bool) -> list[dict[str, Any]]:
    """OCI devices with an extra key ``access``; a folder stands for all device nodes below it.

    A privileged container gets every device of the host but terminals and the runtime's own. Raises
    InvalidParameterError.
    """
    found = []
    if privileged:
        for folder, folders, names in os.walk("/dev"):
            folders[:] = [name for name in folders if name not in ("pts", "shm", "fd", "mqueue", ".lxc", ".udev")]
            found += [(path, path, "rwm") for name in names if name != "console" and (path := f"{folder}/{name}")]
    for device in wanted:
        access = device.CgroupPermissions or "rwm"
        if not device.PathOnHost or set(access) - set("rwm"):
            raise InvalidParameterError(f"invalid device: {device.PathOnHost}:{device.PathInContainer}:{access}")
        target = device.PathInContainer or device.PathOnHost
        if Path(device.PathOnHost).is_dir():
            for folder, _, names in os.walk(device.PathOnHost):
                found += [
                    (f"{folder}/{n}", f"{folder}/{n}".replace(device.PathOnHost, target, 1), access) for n in names
                ]
        else:
            found.append((device.PathOnHost, target, access))
    result = []
    for source, target, access in found:
        entry = _device(source, target, access)
        if entry is not None:
            result.append(entry)
        elif not privileged:
            raise InvalidParameterError(
                f'error gathering device information while adding custom device "{source}": no such file or directory'
            )
    return result


def _device(source: str, target: str, access: str) -> dict[str, Any] | None:
    try:
        status = Path(source).stat()
    except OSError:
        return None
    if stat.S_ISCHR(status.st_mode):
        kind = "c"
    elif stat.S_ISBLK(status.st_mode):
        kind = "b"
    else:
        return None
    return {
        "path": target,
        "type": kind,
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "access": access,
    }
