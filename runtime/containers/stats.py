"""What a container uses, sampled: the lines of ``docker stats``.

Source: moby ``daemon/stats.go``, ``api/types/container/stats.go``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import msgspec

from runtime.containers import cgroups
from runtime.containers.usage import CPUStats, Usage, read_usage
from runtime.errors import ContainerNotFoundError
from runtime.types import NEVER, ContainerJSON

PERIOD_S = 1.0

Sample = dict[str, object]
"""One line of ``GET /containers/{id}/stats``."""


class Sampler:
    """Makes samples of one container, each with the CPU counters of the one before."""

    def __init__(self, layout: cgroups.Layout) -> None:
        self._layout = layout
        self._read = NEVER
        self._cpu = CPUStats()

    def sample(self, container: ContainerJSON) -> Sample:
        """All counters are zero for a container that does not run."""
        usage = read_usage(container.State.Pid, self._layout) if container.State.Running else Usage()
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        sample: Sample = {
            "id": container.Id,
            "name": container.Name,
            "read": now,
            "preread": self._read,
            "num_procs": 0,
            "pids_stats": usage.pids_stats,
            "cpu_stats": usage.cpu_stats,
            "precpu_stats": self._cpu,
            "memory_stats": usage.memory_stats,
            "blkio_stats": {"io_service_bytes_recursive": msgspec.to_builtins(usage.blkio) or None},
            "storage_stats": {},
        }
        if usage.networks:
            sample["networks"] = usage.networks
        self._read, self._cpu = now, usage.cpu_stats
        return sample


async def samples(look: Callable[[], ContainerJSON], layout: cgroups.Layout) -> AsyncIterator[Sample]:
    """One a second until the container is removed, running or not.

    Args:
        look: the container as it is now; raises ContainerNotFoundError once it is gone.
    """
    sampler, loop = Sampler(layout), asyncio.get_running_loop()
    due = loop.time()
    while True:
        try:
            yield sampler.sample(look())
        except ContainerNotFoundError:
            return
        due = max(due + PERIOD_S, loop.time())
        await asyncio.sleep(due - loop.time())


async def one_sample(look: Callable[[], ContainerJSON], layout: cgroups.Layout, *, at_once: bool) -> Sample:
    """The second of two samples, so that it says something of the CPU; the first ``at_once``, or of a stopped one.

    Raises: ContainerNotFoundError.
    """
    sampler, container = Sampler(layout), look()
    if not at_once and container.State.Running:
        sampler.sample(container)
        await asyncio.sleep(PERIOD_S)
        container = look()
    return sampler.sample(container)
