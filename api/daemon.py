"""The daemon put together: the engine, this host's place in a cluster, and the HTTP API on both."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import platform
import signal
import socket
from pathlib import Path

import structlog

from api.begin_anew import begin_anew
from api.options import DEFAULT_HOST, DEFAULT_STATE
from api.server import ApiServer, DaemonInfo, ListenError
from api.startup import StartError, notify_systemd
from base.refused_threads import threads_were_refused
from base.tasks import OwnedTasks
from base.version import VERSION
from runtime.engine import Engine
from runtime.errors import EngineError
from runtime.images import ImagesError
from worker.agent.container_spec import NodeFacts
from worker.agent.contents import Contents
from worker.agent.engine_executor import EngineExecutor
from worker.membership.cluster_member import LocalNodeState
from worker.membership.description import describe
from worker.membership.host import Host
from worker.membership.node import Node
from worker.membership.zygote import Zygote
from worker.network.host import HostOverlays

WARM_AFTER_S = 0.1
"""So long after the API answers, what it did not need is made ready (see ``_warm``): its first request comes first, `swarm
init` and the first pull soon after."""

log = structlog.get_logger(__name__)


def default_cgroup_parent(state: Path) -> str:
    """``/swarm`` for the default state folder; any other folder has a name of its own, so daemons do not meet."""
    if str(state) == os.path.realpath(DEFAULT_STATE):
        return "/swarm"
    return f"/swarm-{hashlib.sha256(str(state).encode()).hexdigest()[:8]}"


async def serve(options: argparse.Namespace, zygote: Zygote) -> None:
    """Run the daemon until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    state, run = Path(options.state), Path(options.run)
    labels = dict(label.partition("=")[::2] for label in options.label)
    overlays = HostOverlays(run)
    try:
        engine = Engine(
            state=state / "engine",
            run=run / "engine",
            cgroup_parent=options.cgroup_parent or default_cgroup_parent(state),
            bridge=options.bridge,
            bridge_subnet=options.bridge_subnet,
            default_address_pools=options.default_address_pool,
            insecure_registries=options.insecure_registry,
            mirrors=options.registry_mirror,
            network_drivers=overlays.drivers,
            ways_out=overlays.ways_out,
        )
        await engine.open()
        await overlays.open()
    except (EngineError, ImagesError) as error:
        raise StartError(str(error)) from error
    executor = EngineExecutor(
        engine,
        run_dir=run / "payloads",
        node=lambda: _node_facts(node),
        networks=overlays.networks_of(engine),
    )
    await executor.open()
    node = Node(
        Host(
            state_dir=state,
            run_dir=run,
            zygote=zygote,
            executor=executor,
            describe=lambda: describe(engine_version=VERSION, labels=labels, drivers=engine.drivers()),
        )
    )
    info = DaemonInfo(
        version=VERSION,
        state=state,
        labels=options.label,
        insecure_registries=options.insecure_registry,
        mirrors=options.registry_mirror,
    )
    server = ApiServer(engine, node, info=info)
    background = OwnedTasks()
    try:
        await node.open()
        if node.info().local_node_state is LocalNodeState.INACTIVE:
            executor.replace_networks(Contents())  # what is left of a cluster that the host was in
        try:
            await server.start(options.host or [DEFAULT_HOST])
        except ListenError as error:
            raise StartError(str(error)) from error
        log.info("daemon.started", version=VERSION, pid=os.getpid(), hostname=platform.node())
        notify_systemd("READY=1")
        background.spawn(_warm(zygote, engine), name="warm")
        background.spawn(_begin_anew_when_threads_were_refused(zygote), name="threads")
        await stop.wait()
        notify_systemd("STOPPING=1")
        log.info("daemon.stopping")
    finally:
        await background.close()
        await server.close()
        await node.close()
        await executor.close()
        await overlays.close()
        await engine.close()


async def _begin_anew_when_threads_were_refused(zygote: Zygote) -> None:
    """Containers run on meanwhile, as with every end of the daemon."""
    await threads_were_refused()
    begin_anew("the system refused this process threads: gRPC cannot be relied upon any more", zygote)


def _node_facts(node: Node) -> NodeFacts:
    info = node.info()
    return NodeFacts(info.node_id, socket.gethostname(), "linux", platform.machine(), info.data_path_addr)


async def _warm(zygote: Zygote, engine: Engine) -> None:
    """Take from the first `swarm init` and the first task of this host what a start did not pay for."""
    await asyncio.sleep(WARM_AFTER_S)
    zygote.warm()
    await engine.images.warm()
