"""The executor on a real engine, put together as the daemon does."""

from __future__ import annotations

from pathlib import Path

from runtime.engine import Engine
from worker.agent.container_spec import NodeFacts
from worker.agent.engine_executor import STARTS_MAX, EngineExecutor
from worker.network.host import HostOverlays


def engine_executor(engine: Engine, run_dir: Path, *, starts_max: int = STARTS_MAX) -> EngineExecutor:
    """Of the node ``n1`` on the host ``host``, which is on no network of a cluster."""
    return EngineExecutor(
        engine,
        run_dir=run_dir,
        node=lambda: NodeFacts("n1", "host"),
        networks=HostOverlays(run_dir).networks_of(engine),
        starts_max=starts_max,
    )
