"""A host for a node without an engine: its own loopback address, folders and zygote; its managers are real."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import manager.listener
import manager.main
from proto.objects_pb2 import NodeDescription
from tests.support_addresses import loopback
from tests.unit.agent.fakes import FakeExecutor
from worker.membership.host import Host
from worker.membership.manager_lock import lock_holder
from worker.membership.node import Node
from worker.membership.state_folder import MANAGER_LOCK
from worker.membership.zygote import Zygote

PATIENCE_S = 100.0
"""What a cluster waits for its managers here, however slow the machine is."""

_numbers = itertools.count(1)


def be_manager(payload: bytes) -> int:
    """What the zygote runs."""
    manager.main.BOOTSTRAP_TIMEOUT_S = PATIENCE_S
    manager.listener.HANDSHAKE_TIMEOUT_S = PATIENCE_S
    return manager.main.run(payload)


@dataclass
class Place:
    """One host. ``node`` is its daemon's; ``restart`` makes another on the same folders."""

    folder: Path
    address: str
    host: Host
    node: Node = field(init=False)

    def __post_init__(self) -> None:
        self.node = Node(self.host, join_timeout_s=PATIENCE_S)

    @property
    def listen(self) -> str:
        """Addresses of 127/8 are all this host's own: nodes share the ports that every node listens on."""
        return f"{self.address}:2377"

    @property
    def state(self) -> set[str]:
        """Names in the state folder, but for what the daemon itself or a manager that has ended leaves there."""
        return {path.name for path in self.host.state_dir.iterdir()} - {MANAGER_LOCK}

    @property
    def manager_pid(self) -> int | None:
        """The manager process that runs here."""
        return lock_holder(self.host.state_dir / MANAGER_LOCK)

    async def restart(self) -> None:
        """The daemon stops and is started again."""
        await self.node.close()
        self.node = Node(self.host, join_timeout_s=PATIENCE_S)
        await self.node.open()

    async def restart_after_kill(self) -> None:
        """The daemon is killed, its manager runs on, and it is started again."""
        ours = [task for task in asyncio.all_tasks() if task.get_name() in ("participation", "manager.watch")]
        for task in ours:
            task.cancel()
        await asyncio.wait(ours)
        self.node = Node(self.host, join_timeout_s=PATIENCE_S)
        await self.node.open()


@contextlib.asynccontextmanager
async def place(folder: Path) -> AsyncIterator[Place]:
    """A host; whatever runs on it ends with the block."""
    state, run_dir = folder / "state", folder / "run"
    state.mkdir(parents=True)
    run_dir.mkdir()
    # Not forked here: it would have gRPC's locks and memory without the threads that go with them.
    zygote = Zygote("tests.unit.worker.support:be_manager")
    made = Place(folder, loopback(next(_numbers)), Host(state, run_dir, zygote, FakeExecutor(), NodeDescription))
    await made.node.open()
    try:
        yield made
    finally:
        try:
            await made.node.close()
        finally:
            zygote.close()
            if made.manager_pid is not None:
                os.kill(made.manager_pid, signal.SIGKILL)
