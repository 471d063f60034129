"""An engine in a process of its own, to be killed: ``python daemon.py STATE RUN CGROUP``.

Starts "steady", which prints the time for ever, and "ending", which exits with 9 once /shared/go exists; makes a
network of both address families, and says "ready".
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from runtime.engine import Engine
from runtime.network_types import NetworkCreateRequest
from runtime.types import ContainerConfig, HostConfig, PortBinding
from tests.support_images import BUSYBOX_TAG


async def main(state: Path, run: Path, cgroup: str, shared: str) -> None:
    engine = Engine(state=state, run=run, cgroup_parent=cgroup)
    await engine.open()
    steady, _ = await engine.create(
        ContainerConfig(Image=BUSYBOX_TAG, Cmd=["sh", "-c", "while :; do date +%s%N; sleep 0.02; done"]),
        HostConfig(PortBindings={"80/tcp": [PortBinding(HostPort="8080")]}),
        name="steady",
    )
    ending, _ = await engine.create(
        ContainerConfig(Image=BUSYBOX_TAG, Cmd=["sh", "-c", "while [ ! -e /shared/go ]; do sleep 0.02; done; exit 9"]),
        HostConfig(NetworkMode="none", Binds=[f"{shared}:/shared"]),
        name="ending",
    )
    for container_id in (steady, ending):
        await engine.start(container_id)
    await engine.networks.create(NetworkCreateRequest(Name="back", EnableIPv6=True))
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
