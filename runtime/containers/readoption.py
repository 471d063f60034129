"""What the daemon finds at its start: containers that ran on, that ended meanwhile, and what a crash left half done."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import structlog

from runtime.containers import cgroups, conmon, processes, restart
from runtime.containers.lifecycle import Lifecycle
from runtime.containers.record import Container
from runtime.containers.states import Event, Status
from runtime.containers.store import ContainerStore
from runtime.errors import EngineError
from runtime.images import ImageStore
from runtime.networks import Networks
from runtime.volumes import Volumes

log = structlog.get_logger(__name__)

LOST_EXIT_CODE = 255


class Readoption:
    """Settles, once, what happened while nobody watched. The ``lifecycle`` is open and owns the containers."""

    def __init__(
        self,
        *,
        store: ContainerStore,
        lifecycle: Lifecycle,
        images: ImageStore,
        networks: Networks,
        volumes: Volumes,
        paths: conmon.Paths,
        layout: cgroups.Layout,
        cgroup_parent: str,
    ) -> None:
        self._store, self._lifecycle = store, lifecycle
        self._images, self._networks, self._volumes = images, networks, volumes
        self._paths, self._layout, self._parent = paths, layout, cgroup_parent

    async def run(self) -> None:
        """Take over, note down, clean, and start what is to run. Raises HostError."""
        containers = list(self._store)
        said_to_run = {container.id for container in containers if container.running}
        await self._lifecycle.run(conmon.end_strays, self._paths, said_to_run)
        for container in containers:
            if container.running:
                async with container.lock:
                    await self._readopt(container)
        running = {container.id for container in containers if container.running}
        await self._lifecycle.run(self._remove_orphans, running)
        await self._images.tidy_rootfs(self._store.kept_ids(), running)
        await self._networks.reconcile()
        await self._volumes.unmount_unused()
        for container in containers:
            self._go_on(container)

    def _go_on(self, container: Container) -> None:
        """Start or remove what is down, as its policy says."""
        if container.running:
            return
        host, state = container.record.HostConfig, container.state
        if host.AutoRemove and state.Status is Status.EXITED:
            removal = self._lifecycle.remove(container, force=True, volumes=True)
            self._lifecycle.spawn(removal, f"autoremove {container.id[:12]}")
        elif state.Status is not Status.CREATED and restart.starts_with_daemon(
            host.RestartPolicy, stopped_by_user=state.StoppedByUser
        ):
            self._lifecycle.spawn(self._lifecycle.start_quietly(container), f"restart {container.id[:12]}")
        elif state.Status is Status.RESTARTING and container.restart_timer is None:  # the former daemon's timer
            self._lifecycle.restart_later(container, restart.DELAY_S_MIN)

    async def _readopt(self, container: Container) -> None:
        """Find out what a container that ran did meanwhile."""
        state = container.state
        status = conmon.exit_status(self._paths, container.id)
        watched = processes.is_alive(state.ConmonPid, state.ConmonStart, state.BootID)
        alive = self._hold(container)
        if status is None and alive and watched and await self._is_let_go(container):
            self._adopt(container)
            return
        if status is None and alive:
            await self._end(container, conmon_pid=state.ConmonPid if watched else 0)
            state.Error = "it could not be taken over by the daemon and was killed"
        elif status is None:
            state.Error = ""
        await self._lifecycle.record_exit(container, *(status or (LOST_EXIT_CODE, time.time_ns())))

    async def _is_let_go(self, container: Container) -> bool:
        """Whether its process runs; one whose start was noted down and then cut short is let go now."""
        container_id, pid = container.id, container.state.Pid
        if not conmon.is_created(self._paths, container_id):
            return False
        if conmon.is_waiting(self._paths, container_id, pid):
            try:
                await self._lifecycle.run(conmon.start, self._lifecycle.tools, self._paths, container_id, pid)
            except EngineError as error:
                container.log.warning("container.not_let_go", reason=str(error))
                return False
        return True

    def _hold(self, container: Container) -> bool:
        """Whether its process lives and is the one noted down: looked at once we hold it, so that it stays so."""
        state = container.state
        if state.Pid <= 0:
            return False
        try:
            container.hold("init", state.Pid)
        except ProcessLookupError:
            return False
        if processes.is_alive(state.Pid, state.PidStart, state.BootID):
            return True
        container.let_go("init")
        return False

    async def _end(self, container: Container, *, conmon_pid: int) -> None:
        """With its monitor, whose late word on this run would be taken for one on the next."""
        container.send_signal(signal.SIGKILL)
        cgroups.thaw(self._groups(container.id))
        if conmon_pid:
            await self._lifecycle.run(conmon.abandon, conmon.Created(container.state.Pid, conmon_pid))

    def _groups(self, container_id: str) -> list[Path]:
        return cgroups.container_paths(self._layout, self._parent, container_id)

    def _adopt(self, container: Container) -> None:
        state = container.state
        frozen = cgroups.is_frozen(self._groups(container.id))
        if frozen != (state.Status is Status.PAUSED):  # the daemon died between freezing and noting it down
            container.move(Event.PAUSED if frozen else Event.UNPAUSED)
            self._store.save_state(container)
        self._networks.adopt(container.id, state.Endpoints)
        for point in container.record.Mounts:
            if point.Type == "volume":
                self._volumes.adopt(point.Name, container.id)
        self._lifecycle.watch_conmon(container)
        self._lifecycle.on_started(container)
        container.log.info("container.adopted", state=state.Status.value, pid=state.Pid)

    def _remove_orphans(self, running: set[str]) -> None:
        """What a crash in the middle of a start or removal left: runtime state and cgroups without a container."""
        found = {path.name for path in self._paths.runc.iterdir() if len(path.name) == 64}
        found |= {path.name for path in (self._paths.run / "bundles").iterdir()}
        found |= {path.name for path in self._paths.exits.iterdir() if len(path.name) == 64}
        for mount in set(self._layout.mounts.values()):
            parent = mount / self._parent.lstrip("/")
            if parent.is_dir():
                found |= {path.name for path in parent.iterdir() if path.is_dir() and len(path.name) == 64}
        for container_id in sorted(found - running):
            conmon.clean(self._lifecycle.tools, self._paths, container_id, self._groups(container_id))
            log.info("orphan.removed", container_id=container_id)
