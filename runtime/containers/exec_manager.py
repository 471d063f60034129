"""The exec instances of an engine: made, started, watched; and the health probes, which are execs too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from base.leftovers import Leftovers
from base.tasks import OwnedTasks
from runtime.containers import conmon, execs, health, working_dir
from runtime.containers.announcements import announce
from runtime.containers.attach import AttachStream
from runtime.containers.container import Container
from runtime.containers.execs import Exec
from runtime.containers.runc import Runc
from runtime.containers.states import Status
from runtime.containers.store import ContainerStore
from runtime.errors import (
    ConflictError,
    ExecHasRunError,
    ExecNotFoundError,
    InvalidParameterError,
    NotRunningError,
    StartError,
)
from runtime.events import EventBus
from runtime.types import ExecConfig, ExecInspect

_KEPT_S = 300.0


class ExecManager:
    """One per engine. An ended exec can be inspected for five minutes, or as long as its container exists if less."""

    def __init__(
        self,
        *,
        store: ContainerStore,
        runc: Runc,
        events: EventBus,
        capabilities: Sequence[str],
    ) -> None:
        self._store, self._runc, self._events = store, runc, events
        self._capabilities = list(capabilities)
        self._execs: dict[str, Exec] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._tasks = OwnedTasks()
        self._working_dirs = working_dir.WorkingDirs()
        self._leftovers = Leftovers()

    async def close(self) -> None:
        """Stop probing and watching; processes run on."""
        await self._tasks.close()
        self._probes.clear()
        await asyncio.to_thread(self._leftovers.close)

    def create(self, ref: str, config: ExecConfig) -> str:
        """See ``Engine.exec_create``."""
        if not config.Cmd:
            raise InvalidParameterError("No exec command specified")
        working_dir.refuse_proc(config.WorkingDir or "/")
        container = self._store.get(ref)
        self._refuse_unless_running(container)
        if container.state.Status is Status.PAUSED:
            raise ConflictError(f"container {ref} is paused, unpause the container before exec")
        item = execs.new_exec(container, config, self._runc.paths)
        self._execs[item.id] = item
        container.exec_ids.append(item.id)
        self._publish(container, f"exec_create: {' '.join(config.Cmd)}", item)
        return item.id

    async def start(self, exec_id: str, *, detach: bool) -> AttachStream | None:
        """See ``Engine.exec_start``."""
        item = self.get(exec_id)
        container = self._store.get(item.container_id)
        if item.started:
            raise ExecHasRunError(exec_id)
        self._refuse_unless_running(container)
        stream = await self._run(item, container, detach=detach)
        self._publish(container, f"exec_start: {' '.join(item.config.Cmd or ())}", item)
        if detach:
            stream.close()
            return None
        return stream

    async def _run(self, item: Exec, container: Container, *, detach: bool) -> AttachStream:
        """Start it. When the caller is cancelled the start goes on to its end, and the process is killed then.

        Cut short in between, conmon would wait for a byte for ever and our ends of its pipes stay open.
        """
        item.started = True
        config = item.config
        stream = AttachStream(
            stdin=config.AttachStdin and not detach,
            stdout=config.AttachStdout,
            stderr=config.AttachStderr,
            ended=item.ended,
        )
        begin = self._begin(item, container, stream)
        starting = self._tasks.spawn(begin, name=f"exec start {item.id[:12]}", awaited=True)
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(lambda _: execs.kill(item))
            stream.close()
            raise
        return stream

    async def _begin(self, item: Exec, container: Container, stream: AttachStream) -> None:
        path = item.config.WorkingDir or container.record.Config.WorkingDir or "/"
        pipes: execs.Pipes | None = None
        try:
            await self._working_dirs.check_exec(container.id, container.state.Pid, path)
            pipes = await self._runc.run(execs.spawn, self._runc.tools, self._runc.paths, item, self._capabilities)
            await execs.run(pipes, item, stream)
        except BaseException as error:
            item.exit_code = error.exit_code if isinstance(error, StartError) else 126
            item.ended.set()
            stream.close()
            if pipes is not None:
                self._tasks.spawn(execs.give_up(pipes, item), name=f"exec given up {item.id[:12]}")
            await asyncio.to_thread(self._leftovers.remove, item.folder)
            raise
        self._tasks.spawn(self._watch(pipes, item, container), name=f"exec {item.id[:12]}")

    async def _watch(self, pipes: execs.Pipes, item: Exec, container: Container) -> None:
        code = await execs.watch(pipes, item)
        await asyncio.to_thread(self._leftovers.remove, item.folder)
        if item.id in self._execs:
            self._publish(container, "exec_die", item, exitCode=str(code))
            asyncio.get_running_loop().call_later(_KEPT_S, self._forget, item)

    def _forget(self, item: Exec) -> None:
        self._execs.pop(item.id, None)
        container = self._store.find(item.container_id)
        if container is not None and item.id in container.exec_ids:
            container.exec_ids.remove(item.id)

    async def resize(self, exec_id: str, height: int, width: int) -> None:
        """See ``Engine.exec_resize``."""
        item = self.get(exec_id)
        if not item.running:
            raise ConflictError(f"exec {exec_id} is not running")
        await asyncio.to_thread(conmon.resize, item.folder, height, width)

    def inspect(self, exec_id: str) -> ExecInspect:
        """See ``Engine.exec_inspect``."""
        return self.get(exec_id).inspect()

    def get(self, exec_id: str) -> Exec:
        """Raises ExecNotFoundError."""
        try:
            return self._execs[exec_id]
        except KeyError:
            raise ExecNotFoundError(exec_id) from None

    def container_ended(self, container: Container) -> None:
        """Forget what could not run any more, and stop probing."""
        for exec_id in container.exec_ids:
            self._execs.pop(exec_id, None)
        container.exec_ids.clear()
        probe = self._probes.pop(container.id, None)
        if probe is not None:
            probe.cancel()

    def container_started(self, container: Container) -> None:
        """Begin probing when there is a health check."""
        if container.state.Health is None:
            return
        work = health.watch(container, self._probe, self._health_changed)
        self._probes[container.id] = self._tasks.spawn(work, name=f"health {container.id[:12]}")

    async def _probe(self, container: Container, args: list[str], timeout_s: float) -> tuple[int, str]:
        """Exit code and output of one probe; (-1, reason) when it took too long (moby ``cmdProbe``)."""
        config = ExecConfig(Cmd=args, AttachStdout=True, AttachStderr=True)
        item = execs.new_exec(container, config, self._runc.paths)
        output = b""
        try:
            async with asyncio.timeout(timeout_s), await self._run(item, container, detach=False) as stream:
                while (piece := await stream.read()) is not None:
                    if len(output) < health.OUTPUT_SIZE_MAX:
                        output += piece[1]
                await item.ended.wait()
        except TimeoutError:
            execs.kill(item)
            with contextlib.suppress(TimeoutError):
                # Also when its start goes on still: an image may ask for a probe each millisecond that gets one, and
                # those under way would fill the engine's threads until no container can be started.
                async with asyncio.timeout(execs.START_TIMEOUT_S):
                    await item.ended.wait()
            return -1, f"Health check exceeded timeout ({timeout_s:g}s)"
        text = output[: health.OUTPUT_SIZE_MAX].decode(errors="replace")
        return item.exit_code if item.exit_code is not None else -1, text

    def _health_changed(self, container: Container, before: str) -> None:
        self._store.save_state(container)
        state = container.state.Health
        if state is not None and state.Status != before:
            announce(self._events, container, f"health_status: {state.Status}")

    @staticmethod
    def _refuse_unless_running(container: Container) -> None:
        if not container.running:
            raise NotRunningError(container.id)

    def _publish(self, container: Container, action: str, item: Exec, **attributes: str) -> None:
        announce(self._events, container, action, execID=item.id, **attributes)
