"""The container engine: create, start, stop, remove, inspect, logs, exec and attach of containers on this host.

It knows nothing of clusters or HTTP. The HTTP layer and the worker's agent call the same methods; both map the
exceptions of ``runtime.errors``. All methods run on one event loop; whatever blocks happens in threads.

``ref`` is always a full ID, an exact name (with or without the leading slash) or a unique ID prefix, tried in this
order; ``ContainerNotFoundError`` or ``InvalidParameterError`` (ambiguous prefix) otherwise.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import datetime as dt
import shutil
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import structlog

from base.files import read_text
from runtime.containers import capabilities, cgroups, conmon, links, logs, prune, spec, stats, update, views
from runtime.containers.announcements import announce
from runtime.containers.apparmor import AppArmor
from runtime.containers.attach import AttachStream
from runtime.containers.bundle import BundleBuilder
from runtime.containers.container import Container
from runtime.containers.creator import Creator
from runtime.containers.lifecycle import Lifecycle
from runtime.containers.limits import Capacity
from runtime.containers.prune import ContainerPruneReport
from runtime.containers.runc import Runc
from runtime.containers.spec import HostFacts
from runtime.containers.states import Status
from runtime.containers.stats import Sample
from runtime.containers.stdio import Stdio
from runtime.containers.store import ContainerStore
from runtime.containers.usage import list_processes
from runtime.disk_usage import DiskUsage, disk_usage, disk_warnings
from runtime.errors import ConflictError, InvalidParameterError, NotFoundError, NotRunningError
from runtime.events import EventBus
from runtime.images import ImageNotFoundError, ImageStore
from runtime.kernel.linux_network import LinuxNetwork
from runtime.kernel.syscalls import Watcher, supports_mount_setattr
from runtime.network_types import NetworkCreateRequest
from runtime.networks import Driver, Networks, predefined
from runtime.networks.pools import parse_default_pools
from runtime.resolver.manager import ResolverProcess
from runtime.types import (
    LOG_DRIVERS,
    ContainerConfig,
    ContainerJSON,
    ContainerSummary,
    EndpointSettings,
    ExecConfig,
    ExecInspect,
    HostConfig,
    LogLine,
    NetworkingConfig,
    WaitResult,
)
from runtime.volumes import Volumes

log = structlog.get_logger(__name__)

WaitCondition = Literal["not-running", "next-exit", "removed"]
Filters = Mapping[str, Sequence[str]]
MACHINE_ID = Path("/etc/machine-id")
INIT_PATHS = ("/usr/bin/tini-static", "/usr/bin/tini")


class Engine:
    """The engine of one daemon, made on its event loop.

    ``open()`` before anything else; ``close()`` never touches a running container.

    Args:
        state: folder for what survives a reboot (images, container records, logs, volumes).
        run: folder for what does not (bundles, runc state, sockets, exit files); short, on a tmpfs.
        cgroup_parent: cgroup under which each container gets its own, such as "/swarm"; the same in each hierarchy.
        bridge: device name of the default bridge network.
        bridge_subnet: its subnet in CIDR form; the next free private one is taken when the host uses it already.
        default_address_pools: where subnets come from that nobody asked for; see ``pools.parse_default_pools``.
        insecure_registries, mirrors: see ``ImageStore``.
        network_drivers: besides those of bridge, host and none.
        ways_out: see ``Networks``.
    """

    def __init__(
        self,
        *,
        state: Path,
        run: Path,
        cgroup_parent: str,
        bridge: str = "swarm0",
        bridge_subnet: str = "172.17.0.0/16",
        default_address_pools: Sequence[str] = (),
        insecure_registries: Sequence[str] = (),
        mirrors: Sequence[str] = (),
        network_drivers: Sequence[Driver] = (),
        ways_out: Mapping[str, NetworkCreateRequest] | None = None,
    ) -> None:
        layout = cgroups.detect()
        parent = cgroups.resolve_parent(layout, cgroup_parent)
        self._facts = HostFacts(
            cgroup_version=layout.version,
            capabilities=tuple(capabilities.available_capabilities()),
            init_path=next((path for path in INIT_PATHS if Path(path).exists()), ""),
            capacity=cgroups.capacity(layout, parent),
            recursive_read_only=supports_mount_setattr(),
        )
        self._state, self._layout, self._parent = state, layout, parent
        self._apparmor = apparmor = AppArmor()
        self._paths = paths = conmon.Paths(run)
        self.events = events = EventBus()
        self._store = store = ContainerStore(state / "containers", unsaved=paths.run / "unsaved")
        self.images = images = ImageStore(
            state / "images",
            events=events,
            insecure_registries=insecure_registries,
            mirrors=mirrors,
            users=store.users_of_image,
        )
        self.volumes = volumes = Volumes(state / "volumes", events, users=store.users_of_volume)
        kernel = LinuxNetwork()
        seed = f"{read_text(MACHINE_ID) or ''}{state.resolve()}"
        subnets = parse_default_pools(default_address_pools, seed=seed)
        self.networks = networks = Networks(
            state,
            drivers=[*predefined.drivers(kernel, run, engine=bridge, defaults=subnets), *network_drivers],
            predefined=predefined.networks(bridge=bridge, subnet=bridge_subnet),
            kernel=kernel,
            events=events,
            name_of=store.name_of,
            ways_out=ways_out,
        )
        self.resolver = ResolverProcess(paths.run / "resolver")
        self._runc = runc = Runc(paths=paths, layout=layout, cgroup_parent=parent)
        self._watcher = Watcher()
        self._stdio = Stdio(store=store, paths=paths, watcher=self._watcher)
        self._creator = Creator(
            store=store,
            images=images,
            volumes=volumes,
            events=events,
            facts=self._facts,
            apparmor=apparmor,
            networks=networks,
        )
        self._lifecycle = Lifecycle(
            store=store,
            runc=runc,
            images=images,
            networks=networks,
            resolver=self.resolver,
            volumes=volumes,
            bundles=BundleBuilder(
                volumes=volumes,
                facts=self._facts,
                cgroup_parent=parent,
                paths=paths,
                apparmor=apparmor,
                lookup=store.get,
                find=store.find,
            ),
            events=events,
            capabilities=self._facts.capabilities,
        )

    async def open(self) -> None:
        """Re-adopt running containers (same PIDs), notice those that ended meanwhile, clean what is left over."""
        self._paths.prepare()
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._state.chmod(0o700)  # an earlier version let the host's users through
        await asyncio.to_thread(shutil.rmtree, self._paths.run / "execs", ignore_errors=True)
        await asyncio.to_thread(cgroups.prepare_parent, self._layout, self._parent)
        await self.images.open()
        await self.volumes.open()
        await self.networks.open()
        await self._store.open()
        await self._lifecycle.open(self._watcher)
        self._stdio.open()
        log.info("engine.opened", containers=len(self._store), cgroup_version=self._layout.version)

    async def close(self) -> None:
        """Let go of everything; containers run on."""
        await self._stdio.close()
        await self._creator.close()
        await self._lifecycle.close()
        self._watcher.close()
        await self._store.close()
        await self.volumes.close()
        await self.networks.close()
        await self.resolver.close()
        await self.images.close()
        self.events.close()

    async def create(
        self,
        config: ContainerConfig,
        host: HostConfig | None = None,
        networking: NetworkingConfig | None = None,
        name: str | None = None,
    ) -> tuple[str, builtins.list[str]]:
        """Make a container from a local image, without starting it.

        Returns:
            The 64-digit ID and warnings for the user.

        Raises:
            ImageNotFoundError: no local image of that name (pull it first).
            InvalidParameterError, NameConflictError, NetworkNotFoundError.
        """
        return await self._creator.create(config, host or HostConfig(), networking, name)

    async def start(self, ref: str) -> None:
        """Start a created or exited container; returns once its process runs.

        Raises:
            NotModifiedError: it runs already.
            StartError: the runtime refused; also recorded in ``State.Error``.
        """
        await self._lifecycle.starting.start(self._store.get(ref))

    async def stop(self, ref: str, timeout_s: float | None = None, signal: str | None = None) -> None:
        """Send the stop signal, SIGKILL after ``timeout_s`` (default: the container's, else 10; negative: never).

        Returns once the container ended. Cancels a pending restart. Raises NotModifiedError when not running.
        """
        await self._lifecycle.stopping.stop(self._store.get(ref), timeout_s, signal)

    async def kill(self, ref: str, signal: str = "SIGKILL") -> None:
        """Send a signal ("SIGHUP", "HUP" or "1") to the container's init. Raises ConflictError when not running."""
        await self._lifecycle.stopping.kill(self._store.get(ref), signal, ref=ref)

    async def restart(self, ref: str, timeout_s: float | None = None, signal: str | None = None) -> None:
        """Stop when running, then start."""
        container = self._store.get(ref)
        if container.running:
            await self.stop(container.id, timeout_s, signal)
        await self._lifecycle.starting.start(container)
        announce(self.events, container, "restart")

    async def update(self, ref: str, wanted: HostConfig) -> None:
        """Change limits and restart policy, of a running container at once; see ``update.merged`` for what counts.

        Raises:
            InvalidParameterError, ConflictError: as ``merged``.
            HostError: the kernel refused; nothing is changed then.
        """
        container = self._store.get(ref)
        async with container.lock:
            host = update.merged(container.record.HostConfig, wanted, self._facts)
            if container.running:
                await self._runc.apply_limits(container.id, spec.resources(host, self._facts))
            await self._store.update(container, host)
        announce(self.events, container, "update")

    async def pause(self, ref: str) -> None:
        """Freeze all processes. Raises ConflictError when not running or already paused."""
        await self._lifecycle.stopping.pause(self._store.get(ref))

    async def unpause(self, ref: str) -> None:
        """Thaw. Raises ConflictError when not paused."""
        await self._lifecycle.stopping.unpause(self._store.get(ref))

    async def wait(self, ref: str, condition: WaitCondition = "not-running") -> WaitResult:
        """Block until the condition holds: not running (now counts), the next exit, or removed."""
        container = self._store.get(ref)
        running = container.running or container.state.Status is Status.RESTARTING
        if condition == "not-running" and not running:
            return WaitResult(StatusCode=container.state.ExitCode, Error=container.state.Error)
        return await container.wait("removed" if condition == "removed" else "exit")

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove the container, its layer, logs and, with ``volumes``, its anonymous volumes.

        Raises:
            ConflictError: it is running and ``force`` is not set, or it is being removed already.
        """
        await self._lifecycle.removal.remove(self._store.get(ref), force=force, volumes=volumes)

    async def unlink(self, ref: str) -> None:
        """Remove a legacy link by its name, ``PARENT/ALIAS``. Raises ConflictError, ContainerNotFoundError."""
        name, _, alias = ref.removeprefix("/").partition("/")
        if not alias:
            raise ConflictError("Conflict, cannot remove the default link name of the container")
        parent = self._store.get(name)
        child = self._store.get(ref)
        async with parent.lock:
            await self._store.unlink(parent, alias)
        if parent.running:
            links.rewrite(parent, links.as_linked(alias, child, None))

    async def rename(self, ref: str, name: str) -> None:
        """Give the container another name. Raises NameConflictError, InvalidParameterError."""
        if not name.strip("/"):
            raise InvalidParameterError("Neither old nor new names may be empty")
        container = self._store.get(ref)
        old = container.record.Name
        if name.removeprefix("/") == old:
            raise InvalidParameterError("Renaming a container with the same name as its current name")
        await self._store.rename(container, name.removeprefix("/"))
        async with container.lock:
            if container.running:
                await self._lifecycle.naming.tell_again(container)
        announce(self.events, container, "rename", oldName=f"/{old}")

    async def connect(self, network: str, ref: str, settings: EndpointSettings | None = None) -> None:
        """Put a container on one network more, by name or ID, at once when it runs, else from its next start on.

        Raises:
            NetworkNotFoundError, InvalidParameterError (its mode or its other networks forbid it).
            ForbiddenError: it runs and is on it already; AddressInUseError.
            UnavailableError, HostError: it could not be attached; it is not on it then.
        """
        await self._lifecycle.connect(self._store.get(ref), network, settings or EndpointSettings())

    async def disconnect(self, network: str, ref: str, *, force: bool = False) -> None:
        """Take a container off a network. ``force`` does so, too, when the network is not there any more.

        Raises:
            NetworkNotFoundError, NotConnectedError.
            InvalidParameterError: it runs in the host's network.
            HostError: it is on it still.
        """
        await self._lifecycle.disconnect(self._store.get(ref), network, force=force)

    def inspect(self, ref: str) -> ContainerJSON:
        """Everything about one container; the structure is a copy."""
        container = self._store.get(ref)
        host = container.record.HostConfig
        wanted = spec.wanted_apparmor(host.SecurityOpt or ())
        profile = self._apparmor.shown(wanted, privileged=host.Privileged)
        shown = links.shown(container, self._store.find)
        return views.inspect(container, network_id=self.networks.id_of, links=shown, apparmor=profile)

    def list(
        self,
        filters: Filters | None = None,
        *,
        all: bool = False,  # noqa: A002 - the API's word
        limit: int = 0,
    ) -> builtins.list[ContainerSummary]:
        """Summaries, newest first; only running ones unless ``all``, ``limit`` or a status filter says otherwise.

        Filters: ancestor, before, exited, expose, health, id, is-task, label, name, network, publish, since, status,
        volume. Raises InvalidParameterError for another.
        """
        chosen = views.ContainerFilter(filters or {}, lookup=self._store.get, image_id=self._image_id)
        everything = all or limit > 0 or chosen.wants_stopped
        now = dt.datetime.now(dt.UTC)
        found = [item for item in self._store if (everything or item.running) and chosen.takes(item)]
        found.sort(key=lambda item: item.record.CreatedNs, reverse=True)
        shown = found[:limit] if limit > 0 else found
        return [
            views.summary(item, network_id=self.networks.id_of, now=now, aliases=self._link_names(item))
            for item in shown
        ]

    def _link_names(self, container: Container) -> builtins.list[str]:
        return [f"/{parent.record.Name}/{alias}" for parent, alias in self._store.linking_to(container.id)]

    def logs(
        self,
        ref: str,
        *,
        stdout: bool = True,
        stderr: bool = True,
        follow: bool = False,
        since_ns: int = 0,
        until_ns: int = 0,
        tail: int = -1,
    ) -> AsyncIterator[LogLine]:
        """The container's output in order, rotated files included; ``tail`` -1 is all; 0 times are unbounded.

        With ``follow`` it goes on until the container ends (``until_ns`` ends it too). Raises ConflictError when the
        log driver keeps no readable log.
        """
        selection = logs.Selection(stdout, stderr, since_ns, until_ns, tail)
        return self._stdio.read_log(self._store.get(ref), selection, follow=follow)

    async def attach(
        self, ref: str, *, stdin: bool = False, stdout: bool = True, stderr: bool = True, logs: bool = False
    ) -> AttachStream:
        """A duplex stream to the container's stdio. May be called before ``start`` and then sees everything."""
        container = self._store.get(ref)
        return await self._stdio.attach(container, stdin=stdin, stdout=stdout, stderr=stderr, with_log=logs)

    def detached(self, ref: str) -> None:
        """Tell that a client left a container by the detach keys, which only who reads its input sees."""
        announce(self.events, self._store.get(ref), "detach")

    async def resize(self, ref: str, *, height: int, width: int) -> None:
        """Set the terminal size of a container with a TTY."""
        await self._stdio.resize(self._store.get(ref), height, width)

    async def exec_create(self, ref: str, config: ExecConfig) -> str:
        """Prepare a process in a running container; returns the exec ID."""
        return self._lifecycle.execs.create(ref, config)

    async def exec_start(self, exec_id: str, *, detach: bool = False) -> AttachStream | None:
        """Start it; the stream to its stdio unless detached."""
        return await self._lifecycle.execs.start(exec_id, detach=detach)

    async def exec_resize(self, exec_id: str, *, height: int, width: int) -> None:
        """Set the terminal size of an exec with a TTY."""
        await self._lifecycle.execs.resize(exec_id, height, width)

    def exec_inspect(self, exec_id: str) -> ExecInspect:
        """State of an exec."""
        return self._lifecycle.execs.inspect(exec_id)

    def exec_detached(self, exec_id: str) -> None:
        """Tell that a client left an exec by the detach keys."""
        found = self._lifecycle.execs.inspect(exec_id)
        self.events.publish("container", "exec_detach", found.ContainerID, {"execID": found.ID})

    def warnings(self) -> builtins.list[str]:
        """What the host has no room for, or does not confine containers by, for people; [] when all is well."""
        found = [*disk_warnings(self._state), *self._apparmor.warnings]
        for count, reason in (self._store.records.unsaved, self.images.unsaved, self.networks.unsaved):
            if count:
                found.append(f"WARNING: {count} records of the engine are not saved yet: {reason}")
        if (damaged := self.images.set_aside) is not None:
            found.append(
                f"WARNING: {damaged} could not be read: the images it named are not listed, and their layers stay. Put a "
                "mended one in the place of images.json and restart the daemon, or remove it and let images be pulled again"
            )
        return found

    def drivers(self) -> dict[str, builtins.list[str]]:
        """Names of what it has, by kind: Log, Network, Volume."""
        return {"Log": [*LOG_DRIVERS], "Network": self.networks.driver_names(), "Volume": ["local"]}

    @property
    def capacity(self) -> Capacity:
        """What containers can be limited to here."""
        return self._facts.capacity

    def security_options(self) -> builtins.list[str]:
        """What confines containers here, in the words of /info."""
        apparmor = ["name=apparmor"] if self._apparmor.confines else []
        return [*apparmor, "name=seccomp,profile=builtin"]

    # ---- what it uses ----------------------------------------------------------------------------------------------

    def stats(self, ref: str) -> AsyncIterator[Sample]:
        """A sample a second until the container is removed; a container that does not run uses nothing."""
        container_id = self._store.get(ref).id
        return stats.samples(lambda: self.inspect(container_id), self._layout)

    async def stats_once(self, ref: str, *, at_once: bool) -> Sample:
        """One sample: the second of two, or the first ``at_once``, which says nothing of the CPU in use."""
        container_id = self._store.get(ref).id
        return await stats.one_sample(lambda: self.inspect(container_id), self._layout, at_once=at_once)

    async def top(self, ref: str, ps_args: str) -> tuple[builtins.list[str], builtins.list[builtins.list[str]]]:
        """Titles and rows of ps for the container's processes. Raises ConflictError when it does not run."""
        container = self._store.get(ref)
        if not container.running:
            raise NotRunningError(container.id)
        return await asyncio.to_thread(list_processes, container.state.Pid, self._layout, ps_args)

    async def disk_usage(self, kinds: Collection[str]) -> DiskUsage:
        """What the kinds (container, image, volume) take on the disk; for another kind nothing."""
        return await disk_usage(kinds, images=self.images, volumes=self.volumes, containers=self.list(all=True))

    async def prune(self, filters: Filters) -> ContainerPruneReport:
        """Remove containers that do not run. Filters: label, label!, until. Raises InvalidParameterError."""
        wanted = prune.choose(self.list(prune.query(filters), all=True), filters, now_s=time.time())
        report = ContainerPruneReport()
        for container_id in wanted:
            size_bytes = await self.images.rootfs_size(container_id)
            with contextlib.suppress(ConflictError, NotFoundError):  # started or removed meanwhile: not ours any more
                await self.remove(container_id)
                report.ContainersDeleted.append(container_id)
                report.SpaceReclaimed += size_bytes
        return report

    # ---- behind the methods ----------------------------------------------------------------------------------------

    def _image_id(self, name: str) -> str:
        try:
            return self.images.get(name).id
        except ImageNotFoundError:
            return ""
