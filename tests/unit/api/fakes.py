"""An engine without containers' processes, and a host outside any cluster, for tests of the HTTP layer alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.engine_routes.context import DaemonInfo
from runtime.containers.attach import AttachStream
from runtime.containers.cgroups import Layout
from runtime.containers.stats import Sample, one_sample, samples
from runtime.containers.types import (
    ContainerConfig,
    ContainerJSON,
    ContainerState,
    ContainerSummary,
    EndpointSettings,
    ExecConfig,
    ExecInspect,
    ExecProcessConfig,
    GraphDriver,
    HostConfig,
    LogLine,
    NetworkingConfig,
    NetworkSettings,
    SummaryHostConfig,
    SummaryNetworkSettings,
    WaitResult,
)
from runtime.engine import Engine, Filters, WaitCondition
from runtime.errors import ConflictError, ContainerNotFoundError, NotModifiedError
from runtime.events import EventBus
from runtime.images import Image, ImageConfig, ImageNotFoundError, ImageStore, Progress, RegistryAuth
from runtime.images.login import login
from runtime.images.transport import Transport
from runtime.images.types import Descriptor, DistributionInspect, Platform
from runtime.volumes import Volume, Volumes
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


class FakeVolumes(Volumes):
    """No volumes."""

    def __init__(self) -> None:
        self.users = lambda _name: ()

    def list(self, filters: Filters | None = None) -> list[Volume]:
        return []


class FakeEngine(Engine):
    """One container, ``web``, whose life a test decides."""

    def __init__(self) -> None:
        self.images = self.fake_images = FakeImages()
        self.volumes = FakeVolumes()
        self.events = EventBus()
        self.running = False
        self.tty = False
        self.create_error: Exception | None = None
        self.created: list[tuple[ContainerConfig, HostConfig | None, NetworkingConfig | None, str | None]] = []
        self.calls: list[tuple[object, ...]] = []
        self.ended = asyncio.Event()
        self.stop_called, self.stop_may_end, self.stopped = asyncio.Event(), asyncio.Event(), asyncio.Event()

        self.lines: list[LogLine] = []
        self.follow_ended = asyncio.Event()
        self.log_error: Exception | None = None
        self.stream = FakeStream()
        self.exec_error: Exception | None = None
        self.filters: Filters | None = None

    def _find(self, ref: str) -> str:
        if ref not in (CONTAINER_ID, CONTAINER_ID[:12], "web"):
            raise ContainerNotFoundError(ref)
        return CONTAINER_ID

    async def create(
        self,
        config: ContainerConfig,
        host: HostConfig | None = None,
        networking: NetworkingConfig | None = None,
        name: str | None = None,
    ) -> tuple[str, list[str]]:
        if self.create_error is not None:
            raise self.create_error
        self.created.append((config, host, networking, name))
        return CONTAINER_ID, ["careful"]

    async def start(self, ref: str) -> None:
        self._find(ref)
        if self.running:
            raise NotModifiedError("container already started")
        self.running = True

    async def stop(self, ref: str, timeout_s: float | None = None, signal: str | None = None) -> None:
        self.calls.append(("stop", self._find(ref), timeout_s, signal))
        self.stop_called.set()
        await self.stop_may_end.wait()
        self.stopped.set()

    async def update(self, ref: str, wanted: HostConfig) -> None:
        self.calls.append(("update", self._find(ref), wanted))

    async def kill(self, ref: str, signal: str = "SIGKILL") -> None:
        self._find(ref)
        if not self.running:
            raise ConflictError(f"cannot kill container: {ref}: container {CONTAINER_ID} is not running")
        self.calls.append(("kill", signal))

    async def wait(self, ref: str, condition: WaitCondition = "not-running") -> WaitResult:
        self._find(ref)
        await self.ended.wait()
        return WaitResult(StatusCode=3)

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        self.calls.append(("remove", self._find(ref), force, volumes))

    def inspect(self, ref: str) -> ContainerJSON:
        return ContainerJSON(
            Id=self._find(ref),
            Created="2026-01-01T00:00:00Z",
            Path="sh",
            Args=[],
            State=ContainerState(Running=self.running),
            Image=IMAGE_ID,
            ResolvConfPath="",
            HostnamePath="",
            HostsPath="",
            LogPath="",
            Name="/web",
            RestartCount=0,
            Driver="overlay2",
            Platform="linux",
            MountLabel="",
            ProcessLabel="",
            AppArmorProfile="",
            ExecIDs=None,
            HostConfig=HostConfig(),
            GraphDriver=GraphDriver(),
            Mounts=[],
            Config=ContainerConfig(Tty=self.tty, OpenStdin=True, StdinOnce=True),
            NetworkSettings=NetworkSettings(Networks={"bridge": EndpointSettings(IPAddress="172.17.0.2")}),
        )

    def list(self, filters: Filters | None = None, *, all: bool = False, limit: int = 0) -> Any:  # noqa: A002
        self.filters = filters
        return [
            ContainerSummary(
                Id=CONTAINER_ID,
                Names=["/web"],
                Image="busybox",
                ImageID=IMAGE_ID,
                Command="sh",
                Created=1,
                Ports=[],
                Labels={"a": "b"},
                State="running" if self.running else "exited",
                Status="",
                HostConfig=SummaryHostConfig(NetworkMode="bridge"),
                NetworkSettings=SummaryNetworkSettings(Networks={}),
                Mounts=[],
            )
        ]

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
        self.calls.append(("attach", stdin, stdout, stderr, logs))
        return self.stream

    def detached(self, ref: str) -> None:
        self.events.publish("container", "detach", self._find(ref), {"name": "web"})

    def stats(self, ref: str) -> AsyncIterator[Sample]:
        container_id = self._find(ref)
        return samples(lambda: self.inspect(container_id), Layout(2, {}, {}))

    async def stats_once(self, ref: str, *, at_once: bool) -> Sample:
        return await one_sample(lambda: self.inspect(ref), Layout(2, {}, {}), at_once=at_once)

    async def top(self, ref: str, ps_args: str) -> Any:
        if not self.running:
            raise ConflictError(f"container {self._find(ref)} is not running")
        return ["PID"], [["1"]]

    async def exec_create(self, ref: str, config: ExecConfig) -> str:
        self.calls.append(("exec_create", self._find(ref), config))
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
            ProcessConfig=ExecProcessConfig(tty=self.tty, entrypoint="sh", arguments=[], privileged=False),
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
