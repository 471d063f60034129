"""Start, exit, restart, stop and removal of containers.

Each transition holds the container's lock; waiting for a process to end does not. ``states`` has who moves what.

An exit is noticed by the exit file that conmon renames into place (one inotify watch for all containers), and in case
conmon itself was killed by the end of its process (one pidfd each). Nothing polls.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import structlog

from base.tasks import OwnedTasks
from runtime.containers import attach, cgroups, conmon, processes, restart
from runtime.containers.bundle import BundleBuilder
from runtime.containers.record import Container
from runtime.containers.states import UNDOING, Event, Status
from runtime.containers.store import ContainerStore
from runtime.containers.types import Health
from runtime.errors import ConflictError, EngineError, HostError, NotModifiedError, StartError
from runtime.events import EventBus
from runtime.images import ImagesError, ImageStore
from runtime.kernel.syscalls import Watcher
from runtime.networks import Networks, Sandbox
from runtime.networks.ports import requests as port_requests
from runtime.volumes import Volumes

log = structlog.get_logger(__name__)

_WORKERS = 4
T = TypeVar("T")


def rfc3339(nanoseconds: int) -> str:
    """UTC with nanoseconds, as the API has it."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


class Lifecycle:
    """Moves containers between their states. One per engine, on one event loop."""

    def __init__(
        self,
        *,
        store: ContainerStore,
        images: ImageStore,
        networks: Networks,
        volumes: Volumes,
        events: EventBus,
        paths: conmon.Paths,
        bundles: BundleBuilder,
        layout: cgroups.Layout,
        cgroup_parent: str,
    ) -> None:
        self._store, self._images, self._networks, self._events = store, images, networks, events
        self._volumes = volumes
        self._paths, self._bundles, self._layout, self._parent = paths, bundles, layout, cgroup_parent
        self._tools = conmon.find_tools()
        # Few workers on purpose: more runc at once than cores only makes each slower.
        self._pool = ThreadPoolExecutor(max_workers=max(_WORKERS, (os.cpu_count() or 1) * 2), thread_name_prefix="runc")
        self._tasks = OwnedTasks()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self.on_started: Callable[[Container], None] = lambda _container: None
        self.on_exited: Callable[[Container], None] = lambda _container: None
        self.on_removed: Callable[[Container, bool], Awaitable[None]] = _nothing

    @property
    def tools(self) -> conmon.Tools:
        """runc and conmon."""
        return self._tools

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call something that runs a program, in the pool for that."""
        return await self._loop.run_in_executor(self._pool, functools.partial(function, *arguments))

    def open(self, watcher: Watcher) -> None:
        """Watch for exits. What happened while nobody watched is ``Readoption``'s."""
        watcher.watch(self._paths.exits, self._exit_file_changed)

    async def close(self) -> None:
        """Stop watching. What was under way is finished, for at most ten seconds; containers run on."""
        self._closed = True
        for container in self._store:
            if container.restart_timer:
                container.restart_timer.cancel()
        await self._tasks.close(grace_s=10)
        for container in self._store:
            container.let_go()
        self._pool.shutdown(wait=True)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run a task that this object owns; what it raises is logged."""
        self._tasks.spawn(work, name=name)

    # ---- start -----------------------------------------------------------------------------------------------------

    async def start(self, container: Container) -> None:
        """Raises NotModifiedError, ConflictError, StartError, HostError, UnavailableError."""
        await self._tasks.run_to_end(self._start(container), name=f"start {container.id[:12]}")

    async def _start(self, container: Container) -> None:
        async with container.lock:
            if container.running:
                raise NotModifiedError(f"container {container.id[:12]} is already started")
            self._refuse_if_removing(container)
            self._cancel_restart(container)
            container.state.StoppedByUser = False
            container.state.RestartCount = 0
            container.restart_delay_s = 0.0
            await self._start_locked(container)

    async def _start_locked(self, container: Container) -> None:
        state = container.state
        before = state.Status
        try:
            await self._launch(container)
        except (EngineError, ImagesError, OSError) as error:
            if state.Status is not before:
                container.move(UNDOING[before], reason=str(error))
            state.Error = str(error)
            state.ExitCode = error.exit_code if isinstance(error, StartError) else 128
            state.Pid = 0
            await self._release(container)
            self._store.save_state(container)
            for stream in container.pending_attaches[:]:
                stream.close()
            container.notify("exit")
            if container.record.HostConfig.AutoRemove and not self._closed:  # its client waits for the removal
                self.spawn(self.remove(container, force=True, volumes=True), f"autoremove {container.id[:12]}")
            if isinstance(error, EngineError):
                raise
            raise HostError(str(error)) from error
        self._publish(container, "start")
        self.on_started(container)

    async def _launch(self, container: Container) -> None:
        record = container.record
        ports = port_requests(record.Config, record.HostConfig)
        sandbox = await self._networks.reserve(container.id, record.networks(), ports)
        rootfs = await self._images.mount_rootfs(container.id)
        request = await self.run(self._bundles.build, container, rootfs, sandbox)
        created = await self.run(conmon.create, self._tools, self._paths, request)
        try:
            await self._let_go(container, created, sandbox)
        except BaseException:
            await self.run(conmon.abandon, created)
            raise
        self.watch_conmon(container)

    async def _let_go(self, container: Container, created: conmon.Created, sandbox: Sandbox) -> None:
        """From a waiting init to a running process."""
        container.hold("init", created.pid)
        await self._networks.attach(container.id, created.pid)
        self._connect_attaches(container)
        state = container.state
        state.Pid, state.ConmonPid = created.pid, created.conmon_pid
        state.PidStart, state.ConmonStart = (
            processes.start_ticks(created.pid),
            processes.start_ticks(created.conmon_pid),
        )
        state.BootID = processes.boot_id()
        state.OOMKilled, state.Error, state.ExitCode = False, "", 0
        state.Health = Health() if _has_healthcheck(container) else None
        state.Endpoints = dict(sandbox.endpoints)
        state.StartedAt = rfc3339(time.time_ns())
        # Saved before the process runs: a daemon that dies in between finds a container that runs, or one that runc
        # says was never started.
        container.move(Event.STARTED, pid=created.pid)
        self._store.save_state(container, required=True)
        await self.run(conmon.start, self._tools, self._paths, container.id, created.pid)

    def _connect_attaches(self, container: Container) -> None:
        """Before the process runs, so that its first byte is seen."""
        for stream in container.pending_attaches:
            stream.connected(attach.connect(self._paths.bundle(container.id) / "attach"))
        container.pending_attaches.clear()

    def watch_conmon(self, container: Container) -> None:
        """Notice the end of its monitor, and with it the container's."""

        def ended() -> None:
            container.reap("conmon")
            self.spawn(self._exited(container), f"exit {container.id[:12]}")

        try:
            container.watch("conmon", container.state.ConmonPid, ended)
        except ProcessLookupError:
            self.spawn(self._exited(container), f"exit {container.id[:12]}")
        else:
            if conmon.exit_status(self._paths, container.id) is not None:
                self.spawn(self._exited(container), f"exit {container.id[:12]}")

    # ---- exit ------------------------------------------------------------------------------------------------------

    def _exit_file_changed(self, name: str) -> None:
        if self._closed:
            return
        if name:
            if (container := self._store.find(name)) is not None:
                self.spawn(self._exited(container), f"exit {name[:12]}")
            return
        for container in self._store:  # events were lost: look at all
            if container.running and conmon.exit_status(self._paths, container.id):
                self.spawn(self._exited(container), f"exit {container.id[:12]}")

    async def _exited(self, container: Container) -> None:
        async with container.lock:
            if not container.running:
                return
            status = conmon.exit_status(self._paths, container.id)
            if status is None:
                if processes.is_alive(container.state.ConmonPid, container.state.ConmonStart, container.state.BootID):
                    return
                await self._end_orphan(container)
                status = (128 + signal.SIGKILL, time.time_ns())
                container.state.Error = "its monitor (conmon) ended unexpectedly, so the container was killed"
            await self.record_exit(container, *status)

    async def _end_orphan(self, container: Container) -> None:
        """Without conmon nobody reads its output or learns its exit status: end it."""
        container.log.warning("conmon.lost", pid=container.state.Pid)
        container.send_signal(signal.SIGKILL)

    async def record_exit(self, container: Container, exit_code: int, at_ns: int) -> None:
        """Under the lock: set the state, tell everybody, clean up, and decide what comes next."""
        state = container.state
        state.OOMKilled = cgroups.oom_kills(self._layout, self._parent, container.id) > 0
        # A file's time comes from the kernel's coarse clock and may lie a few milliseconds before the start.
        at_ns = max(at_ns, _to_ns(state.StartedAt) + 1)
        state.ExitCode, state.FinishedAt = exit_code, rfc3339(at_ns)
        ran_s = (at_ns - _to_ns(state.StartedAt)) / 1e9
        container.let_go("init")
        delay_s = self._next_delay(container, ran_s)
        container.move(Event.EXITED if delay_s is None else Event.EXITED_FOR_NOW, exit_code=exit_code)
        self._store.save_state(container)
        if state.OOMKilled:
            self._publish(container, "oom")
        self._publish(container, "die", exitCode=str(exit_code), execDuration=str(int(ran_s)))
        self.on_exited(container)
        container.notify("exit")
        await self._release(container)
        if delay_s is not None:
            self.restart_later(container, delay_s)
        elif container.record.HostConfig.AutoRemove and not container.removing and not self._closed:
            self.spawn(self.remove(container, force=True, volumes=True), f"autoremove {container.id[:12]}")

    def _next_delay(self, container: Container, ran_s: float) -> float | None:
        state = container.state
        ended = restart.Ended(state.ExitCode, ran_s, state.RestartCount, container.restart_delay_s, state.StoppedByUser)
        if container.removing:
            return None
        return restart.delay_after(container.record.HostConfig.RestartPolicy, ended)

    async def _release(self, container: Container) -> None:
        """Give back what a run held: address, cgroups, bundle, mount. Idempotent; what fails is logged, the rest done."""
        container.let_go("init")
        groups = cgroups.container_paths(self._layout, self._parent, container.id)
        for step in (
            self._disconnect(container),
            self.run(conmon.clean, self._tools, self._paths, container.id, groups),
            self._images.unmount_rootfs(container.id),
            self._volumes.release(container.id),
        ):
            try:
                await step
            except (EngineError, ImagesError, OSError) as error:
                container.log.error("container.not_released", reason=str(error))

    async def _disconnect(self, container: Container) -> None:
        shared = any(
            other.running and other.record.HostConfig.NetworkMode == f"container:{container.id}"
            for other in self._store
        )
        await self._networks.release(container.id, namespace_stays=shared)

    # ---- restart ---------------------------------------------------------------------------------------------------

    def restart_later(self, container: Container, delay_s: float) -> None:
        """Set the timer of a container that is "restarting"; the next daemon does when this one is closing."""
        if not self._closed:
            container.restart_delay_s = delay_s
            container.restart_timer = self._loop.call_later(
                delay_s, lambda: self.spawn(self._restart(container), f"restart {container.id[:12]}")
            )

    async def _restart(self, container: Container) -> None:
        async with container.lock:
            container.restart_timer = None
            if container.state.Status is not Status.RESTARTING or container.removing or self._closed:
                return
            container.state.RestartCount += 1
            try:
                await self._start_locked(container)
            except EngineError as error:
                container.log.warning("container.not_restarted", reason=str(error))
                self._after_failed_restart(container)

    def _after_failed_restart(self, container: Container) -> None:
        """It counts as a run that ended at once; dockerd gives up here, though what was missing may come back."""
        delay_s = self._next_delay(container, 0.0)
        if delay_s is None:
            container.move(Event.RESTARTS_GIVEN_UP)
        self._store.save_state(container)
        if delay_s is not None:
            self.restart_later(container, delay_s)

    async def start_quietly(self, container: Container) -> None:
        """Start it for nobody who waits; a refusal is logged."""
        try:
            await self.start(container)
        except EngineError as error:
            container.log.warning("container.not_started", reason=str(error))

    def _cancel_restart(self, container: Container) -> None:
        if container.restart_timer:
            container.restart_timer.cancel()
            container.restart_timer = None
        if container.state.Status is Status.RESTARTING:
            container.move(Event.RESTART_CANCELLED)

    # ---- stop, kill, remove ----------------------------------------------------------------------------------------

    async def stop(self, container: Container, number: int, timeout_s: float) -> None:
        """Signal ``number``, SIGKILL after ``timeout_s`` (negative: never). Returns when it has ended."""
        if not container.running:
            async with container.lock:
                if container.state.Status is Status.RESTARTING:
                    self._cancel_restart(container)
                    container.state.StoppedByUser = True
                    self._store.save_state(container)
                    return
            if not container.running:
                raise NotModifiedError(f"container {container.id[:12]} is already stopped")
        container.state.StoppedByUser = True
        self._store.save_state(container)
        ended = container.wait("exit")
        await self.signal(container, number)
        try:
            await asyncio.wait_for(asyncio.shield(ended), timeout_s if timeout_s >= 0 else None)
        except TimeoutError:
            container.log.info("container.killed", after_s=timeout_s)
            await self.signal(container, signal.SIGKILL)
            await ended
        finally:
            ended.cancel()
        self._publish(container, "stop")

    async def signal(self, container: Container, number: int) -> None:
        """Send a signal and say so as an event.

        A frozen container is thawed for SIGKILL, whatever our record says of it.
        """
        delivered = container.send_signal(number)
        if delivered and number == signal.SIGKILL:
            cgroups.thaw(cgroups.container_paths(self._layout, self._parent, container.id))
        if delivered:
            self._publish(container, "kill", signal=str(number))

    async def runc(self, container: Container, command: str) -> None:
        """Carry out ``runc COMMAND ID``. Raises HostError."""
        await self.run(conmon.run_runc, self._tools, self._paths, container.id, command, container.id)

    async def apply_limits(self, container: Container, resources: Mapping[str, Any]) -> None:
        """Give the running container's cgroup these limits (OCI resources). Raises HostError."""
        path = self._paths.bundle(container.id) / "limits.json"
        limits = {key: value for key, value in resources.items() if key != "devices"}
        await asyncio.to_thread(path.write_text, json.dumps(limits))
        await self.run(
            conmon.run_runc, self._tools, self._paths, container.id, "update", "--resources", str(path), container.id
        )

    async def remove(self, container: Container, *, force: bool, volumes: bool) -> None:
        """Raises ConflictError. ``volumes`` is carried out by ``on_removed``."""
        await self._tasks.run_to_end(
            self._remove(container, force=force, volumes=volumes), name=f"remove {container.id[:12]}"
        )

    async def _remove(self, container: Container, *, force: bool, volumes: bool) -> None:
        if container.removing:
            raise ConflictError(f"removal of container {container.record.Name} is already in progress")
        if (container.running or container.state.Status is Status.RESTARTING) and not force:
            raise ConflictError(self._why_not_removed(container))
        container.removing = True
        try:
            while not await self._remove_if_ended(container, force=force, volumes=volumes):
                ended = container.wait("exit")
                container.state.StoppedByUser = True
                await self.signal(container, signal.SIGKILL)
                await ended
        except BaseException:
            container.removing = False
            raise
        for stream in container.pending_attaches[:]:
            stream.close()
        await self.on_removed(container, volumes)
        await self._store.discard(container.id)
        container.log.info("container.removed", state=container.state.Status.value)
        self._publish(container, "destroy")
        container.notify("removed")

    async def _remove_if_ended(self, container: Container, *, force: bool, volumes: bool) -> bool:
        """False when it runs, perhaps because a start was under way; raises ConflictError for that without force."""
        async with container.lock:
            if container.running and not force:
                raise ConflictError(self._why_not_removed(container))
            if container.running:
                return False
            self._cancel_restart(container)
            # The record goes before the files: a crash in between leaves files of nobody, which the next start removes,
            # and not a container that cannot start. Unmounting is what may fail, and comes first.
            await self._images.unmount_rootfs(container.id)
            await self._store.forget(container, volumes=volumes)
            try:
                await self._images.remove_rootfs(container.id)
            except (ImagesError, OSError) as error:
                container.log.warning("rootfs.not_removed", reason=str(error), retry="next start")
            return True

    def _why_not_removed(self, container: Container) -> str:
        name, status = container.record.Name, container.state.Status
        hint = "stop the container before removing or force remove"
        if status is Status.PAUSED:
            hint = f"unpause and then {hint}"
        return f'cannot remove container "/{name}": container is {status}: {hint}'

    def _refuse_if_removing(self, container: Container) -> None:
        if container.removing:
            raise ConflictError("container is marked for removal and cannot be started")

    # ---- events ----------------------------------------------------------------------------------------------------

    def _publish(self, container: Container, action: str, **attributes: str) -> None:
        self._events.publish("container", action, container.id, {**event_attributes(container), **attributes})


def event_attributes(container: Container) -> dict[str, str]:
    """What each event of a container carries: its labels, image and name."""
    config = container.record.Config
    return {**(config.Labels or {}), "image": config.Image, "name": container.record.Name}


async def _nothing(_container: Container, _volumes: bool) -> None:
    """Until the engine sets what else goes with a container."""


def _has_healthcheck(container: Container) -> bool:
    check = container.record.Config.Healthcheck
    return bool(check and check.Test and check.Test[0] in ("CMD", "CMD-SHELL"))


def _to_ns(text: str) -> int:
    moment = dt.datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=dt.UTC)
    fraction = text[20:].rstrip("Z")
    return int(moment.timestamp()) * 1_000_000_000 + int((fraction or "0").ljust(9, "0")[:9])
