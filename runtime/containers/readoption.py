"""What the daemon finds at its start: containers that ran on, that ended meanwhile, and what a crash left half done."""

from __future__ import annotations

import signal
import time

import structlog

from runtime.containers import conmon, processes, restart
from runtime.containers.connecting import Connecting
from runtime.containers.container import Container
from runtime.containers.exec_manager import ExecManager
from runtime.containers.exits import Exits
from runtime.containers.monitors import Monitors
from runtime.containers.naming import Naming
from runtime.containers.removal import Removal
from runtime.containers.runc import Runc
from runtime.containers.starting import Starting
from runtime.containers.states import Event, Status
from runtime.containers.store import ContainerStore
from runtime.containers.transitions import Transitions
from runtime.errors import EngineError
from runtime.images import ImagesError, ImageStore
from runtime.networks import Networks
from runtime.volumes import Volumes

log = structlog.get_logger(__name__)

LOST_EXIT_CODE = 255


class Readoption:
    """Settles, once, what happened while nobody watched. ``exits`` and ``monitors`` are open."""

    def __init__(
        self,
        *,
        store: ContainerStore,
        images: ImageStore,
        networks: Networks,
        naming: Naming,
        volumes: Volumes,
        runc: Runc,
        monitors: Monitors,
        execs: ExecManager,
        removal: Removal,
        starting: Starting,
        exits: Exits,
        connecting: Connecting,
        transitions: Transitions,
    ) -> None:
        self._store, self._runc, self._monitors, self._execs = store, runc, monitors, execs
        self._images, self._networks, self._naming, self._volumes = images, networks, naming, volumes
        self._removal, self._starting, self._exits, self._transitions = removal, starting, exits, transitions
        self._connecting = connecting

    async def run(self) -> None:
        """Take over, note down, clean, and start what is to run. Raises HostError."""
        containers = list(self._store)
        for container in sorted(containers, key=lambda each: each.record.CreatedNs):
            self._networks.reservations.ask(container.id, container.record.Endpoints)
        said_to_run = {container.id for container in containers if container.running}
        await self._runc.run(conmon.end_strays, self._runc.paths, said_to_run)
        for container in containers:
            if container.running:
                async with container.lock:
                    await self._readopt(container)
        running = {container.id for container in containers if container.running}
        for container in containers:
            await self._recover_files(container)
        await self._remove_orphans(running)
        await self._images.tidy_rootfs(self._store.kept_ids(), running)
        await self._networks.reconcile()
        for container in containers:
            if container.running:
                async with container.lock:
                    await self._connecting.settle(container)
        await self._naming.replace([container for container in containers if container.running])
        await self._volumes.unmount_unused()
        for container in containers:
            self._go_on(container)

    async def _recover_files(self, container: Container) -> None:
        """A power cut may have taken the record of its root file system, not the files."""
        try:
            await self._images.recover_rootfs(container.record.ImageID, container.id)
        except (ImagesError, OSError) as error:
            container.log.error("container.files_lost", reason=str(error))

    def _go_on(self, container: Container) -> None:
        """Start or remove what is down, as its policy says."""
        if container.running:
            return
        host, state = container.record.HostConfig, container.state
        if host.AutoRemove and state.Status is Status.EXITED:
            self._removal.remove_if_automatic(container)
        elif state.Status is not Status.CREATED and restart.starts_with_daemon(
            host.RestartPolicy, stopped_by_user=state.StoppedByUser
        ):
            self._transitions.spawn("restart", container, self._starting.start_quietly(container))
        elif state.Status is Status.RESTARTING and container.restart_timer is None:  # the former daemon's timer
            self._exits.restart_later(container, restart.DELAY_S_MIN)

    async def _readopt(self, container: Container) -> None:
        """Find out what a container that ran did meanwhile."""
        state = container.state
        status = self._runc.exit_status(container.id)
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
        await self._exits.record(container, *(status or (LOST_EXIT_CODE, time.time_ns())))

    async def _is_let_go(self, container: Container) -> bool:
        """Whether its process runs; one whose start was noted down and then cut short is let go now."""
        container_id, pid = container.id, container.state.Pid
        if not conmon.is_created(self._runc.paths, container_id):
            return False
        if conmon.is_waiting(self._runc.paths, container_id, pid):
            try:
                await self._runc.start(container_id, pid)
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
        self._runc.thaw(container.id)
        if conmon_pid:
            await self._runc.abandon(conmon.Created(container.state.Pid, conmon_pid))

    def _adopt(self, container: Container) -> None:
        state = container.state
        frozen = self._runc.is_frozen(container.id)
        if frozen != (state.Status is Status.PAUSED):  # the daemon died between freezing and noting it down
            container.move(Event.PAUSED if frozen else Event.UNPAUSED)
            self._store.save_state(container)
        self._networks.adopt(container.id, state.Endpoints, container.record.networks())
        for point in container.record.Mounts:
            if point.Type == "volume":
                self._volumes.adopt(point.Name, container.id)
        self._monitors.watch(container)
        self._execs.container_started(container)
        container.log.info("container.adopted", state=state.Status.value, pid=state.Pid)

    async def _remove_orphans(self, running: set[str]) -> None:
        """What a crash in the middle of a start or removal left: runtime state and cgroups without a container."""
        for container_id in sorted(await self._runc.run(self._runc.known_ids) - running):
            try:
                await self._runc.clean(container_id)
                if (container := self._store.find(container_id)) is None or self._store.is_safe(container):
                    self._runc.forget_exit(container_id)
            except (EngineError, OSError) as error:
                log.error("orphan.not_removed", container_id=container_id, reason=str(error), retry="next start")
            else:
                log.info("orphan.removed", container_id=container_id)
