"""An engine without containers' processes, and a host outside any cluster, for tests of the HTTP layer alone."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from api.engine_routes.context import DaemonInfo
from base.times import rfc3339
from runtime.containers import views
from runtime.containers.announcements import announce
from runtime.containers.attach import AttachStream
from runtime.containers.cgroups import Layout
from runtime.containers.container import Container
from runtime.containers.limits import Capacity
from runtime.containers.record import Record, RunState
from runtime.containers.states import Event, Status
from runtime.containers.stats import Sample, one_sample, samples
from runtime.engine import Engine, Filters, WaitCondition
from runtime.errors import (
    ConflictError,
    ContainerNotFoundError,
    InvalidParameterError,
    NotModifiedError,
    NotRunningError,
)
from runtime.events import EventBus
from runtime.images import Image, ImageConfig, ImageNotFoundError, ImageStore, Progress, RegistryAuth
from runtime.images.login import login
from runtime.images.transport import Transport
from runtime.images.types import Descriptor, DistributionInspect, Platform
from runtime.networks import Endpoint, Networks
from runtime.networks.driver import Network
from runtime.types import (
    ContainerConfig,
    ContainerJSON,
    EndpointSettings,
    ExecConfig,
    ExecInspect,
    ExecProcessConfig,
    HostConfig,
    LogLine,
    NetworkingConfig,
    WaitResult,
)
from runtime.volumes import Volumes
from worker.membership.cluster_member import InitRequest, JoinRequest, LocalNodeState, NotManagerError, SwarmInfo

if TYPE_CHECKING:
    from proto.control_pb2_grpc import ControlAsyncStub

CONTAINER_ID = "ab" * 32
IMAGE_ID = "sha256:" + "cd" * 32
INFO = DaemonInfo(version="0.1.0", state=Path("/var/lib/swarm"), daemon_id="id", name="host")


class FakeStream(AttachStream):
    """Plays ``pieces``, then waits until ``finish()``; collects what is written."""

    def __init__(self, pieces: Sequence[tuple[str, bytes]] = ()) -> None:
        self._pieces: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue()
        for piece in pieces:
            self._pieces.put_nowait(piece)
        self.received = bytearray()
        self.stdin_closed = asyncio.Event()
        self.closed = asyncio.Event()

    def say(self, stream: str, data: bytes) -> None:
        self._pieces.put_nowait((stream, data))

    def finish(self) -> None:
        self._pieces.put_nowait(None)

    async def read(self) -> tuple[str, bytes] | None:
        return await self._pieces.get()

    async def write(self, data: bytes) -> None:
        self.received += data

    async def close_stdin(self) -> None:
        self.stdin_closed.set()

    def close(self) -> None:
        self.closed.set()


def make_image() -> Image:
    return Image(
        id=IMAGE_ID,
        repo_tags=("busybox:latest",),
        repo_digests=(),
        architecture="amd64",
        os="linux",
        variant="",
        created="",
        size_bytes=1000,
        config=ImageConfig(),
        diff_ids=(),
        chain_id="",
    )


class FakeImages(ImageStore):
    """Knows ``busybox:latest``; records what it was asked for."""

    def __init__(self) -> None:
        self.pulled: list[tuple[str, str | None, RegistryAuth | None]] = []
        self.progress: list[dict[str, object]] = []
        self.error: Exception | None = None
        self.error_after_progress = False
        self.loaded = b""

    def get(self, name: str) -> Image:
        if name not in ("busybox", "busybox:latest", IMAGE_ID):
            raise ImageNotFoundError(name)
        return make_image()

    def list(self, *, filters: Filters | None = None, all: bool = False) -> list[dict[str, object]]:  # noqa: A002
        return [{"Id": IMAGE_ID, "Size": 1000, "RepoTags": ["busybox:latest"]}]

    def inspect(self, name: str) -> dict[str, object]:
        return {"Id": self.get(name).id, "Size": 1000}

    async def pull(
        self,
        ref: str,
        *,
        platform: str | None = None,
        auth: RegistryAuth | None = None,
        progress: Progress | None = None,
    ) -> Image:
        if self.error is not None and not self.error_after_progress:
            raise self.error
        self.pulled.append((ref, platform, auth))
        assert progress is not None
        for message in self.progress:
            progress(message)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return make_image()

    async def distribution_inspect(self, ref: str, auth: RegistryAuth | None = None) -> DistributionInspect:
        self.pulled.append((ref, None, auth))
        target = Descriptor("application/vnd.oci.image.manifest.v1+json", "sha256:" + "d" * 64, 500)
        return DistributionInspect(target, (Platform(architecture="arm64", os="linux"),))

    async def load(self, source: AsyncIterable[bytes], *, progress: Progress | None = None) -> Any:
        async for chunk in source:
            self.loaded += chunk
        return ["busybox:latest"]

    async def login(self, auth: RegistryAuth) -> None:
        transport = Transport()
        try:
            await login(transport, auth, insecure=())
        finally:
            await transport.close()

    def layer_sizes(self, name: str) -> dict[str, int]:
        return {"sha256:layer": 1000}

    async def rootfs_size(self, container_id: str) -> int:
        return 10


def _make_container() -> Container:
    config = ContainerConfig(Image="busybox", Cmd=["sh"], Labels={"a": "b"}, OpenStdin=True, StdinOnce=True)
    record = Record(
        ID=CONTAINER_ID,
        Name="web",
        CreatedNs=1_000_000_000,
        Created="2026-01-01T00:00:00Z",
        ImageID=IMAGE_ID,
        Config=config,
        HostConfig=HostConfig(),
        Endpoints={"bridge": EndpointSettings()},
        Mounts=[],
    )
    return Container(record, RunState(), Path("/nowhere"))


CAPACITY = Capacity(cpus=2, cpuset_cpus="0-1", cpuset_mems="0", swap=False, swappiness=False, oom_kill_disable=False)


class FakeNetworks(Networks):
    """One network, ``back``."""

    def __init__(self) -> None:
        self._table = {"back": Network(ID="b" * 64, Name="back", Driver="bridge", Created="")}


class FakeEngine(Engine):
    """One container, ``web``, without processes; a test decides its life by ``end``.

    Its record, states and views are the real ones; ``tests/contract/test_engine.py`` says what it has in common with
    the real engine. Not: a second container, names and their conflicts, what a container prints by itself.
    """

    def __init__(self) -> None:
        self.images = self.fake_images = FakeImages()
        self.events = EventBus()
        self.volumes = Volumes(Path("/nowhere"), self.events)  # the real ones: none are there
        self.container: Container | None = _make_container()
        self.create_error: Exception | None = None
        self.created: list[tuple[ContainerConfig, HostConfig | None, NetworkingConfig | None, str | None]] = []
        self.calls: list[tuple[object, ...]] = []
        self.networks = FakeNetworks()
        self.connected: list[tuple[str, str, EndpointSettings]] = []
        self.stop_called, self.stop_may_end, self.stopped = asyncio.Event(), asyncio.Event(), asyncio.Event()

        self.disk_warnings: list[str] = []
        self.lines: list[LogLine] = []
        self.follow_ended = asyncio.Event()
        self.log_error: Exception | None = None
        self.stream = FakeStream()
        self.exec_error: Exception | None = None
        self.filters: Filters | None = None

    def warnings(self) -> list[str]:
        return self.disk_warnings

    @property
    def capacity(self) -> Capacity:
        return CAPACITY

    def security_options(self) -> list[str]:
        return ["name=seccomp,profile=builtin"]

    def drivers(self) -> dict[str, list[str]]:
        return {"Log": ["json-file"], "Network": ["bridge"], "Volume": ["local"]}

    def _find(self, ref: str) -> Container:
        if self.container is None or ref not in (CONTAINER_ID, CONTAINER_ID[:12], "web", "/web"):
            raise ContainerNotFoundError(ref)
        return self.container

    def set_tty(self) -> None:
        """The container has a terminal."""
        record = self._find("web").record
        record.Config = msgspec.structs.replace(record.Config, Tty=True)

    def end(self, exit_code: int) -> None:
        """Its process ends."""
        container = self._find("web")
        container.state.ExitCode, container.state.FinishedAt = exit_code, rfc3339(time.time_ns())
        container.move(Event.EXITED, exit_code=exit_code)
        announce(self.events, container, "die", exitCode=str(exit_code))
        container.notify("exit")

    async def create(
        self,
        config: ContainerConfig,
        host: HostConfig | None = None,
        networking: NetworkingConfig | None = None,
        name: str | None = None,
    ) -> tuple[str, list[str]]:
        if self.create_error is not None:
            raise self.create_error
        self.images.get(config.Image)
        self.created.append((config, host, networking, name))
        self.container = _make_container()
        announce(self.events, self.container, "create")
        return CONTAINER_ID, ["careful"]

    async def start(self, ref: str) -> None:
        container = self._find(ref)
        if container.running:
            raise NotModifiedError("container already started")
        state = container.state
        state.Pid, state.ExitCode, state.StartedAt = 1, 0, rfc3339(time.time_ns())
        state.Endpoints = {"bridge": Endpoint(NetworkID="f" * 64, ID="e" * 64, Addresses=["172.17.0.2/16"])}
        container.move(Event.STARTED)
        announce(self.events, container, "start")

    async def stop(self, ref: str, timeout_s: float | None = None, signal: str | None = None) -> None:
        container = self._find(ref)
        self.calls.append(("stop", container.id, timeout_s, signal))
        if not container.running:
            raise NotModifiedError("container already stopped")
        self.stop_called.set()
        await self.stop_may_end.wait()
        self.end(143)
        announce(self.events, container, "stop")
        self.stopped.set()

    async def update(self, ref: str, wanted: HostConfig) -> None:
        self.calls.append(("update", self._find(ref).id, wanted))

    async def connect(self, network: str, ref: str, settings: EndpointSettings | None = None) -> None:
        made = (self.networks.find(network).Name, self._find(ref).id, settings or EndpointSettings())
        self.connected.append(made)

    async def disconnect(self, network: str, ref: str, *, force: bool = False) -> None:
        gone = (self._find(ref).id, self.networks.find(network).Name)
        self.connected = [each for each in self.connected if each[1::-1] != gone]

    async def unlink(self, ref: str) -> None:
        self.calls.append(("unlink", ref))

    async def kill(self, ref: str, signal: str = "SIGKILL") -> None:
        container = self._find(ref)
        if not container.running:
            raise ConflictError(f"cannot kill container: {ref}: container {container.id} is not running")
        self.calls.append(("kill", signal))
        announce(self.events, container, "kill", signal=signal)
        if signal == "SIGKILL":
            self.end(137)

    async def pause(self, ref: str) -> None:
        container = self._find(ref)
        if not container.running:
            raise NotRunningError(container.id)
        if container.state.Status is Status.PAUSED:
            raise ConflictError(f"container {container.id} is already paused")
        container.move(Event.PAUSED)
        announce(self.events, container, "pause")

    async def unpause(self, ref: str) -> None:
        container = self._find(ref)
        if container.state.Status is not Status.PAUSED:
            raise ConflictError(f"container {container.id} is not paused")
        container.move(Event.UNPAUSED)
        announce(self.events, container, "unpause")

    async def wait(self, ref: str, condition: WaitCondition = "not-running") -> WaitResult:
        container = self._find(ref)
        if condition == "not-running" and not container.running:
            return WaitResult(StatusCode=container.state.ExitCode)
        return await container.wait("removed" if condition == "removed" else "exit")

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        container = self._find(ref)
        self.calls.append(("remove", container.id, force, volumes))
        if container.running and not force:
            raise ConflictError(f'cannot remove container "/web": container is {container.state.Status}: stop it')
        if container.running:
            self.end(137)
        self.container = None
        announce(self.events, container, "destroy")
        container.notify("removed")

    def inspect(self, ref: str) -> ContainerJSON:
        return views.inspect(self._find(ref), network_id=lambda _name: "f" * 64)

    def list(self, filters: Filters | None = None, *, all: bool = False, limit: int = 0) -> Any:  # noqa: A002
        self.filters = filters
        chosen = views.ContainerFilter(filters or {}, lookup=self._find, image_id=lambda _name: IMAGE_ID)
        container, now = self.container, dt.datetime.now(dt.UTC)
        if container is None or not (all or container.running or chosen.wants_stopped) or not chosen.takes(container):
            return []
        return [views.summary(container, network_id=lambda _name: "f" * 64, now=now)]

    async def logs(
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
        self._find(ref)
        self.calls.append(("logs", stdout, stderr, follow, since_ns, until_ns, tail))
        if self.log_error is not None:
            raise self.log_error
        for line in self.lines:
            yield line
        if follow:
            await self.follow_ended.wait()

    async def attach(
        self, ref: str, *, stdin: bool = False, stdout: bool = True, stderr: bool = True, logs: bool = False
    ) -> AttachStream:
        self._find(ref)
        self.calls.append(("attach", stdin, stdout, stderr, logs))
        return self.stream

    def detached(self, ref: str) -> None:
        announce(self.events, self._find(ref), "detach")

    def stats(self, ref: str) -> AsyncIterator[Sample]:
        container_id = self._find(ref).id
        return samples(lambda: self.inspect(container_id), Layout(2, {}, {}))

    async def stats_once(self, ref: str, *, at_once: bool) -> Sample:
        return await one_sample(lambda: self.inspect(ref), Layout(2, {}, {}), at_once=at_once)

    async def top(self, ref: str, ps_args: str) -> Any:
        container = self._find(ref)
        if not container.running:
            raise NotRunningError(container.id)
        return ["PID"], [["1"]]

    async def exec_create(self, ref: str, config: ExecConfig) -> str:
        if not config.Cmd:
            raise InvalidParameterError("No exec command specified")
        self.calls.append(("exec_create", self._find(ref).id, config))
        return "e" * 64

    async def exec_start(self, exec_id: str, *, detach: bool = False) -> AttachStream | None:
        self.calls.append(("exec_start", exec_id, detach))
        if self.exec_error is not None:
            raise self.exec_error
        return None if detach else self.stream

    def exec_inspect(self, exec_id: str) -> ExecInspect:
        return ExecInspect(
            ID=exec_id,
            Running=False,
            ExitCode=None,
            ProcessConfig=ExecProcessConfig(
                tty=self._find("web").record.Config.Tty, entrypoint="sh", arguments=[], privileged=False
            ),
            OpenStdin=True,
            OpenStderr=True,
            OpenStdout=True,
            CanRemove=False,
            ContainerID=CONTAINER_ID,
            DetachKeys="",
            Pid=0,
        )


class LoneHost:
    """A ClusterMember outside any cluster."""

    def __init__(self, info: SwarmInfo | None = None) -> None:
        self._info = info or SwarmInfo(local_node_state=LocalNodeState.INACTIVE)

    def info(self) -> SwarmInfo:
        return self._info

    async def init(self, request: InitRequest) -> str:
        raise NotImplementedError

    async def join(self, request: JoinRequest) -> None:
        raise NotImplementedError

    async def leave(self, *, force: bool) -> None:
        raise NotImplementedError

    def control(self) -> ControlAsyncStub:
        raise NotManagerError("This node is not a swarm manager.")

    async def wait_control(self, timeout_s: float) -> ControlAsyncStub:
        return self.control()
