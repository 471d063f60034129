"""Start of containers: one walk, top to bottom, and what is undone when a step fails.

======================================= ===========================================
step                                    undone by
======================================= ===========================================
addresses and host ports reserved       ``Releasing``
root file system mounted                ``Releasing``
files, volumes and spec made ready      ``Releasing`` (volumes); files are the next start's
container created, its init waits       ``Runc.abandon``, then ``Releasing`` (cgroups, bundle)
namespace attached to its networks      ``Releasing``; the kernel, when the namespace ends
names told to the resolver              ``Releasing``
attached clients connected              conmon's end; those still waiting are closed
noted down as running                   the state moves back
process let go                          ``Runc.abandon`` ends it
monitor watched                         it is the last step
======================================= ===========================================

``docs/design/runtime.md``, "A start", has the reasons for the order.
"""

from __future__ import annotations

import time

from base.times import rfc3339
from runtime.containers import attach, conmon, links, processes
from runtime.containers.announcements import announce
from runtime.containers.bundle import BundleBuilder
from runtime.containers.container import Container
from runtime.containers.exec_manager import ExecManager
from runtime.containers.monitors import Monitors
from runtime.containers.naming import Naming
from runtime.containers.releasing import Releasing
from runtime.containers.removal import Removal
from runtime.containers.runc import Runc
from runtime.containers.states import UNDOING, Event, Status
from runtime.containers.store import ContainerStore
from runtime.containers.transitions import Transitions
from runtime.errors import ConflictError, EngineError, HostError, NotModifiedError, StartError
from runtime.events import EventBus
from runtime.images import ImagesError, ImageStore
from runtime.networks import Networks, Sandbox
from runtime.networks.ports import requests as port_requests
from runtime.types import Health


class Starting:
    """Starts containers, for a caller, a restart policy or a daemon that comes back."""

    def __init__(
        self,
        *,
        store: ContainerStore,
        images: ImageStore,
        networks: Networks,
        naming: Naming,
        bundles: BundleBuilder,
        runc: Runc,
        monitors: Monitors,
        releasing: Releasing,
        removal: Removal,
        execs: ExecManager,
        transitions: Transitions,
        events: EventBus,
    ) -> None:
        self._store, self._images, self._networks, self._bundles = store, images, networks, bundles
        self._naming = naming
        self._runc, self._monitors, self._execs, self._events = runc, monitors, execs, events
        self._releasing, self._removal, self._transitions = releasing, removal, transitions

    async def start(self, container: Container) -> None:
        """Raises NotModifiedError, ConflictError, StartError, HostError, UnavailableError."""
        await self._transitions.to_its_end("start", container, self._start(container))

    async def start_quietly(self, container: Container) -> None:
        """Start it for nobody who waits; a refusal is logged."""
        try:
            await self.start(container)
        except EngineError as error:
            container.log.warning("container.not_started", reason=str(error))

    async def _start(self, container: Container) -> None:
        async with container.lock:
            if container.running:
                raise NotModifiedError(f"container {container.id[:12]} is already started")
            if container.removing:
                raise ConflictError("container is marked for removal and cannot be started")
            if container.state.Status is Status.RESTARTING:
                container.cancel_restart_timer()
                container.move(Event.RESTART_CANCELLED)
            container.state.StoppedByUser = False
            container.state.RestartCount = 0
            container.restart_delay_s = 0.0
            await self.start_locked(container)

    async def start_locked(self, container: Container) -> None:
        """Start one whose lock the caller holds. Raises StartError, HostError, UnavailableError; all is undone then.

        Whatever is raised on the way is a failed start: a defect of ours is logged, and is a HostError for the caller.
        """
        before = container.state.Status
        try:
            await self._walk(container)
        except EngineError as error:
            await self._undo(container, before, error)
            raise
        except Exception as error:
            if not isinstance(error, ImagesError | OSError):
                container.log.exception("container.start_has_a_defect")
            await self._undo(container, before, error)
            raise HostError(str(error) or repr(error)) from error
        announce(self._events, container, "start")
        self._execs.container_started(container)

    async def _walk(self, container: Container) -> None:
        """From a record to a running process; the module's head has what undoes each step."""
        record = container.record
        ports = port_requests(record.Config, record.HostConfig)
        sandbox = await self._networks.reserve(container.id, record.networks(), ports)
        rootfs = await self._images.mount_rootfs(container.id)
        request = await self._runc.run(self._bundles.build, container, rootfs, sandbox)
        created = await self._runc.create(request)
        try:
            container.hold("init", created.pid)
            await self._networks.attach(container.id, created.pid)
            await self._naming.tell(container, sandbox.endpoints, created.pid)
            self._connect_attaches(container)
            self._note_down(container, created, sandbox)
            links.refresh(container, self._store.linking_to(container.id))
            await self._runc.start(container.id, created.pid)
            self._monitors.watch(container)
        except BaseException:
            await self._runc.abandon(created)
            raise

    async def _undo(self, container: Container, before: Status, error: Exception) -> None:
        state = container.state
        if state.Status is not before:
            container.move(UNDOING[before], reason=str(error))
        state.Error = str(error)
        state.ExitCode = error.exit_code if isinstance(error, StartError) else 128
        state.Pid = 0
        self._store.save_state(container)
        await self._releasing.release(container)
        container.close_pending_attaches()
        container.notify("exit")
        self._removal.remove_if_automatic(container)  # its client waits for that

    # ---- the steps -------------------------------------------------------------------------------------------------

    def _connect_attaches(self, container: Container) -> None:
        """Before the process runs, so that its first byte is seen."""
        for stream in container.pending_attaches:
            stream.connected(attach.connect(self._runc.paths.bundle(container.id) / "attach"))
        container.pending_attaches.clear()

    def _note_down(self, container: Container, created: conmon.Created, sandbox: Sandbox) -> None:
        """Before the process runs: a daemon that dies in between finds a container that runs, or one that runc says
        was never started."""
        state = container.state
        state.Pid, state.ConmonPid = created.pid, created.conmon_pid
        state.PidStart, state.ConmonStart = map(processes.start_ticks, (created.pid, created.conmon_pid))
        state.BootID = processes.boot_id()
        state.OOMKilled, state.Error, state.ExitCode = False, "", 0
        state.Health = Health() if _has_healthcheck(container) else None
        state.Endpoints = dict(sandbox.endpoints)
        state.StartedAt = rfc3339(time.time_ns())
        container.move(Event.STARTED, pid=created.pid)
        self._store.save_state(container, required=True)


def _has_healthcheck(container: Container) -> bool:
    check = container.record.Config.Healthcheck
    return bool(check and check.Test and check.Test[0] in ("CMD", "CMD-SHELL"))
