"""The stdio of containers as the engine serves it: logs read and turned over, streams attached, terminals resized."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from base.tasks import OwnedTasks
from runtime.containers import attach, conmon, logs
from runtime.containers.attach import AttachStream
from runtime.containers.container import Container
from runtime.containers.states import Status
from runtime.containers.store import ContainerStore
from runtime.errors import AttachRefusedError, ConflictError, NotRunningError
from runtime.kernel.syscalls import Watcher
from runtime.types import LogLine

LOG_CHECK_PERIOD_S = 5.0


class Stdio:
    """One per engine. conmon does the work; here is where it is reached."""

    def __init__(self, *, store: ContainerStore, paths: conmon.Paths, watcher: Watcher) -> None:
        self._store, self._paths, self._watcher = store, paths, watcher
        self._tasks = OwnedTasks()

    def open(self) -> None:
        """Look after the logs' sizes from now on."""
        self._tasks.spawn(self._turn_logs(), name="engine.logs")

    async def close(self) -> None:
        """Logs grow past their max-size until the next daemon looks."""
        await self._tasks.close()

    def read_log(
        self, container: Container, selection: logs.Selection, *, follow: bool
    ) -> AsyncGenerator[LogLine, None]:
        """See ``Engine.logs``."""
        if container.record.HostConfig.LogConfig.Type == "none":
            raise ConflictError("configured logging driver does not support reading")
        return logs.read(
            container.log_path,
            selection,
            follow=follow and _goes_on(container),
            watcher=self._watcher,
            ended=lambda: not _goes_on(container),
        )

    async def attach(
        self, container: Container, *, stdin: bool, stdout: bool, stderr: bool, with_log: bool
    ) -> AttachStream:
        """See ``Engine.attach``."""
        if (status := container.state.Status) in AttachRefusedError.HINTS:
            raise AttachRefusedError(container_id=container.id, status=status)

        def forget(stream: AttachStream) -> None:
            if stream in container.pending_attaches:
                container.pending_attaches.remove(stream)

        stream = AttachStream(
            stdin=stdin and container.record.Config.OpenStdin, stdout=stdout, stderr=stderr, on_close=forget
        )
        if with_log:
            selection = logs.Selection(stdout, stderr)
            await stream.precede(self.read_log(container, selection, follow=False))
        if container.running:
            socket_path = self._paths.bundle(container.id) / "attach"
            try:
                stream.connected(await asyncio.to_thread(attach.connect, socket_path))
            except OSError as error:
                raise ConflictError(f"cannot attach to container {container.id[:12]}: {error.strerror}") from None
        else:
            container.pending_attaches.append(stream)
        return stream

    async def resize(self, container: Container, height: int, width: int) -> None:
        """See ``Engine.resize``."""
        if not container.running:
            raise NotRunningError(container.id)
        await asyncio.to_thread(conmon.resize, self._paths.bundle(container.id), height, width)

    async def _turn_logs(self) -> None:
        """Rotate what grew beyond its max-size; between two looks a log may grow past it."""
        while True:
            await asyncio.sleep(LOG_CHECK_PERIOD_S)
            for container in self._store:
                host = container.record.HostConfig
                if not container.running or not (host.LogConfig.Config or {}).get("max-size"):
                    continue
                control = self._paths.bundle(container.id) / "ctl"
                limits = logs.rotation(host.LogConfig)
                try:
                    await asyncio.to_thread(logs.rotate_if_due, container.log_path, control, limits)
                except OSError as error:
                    container.log.error("log.not_rotated", reason=str(error))


def _goes_on(container: Container) -> bool:
    """Whether more output may come: it runs, or is about to again."""
    return container.running or container.state.Status is Status.RESTARTING
