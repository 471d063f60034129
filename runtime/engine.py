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
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import structlog

from base.tasks import cancel_and_wait
from runtime.containers import attach, capabilities, cgroups, conmon, prune, signals, spec, stats, update, views
from runtime.containers import logs as container_logs
from runtime.containers.attach import AttachStream
from runtime.containers.bundle import BundleBuilder
from runtime.containers.creator import Creator
from runtime.containers.exec_manager import ExecManager
from runtime.containers.lifecycle import Lifecycle, event_attributes
from runtime.containers.prune import ContainerPruneReport
from runtime.containers.readoption import Readoption
from runtime.containers.record import Container
from runtime.containers.spec import HostFacts
from runtime.containers.states import Event, Status
from runtime.containers.stats import Sample
from runtime.containers.store import ContainerStore
from runtime.containers.types import (
    ContainerConfig,
    ContainerJSON,
    ContainerSummary,
    ExecConfig,
    ExecInspect,
    HostConfig,
    LogLine,
    NetworkingConfig,
    WaitResult,
)
from runtime.containers.usage import list_processes
from runtime.disk_usage import DiskUsage, disk_usage
from runtime.errors import ConflictError, InvalidParameterError, NotFoundError
from runtime.events import EventBus
from runtime.images import ContainerUse, ImageNotFoundError, ImageStore
from runtime.kernel.linux_network import LinuxNetwork
from runtime.kernel.syscalls import Watcher
from runtime.networks import Driver, Networks, predefined
from runtime.volumes import Volumes

log = structlog.get_logger(__name__)

WaitCondition = Literal["not-running", "next-exit", "removed"]
Filters = Mapping[str, Sequence[str]]
STOP_TIMEOUT_S = 10.0
LOG_CHECK_PERIOD_S = 5.0
INIT_PATHS = ("/usr/bin/tini-static", "/usr/bin/tini")


class Engine:
    """The engine of one daemon. ``open()`` before anything else; ``close()`` never touches a running container.

    Args:
        state: folder for what survives a reboot (images, container records, logs, volumes).
        run: folder for what does not (bundles, runc state, sockets, exit files); short, on a tmpfs.
        cgroup_parent: cgroup under which each container gets its own, such as "/swarm"; the same in each hierarchy.
        bridge: device name of the default bridge network.
        bridge_subnet: its subnet in CIDR form; the next free private one is taken when the host uses it already.
        insecure_registries, mirrors: see ``ImageStore``.
        network_drivers: besides those of bridge, host and none.
    """

    def __init__(
        self,
        *,
        state: Path,
        run: Path,
        cgroup_parent: str,
        bridge: str = "swarm0",
        bridge_subnet: str = "172.17.0.0/16",
        insecure_registries: Sequence[str] = (),
        mirrors: Sequence[str] = (),
        network_drivers: Sequence[Driver] = (),
    ) -> None:
        self._state, self._paths = state, conmon.Paths(run)
        self._layout = cgroups.detect()
        self._parent = cgroups.resolve_parent(self._layout, cgroup_parent)
        self._facts = HostFacts(
            cgroup_version=self._layout.version,
            capabilities=tuple(capabilities.available_capabilities()),
            swap_limit=cgroups.swap_limit(self._layout),
            init_path=next((path for path in INIT_PATHS if Path(path).exists()), ""),
        )
        self.events = EventBus()
        self.images = ImageStore(
            state / "images", events=self.events, insecure_registries=insecure_registries, mirrors=mirrors
        )
        self.networks = Networks(
            state,
            drivers=[*predefined.drivers(LinuxNetwork()), *network_drivers],
            predefined=predefined.networks(bridge=bridge, subnet=bridge_subnet),
            events=self.events,
            name_of=self._name_of,
        )
        self.volumes = Volumes(state / "volumes", self.events)
        self._store = ContainerStore(state / "containers")
        self._lifecycle: Lifecycle
        self._watcher: Watcher
        self._creator = Creator(
            store=self._store,
            images=self.images,
            volumes=self.volumes,
            events=self.events,
            facts=self._facts,
            resolve_network=self.networks.resolve,
        )
        self._exec: ExecManager
        self._log_turner: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Re-adopt running containers (same PIDs), notice those that ended meanwhile, clean what is left over."""
        self._paths.prepare()
        self._state.mkdir(mode=0o711, parents=True, exist_ok=True)
        await asyncio.to_thread(shutil.rmtree, self._paths.run / "execs", ignore_errors=True)
        await asyncio.to_thread(cgroups.prepare_parent, self._layout, self._parent)
        self.images.users = self._image_users
        self.volumes.users = self._volume_users
        await self.images.open()
        await self.volumes.open()
        await self.networks.open()
        await self._store.open()
        for record in self._store.half_removed():
            await self._creator.remove_anonymous_volumes(record)
            await self._store.discard(record.ID)
        self._watcher = Watcher()
        bundles = BundleBuilder(
            volumes=self.volumes, facts=self._facts, cgroup_parent=self._parent, lookup=self._store.get
        )
        self._lifecycle = Lifecycle(
            store=self._store,
            images=self.images,
            networks=self.networks,
            volumes=self.volumes,
            events=self.events,
            paths=self._paths,
            bundles=bundles,
            layout=self._layout,
            cgroup_parent=self._parent,
        )
        self._lifecycle.on_started = lambda container: self._exec.container_started(container)
        self._lifecycle.on_exited = lambda container: self._exec.container_ended(container)
        self._lifecycle.on_removed = self._removed
        self._exec = ExecManager(
            store=self._store,
            lifecycle=self._lifecycle,
            paths=self._paths,
            events=self.events,
            capabilities=self._facts.capabilities,
        )
        self._lifecycle.open(self._watcher)
        readoption = Readoption(
            store=self._store,
            lifecycle=self._lifecycle,
            images=self.images,
            networks=self.networks,
            volumes=self.volumes,
            paths=self._paths,
            layout=self._layout,
            cgroup_parent=self._parent,
        )
        await readoption.run()
        self._log_turner = asyncio.get_running_loop().create_task(self._turn_logs(), name="engine.logs")
        log.info("engine.opened", containers=len(self._store), cgroup_version=self._layout.version)

    async def close(self) -> None:
        """Let go of everything; containers run on."""
        if self._log_turner is not None:
            await cancel_and_wait(self._log_turner)
        await self._exec.close()
        await self._lifecycle.close()
        self._watcher.close()
        await self.networks.close()
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
        await self._lifecycle.start(self._store.get(ref))

    async def stop(self, ref: str, timeout_s: float | None = None, signal: str | None = None) -> None:
        """Send the stop signal, SIGKILL after ``timeout_s`` (default: the container's, else 10; negative: never).

        Returns once the container ended. Cancels a pending restart. Raises NotModifiedError when not running.
        """
        container = self._store.get(ref)
        config = container.record.Config
        number = signals.parse(signal or config.StopSignal or "SIGTERM")
        if timeout_s is None:
            timeout_s = STOP_TIMEOUT_S if config.StopTimeout is None else float(config.StopTimeout)
        await self._lifecycle.stop(container, number, timeout_s)

    async def kill(self, ref: str, signal: str = "SIGKILL") -> None:
        """Send a signal ("SIGHUP", "HUP" or "1") to the container's init. Raises ConflictError when not running."""
        container = self._store.get(ref)
        number = signals.parse(signal or "SIGKILL")
        if not container.running:
            raise ConflictError(f"cannot kill container: {ref}: container {container.id} is not running")
        if number in (signals.parse("KILL"), signals.parse(container.record.Config.StopSignal or "SIGTERM")):
            container.state.StoppedByUser = True
            self._store.save_state(container)
        if number != signals.parse("KILL"):
            await self._lifecycle.signal(container, number)
            return
        ended = container.wait("exit")
        await self._lifecycle.signal(container, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended, STOP_TIMEOUT_S)

    async def restart(self, ref: str, timeout_s: float | None = None, signal: str | None = None) -> None:
        """Stop when running, then start."""
        container = self._store.get(ref)
        if container.running:
            await self.stop(container.id, timeout_s, signal)
        await self._lifecycle.start(container)
        self._publish(container, "restart")

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
                await self._lifecycle.apply_limits(container, spec.resources(host, self._facts))
            await self._store.update(container, host)
        self._publish(container, "update")

    async def pause(self, ref: str) -> None:
        """Freeze all processes. Raises ConflictError when not running or already paused."""
        container = self._store.get(ref)
        async with container.lock:
            if not container.running:
                raise ConflictError(f"container {container.id} is not running")
            if container.state.Status is Status.PAUSED:
                raise ConflictError(f"container {container.id} is already paused")
            await self._lifecycle.runc(container, "pause")
            container.move(Event.PAUSED)
            self._store.save_state(container)
        self._publish(container, "pause")

    async def unpause(self, ref: str) -> None:
        """Thaw. Raises ConflictError when not paused."""
        container = self._store.get(ref)
        async with container.lock:
            if container.state.Status is not Status.PAUSED:
                raise ConflictError(f"container {container.id} is not paused")
            await self._lifecycle.runc(container, "resume")
            container.move(Event.UNPAUSED)
            self._store.save_state(container)
        self._publish(container, "unpause")

    async def wait(self, ref: str, condition: WaitCondition = "not-running") -> WaitResult:
        """Block until the condition holds: not running (now counts), the next exit, or removed."""
        container = self._store.get(ref)
        if condition not in ("not-running", "next-exit", "removed", ""):
            raise InvalidParameterError(f'invalid condition: "{condition}"')
        running = container.running or container.state.Status is Status.RESTARTING
        if condition in ("not-running", "") and not running:
            return WaitResult(StatusCode=container.state.ExitCode, Error=container.state.Error)
        return await container.wait("removed" if condition == "removed" else "exit")

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove the container, its layer, logs and, with ``volumes``, its anonymous volumes.

        Raises:
            ConflictError: it is running and ``force`` is not set, or it is being removed already.
        """
        container = self._store.get(ref)
        await self._lifecycle.remove(container, force=force, volumes=volumes)

    async def rename(self, ref: str, name: str) -> None:
        """Give the container another name. Raises NameConflictError, InvalidParameterError."""
        container = self._store.get(ref)
        if not name.strip("/"):
            raise InvalidParameterError("Neither old nor new names may be empty")
        old = container.record.Name
        if name.removeprefix("/") == old:
            raise InvalidParameterError("Renaming a container with the same name as its current name")
        await self._store.rename(container, name.removeprefix("/"))
        self._publish(container, "rename", oldName=f"/{old}")

    def inspect(self, ref: str) -> ContainerJSON:
        """Everything about one container; the structure is a copy."""
        container = self._store.get(ref)
        return views.inspect(container, network_id=self.networks.id_of)

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
        return [views.summary(item, network_id=self.networks.id_of, now=now) for item in shown]

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
        container = self._store.get(ref)
        follow = follow and (container.running or container.state.Status is Status.RESTARTING)
        selection = container_logs.Selection(stdout, stderr, since_ns, until_ns, tail)
        return self._read_log(container, selection, follow=follow)

    async def attach(
        self, ref: str, *, stdin: bool = False, stdout: bool = True, stderr: bool = True, logs: bool = False
    ) -> AttachStream:
        """A duplex stream to the container's stdio. May be called before ``start`` and then sees everything."""
        container = self._store.get(ref)
        if container.state.Status is Status.PAUSED:
            raise ConflictError(f"container {container.id} is paused, unpause the container before attach")
        if container.state.Status is Status.RESTARTING:
            raise ConflictError(f"container {container.id} is restarting, wait until the container is running")

        def forget(stream: AttachStream) -> None:
            if stream in container.pending_attaches:
                container.pending_attaches.remove(stream)

        stream = AttachStream(
            stdin=stdin and container.record.Config.OpenStdin, stdout=stdout, stderr=stderr, on_close=forget
        )
        if logs:
            selection = container_logs.Selection(stdout, stderr)
            await stream.precede(self._read_log(container, selection, follow=False))
        if container.running:
            socket_path = self._paths.bundle(container.id) / "attach"
            try:
                stream.connected(await asyncio.to_thread(attach.connect, socket_path))
            except OSError as error:
                raise ConflictError(f"cannot attach to container {container.id[:12]}: {error.strerror}") from None
        else:
            container.pending_attaches.append(stream)
        return stream

    def detached(self, ref: str) -> None:
        """Tell that a client left a container by the detach keys, which only who reads its input sees."""
        self._publish(self._store.get(ref), "detach")

    async def resize(self, ref: str, *, height: int, width: int) -> None:
        """Set the terminal size of a container with a TTY."""
        container = self._store.get(ref)
        if not container.running:
            raise ConflictError(f"container {container.id} is not running")
        await asyncio.to_thread(conmon.resize, self._paths.bundle(container.id), height, width)

    async def exec_create(self, ref: str, config: ExecConfig) -> str:
        """Prepare a process in a running container; returns the exec ID."""
        return self._exec.create(ref, config)

    async def exec_start(self, exec_id: str, *, detach: bool = False) -> AttachStream | None:
        """Start it; the stream to its stdio unless detached."""
        return await self._exec.start(exec_id, detach=detach)

    async def exec_resize(self, exec_id: str, *, height: int, width: int) -> None:
        """Set the terminal size of an exec with a TTY."""
        await self._exec.resize(exec_id, height, width)

    def exec_inspect(self, exec_id: str) -> ExecInspect:
        """State of an exec."""
        return self._exec.inspect(exec_id)

    def exec_detached(self, exec_id: str) -> None:
        """Tell that a client left an exec by the detach keys."""
        found = self._exec.inspect(exec_id)
        self.events.publish("container", "exec_detach", found.ContainerID, {"execID": found.ID})

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
            raise ConflictError(f"container {container.id} is not running")
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

    async def _removed(self, container: Container, volumes: bool) -> None:
        self._exec.container_ended(container)
        if volumes:
            await self._creator.remove_anonymous_volumes(container.record)

    def _read_log(
        self, container: Container, selection: container_logs.Selection, *, follow: bool
    ) -> AsyncGenerator[LogLine, None]:
        if container.record.HostConfig.LogConfig.Type == "none":
            raise ConflictError("configured logging driver does not support reading")
        return container_logs.read(
            container.log_path,
            selection,
            follow=follow,
            watcher=self._watcher,
            ended=lambda: not container.running and container.state.Status is not Status.RESTARTING,
        )

    async def _turn_logs(self) -> None:
        """Rotate what grew beyond its max-size; between two looks a log may grow past it."""
        while True:
            await asyncio.sleep(LOG_CHECK_PERIOD_S)
            for container in self._store:
                host = container.record.HostConfig
                if not container.running or not (host.LogConfig.Config or {}).get("max-size"):
                    continue
                control = self._paths.bundle(container.id) / "ctl"
                limits = container_logs.rotation(host.LogConfig)
                try:
                    await asyncio.to_thread(container_logs.rotate_if_due, container.log_path, control, limits)
                except OSError as error:
                    log.error("log.not_rotated", container_id=container.id, reason=str(error))

    def _image_users(self, image_id: str) -> builtins.list[ContainerUse]:
        return [ContainerUse(item.id, item.running) for item in self._store if item.record.ImageID == image_id]

    def _volume_users(self, name: str) -> builtins.list[str]:
        return [item.id for item in self._store if any(point.Name == name for point in item.record.Mounts)]

    def _name_of(self, container_id: str) -> str:
        container = self._store.find(container_id)
        return container.record.Name if container else container_id[:12]

    def _image_id(self, name: str) -> str:
        try:
            return self.images.get(name).id
        except ImageNotFoundError:
            return ""

    def _publish(self, container: Container, action: str, **attributes: str) -> None:
        self.events.publish("container", action, container.id, {**event_attributes(container), **attributes})
