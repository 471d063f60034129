"""Whole lives of containers, for ever, in a process to be killed: ``python -m tests.unit.engine.lives STATE RUN CGROUP``.

Says "ready" when the first have begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from runtime.containers.attach import AttachStream
from runtime.engine import Engine
from runtime.errors import ConflictError, EngineError
from runtime.network_types import NetworkCreateRequest
from runtime.types import ContainerConfig, EndpointSettings, ExecConfig, HostConfig, Mount, PortBinding, RestartPolicy
from tests.support_images import BUSYBOX_TAG

POLICIES = ("no", "always", "on-failure")


async def live(engine: Engine, number: int) -> None:
    name, volume = f"life{number}", f"volume{number}"
    host = HostConfig(
        Mounts=[Mount(Type="volume", Source=volume, Target="/data")],
        PortBindings={"80/tcp": [PortBinding(HostPort=str(9000 + number))]},
        RestartPolicy=RestartPolicy(Name=POLICIES[number]),
    )
    while True:
        with contextlib.suppress(EngineError):
            await engine.remove(name, force=True)
            await engine.volumes.remove(volume)
        await engine.create(ContainerConfig(Image=BUSYBOX_TAG, Cmd=["sleep", "1000"]), host, name=name)
        await engine.start(name)
        await engine.connect("net", name, EndpointSettings(GwPriority=number))
        async with await _attached(engine, name) as stream:
            while await stream.read() is not None:
                pass
        await engine.pause(name)
        await engine.disconnect("bridge", name)
        await engine.unpause(name)
        await engine.connect("bridge", name)
        await engine.restart(name, timeout_s=0)
        await engine.stop(name, timeout_s=0)


async def _attached(engine: Engine, name: str) -> AttachStream:
    stream = await engine.exec_start(await engine.exec_create(name, ExecConfig(Cmd=["true"], AttachStdout=True)))
    assert stream is not None
    return stream


async def main(state: Path, run: Path, cgroup: str) -> None:
    engine = Engine(state=state, run=run, cgroup_parent=cgroup)
    await engine.open()
    with contextlib.suppress(ConflictError):
        await engine.networks.create(NetworkCreateRequest(Name="net"))
    print("ready", flush=True)
    async with asyncio.TaskGroup() as group:
        for number in range(len(POLICIES)):
            group.create_task(live(engine, number))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
