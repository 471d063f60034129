"""The container engine: create, start, stop, remove, inspect, logs, exec and attach of containers on this host.

It knows nothing of clusters or HTTP. The HTTP layer and the worker's agent call the same methods; both map the
exceptions of ``runtime.errors``. All methods run on one event loop; whatever blocks happens in threads.

``ref`` is always a full ID, an exact name (with or without the leading slash) or a unique ID prefix, tried in this
order; ``ContainerNotFoundError`` or ``InvalidParameterError`` (ambiguous prefix) otherwise.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
from runtime.events import EventBus

if TYPE_CHECKING:
    from runtime.containers.attach import AttachStream
    from runtime.images import ImageStore
    from runtime.networks import Networks
    from runtime.volumes import Volumes

WaitCondition = Literal["not-running", "next-exit", "removed"]
Filters = Mapping[str, Sequence[str]]


class Engine:
    """The engine of one daemon. ``open()`` before anything else; ``close()`` never touches a running container.

    Args:
        state: folder for what survives a reboot (images, container records, logs, volumes).
        run: folder for what does not (bundles, runc state, sockets, exit files); short, on a tmpfs.
        cgroup_parent: cgroup under which each container gets its own, such as "/swarm"; the same in each hierarchy.
        bridge: device name of the default bridge network.
        bridge_subnet: its subnet in CIDR form; the next free private one is taken when the host uses it already.
    """

    images: ImageStore
    networks: Networks
    volumes: Volumes
    events: EventBus

    def __init__(
        self,
        *,
        state: Path,
        run: Path,
        cgroup_parent: str,
        bridge: str = "swarm0",
        bridge_subnet: str = "172.17.0.0/16",
    ) -> None:
        raise NotImplementedError

    async def open(self) -> None:
        """Re-adopt running containers (same PIDs), notice those that ended meanwhile, clean what is left over."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of everything; containers run on."""
        raise NotImplementedError

    async def create(
        self,
        config: ContainerConfig,
        host: HostConfig | None = None,
        networking: NetworkingConfig | None = None,
        name: str | None = None,
    ) -> tuple[str, list[str]]:
        """Make a container from a local image, without starting it.

        Returns:
            The 64-digit ID and warnings for the user.

        Raises:
            ImageNotFoundError: no local image of that name (pull it first).
            InvalidParameterError, NameConflictError, NetworkNotFoundError.
        """
        raise NotImplementedError

    async def start(self, ref: str) -> None:
        """Start a created or exited container; returns once its process runs.

        Raises:
            NotModifiedError: it runs already.
            StartError: the runtime refused; also recorded in ``State.Error``.
        """
        raise NotImplementedError

    async def stop(self, ref: str, timeout_s: float | None = None, signal: str | None = None) -> None:
        """Send the stop signal, SIGKILL after ``timeout_s`` (default: the container's, else 10; negative: never).

        Returns once the container ended. Cancels a pending restart. Raises NotModifiedError when not running.
        """
        raise NotImplementedError

    async def kill(self, ref: str, signal: str = "SIGKILL") -> None:
        """Send a signal ("SIGHUP", "HUP" or "1") to the container's init. Raises ConflictError when not running."""
        raise NotImplementedError

    async def restart(self, ref: str, timeout_s: float | None = None, signal: str | None = None) -> None:
        """Stop when running, then start."""
        raise NotImplementedError

    async def pause(self, ref: str) -> None:
        """Freeze all processes. Raises ConflictError when not running or already paused."""
        raise NotImplementedError

    async def unpause(self, ref: str) -> None:
        """Thaw. Raises ConflictError when not paused."""
        raise NotImplementedError

    async def wait(self, ref: str, condition: WaitCondition = "not-running") -> WaitResult:
        """Block until the condition holds: not running (now counts), the next exit, or removed."""
        raise NotImplementedError

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove the container, its layer, logs and, with ``volumes``, its anonymous volumes.

        Raises:
            ConflictError: it is running and ``force`` is not set, or it is being removed already.
        """
        raise NotImplementedError

    async def rename(self, ref: str, name: str) -> None:
        """Give the container another name. Raises NameConflictError, InvalidParameterError."""
        raise NotImplementedError

    def inspect(self, ref: str) -> ContainerJSON:
        """Everything about one container; the structure is a copy."""
        raise NotImplementedError

    def list(self, filters: Filters | None = None, *, all: bool = False, limit: int = 0) -> list[ContainerSummary]:  # noqa: A002 - the API's word
        """Summaries, newest first; only running ones unless ``all``, ``limit`` or a status filter says otherwise.

        Filters: ancestor, before, exited, expose, health, id, is-task, label, name, network, publish, since, status,
        volume. Raises InvalidParameterError for another.
        """
        raise NotImplementedError

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
        raise NotImplementedError

    async def attach(
        self, ref: str, *, stdin: bool = False, stdout: bool = True, stderr: bool = True, logs: bool = False
    ) -> AttachStream:
        """A duplex stream to the container's stdio. May be called before ``start`` and then sees everything."""
        raise NotImplementedError

    async def resize(self, ref: str, *, height: int, width: int) -> None:
        """Set the terminal size of a container with a TTY."""
        raise NotImplementedError

    async def exec_create(self, ref: str, config: ExecConfig) -> str:
        """Prepare a process in a running container; returns the exec ID."""
        raise NotImplementedError

    async def exec_start(self, exec_id: str, *, detach: bool = False) -> AttachStream | None:
        """Start it; the stream to its stdio unless detached."""
        raise NotImplementedError

    async def exec_resize(self, exec_id: str, *, height: int, width: int) -> None:
        """Set the terminal size of an exec with a TTY."""
        raise NotImplementedError

    def exec_inspect(self, exec_id: str) -> ExecInspect:
        """State of an exec."""
        raise NotImplementedError
