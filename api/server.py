"""The HTTP server of the daemon: the Docker Engine API over unix sockets and loopback TCP.

A handler is cancelled when its client goes away; changes of the engine go on nevertheless (``EngineContext.operations``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import structlog
from aiohttp import web

from api import browsers, engine_routes, swarm_routes
from api.application import build
from api.engine_routes.context import DaemonInfo, EngineContext
from api.sockets import Listener, ListenError, listen
from api.versions import MAX_VERSION
from base.tasks import OwnedTasks
from runtime.engine import Engine
from worker.membership.cluster_member import ClusterMember

__all__ = ["ApiServer", "DaemonInfo", "ListenError"]

log = structlog.get_logger(__name__)

LINE_BYTES_MAX = 64 * 1024
HANDLER_GRACE_S = 1.0
OPERATION_GRACE_S = 15.0


class ApiServer:
    """Serves the Engine API of one daemon.

    Args:
        engine: opened; stays open, it is closed by whoever opened it.
        member: this host's place in a cluster.
        info: what /version and /info tell about the daemon.
    """

    def __init__(self, engine: Engine, member: ClusterMember, *, info: DaemonInfo) -> None:
        self._operations = OwnedTasks()
        self._context = EngineContext(engine, member, info, self._operations)
        self._runner: web.AppRunner | None = None
        self._listeners: list[Listener] = []

    def application(self, hosts: Sequence[str]) -> web.Application:
        """Everything but the sockets at these host URLs."""
        routes = [
            *engine_routes.routes(self._context),
            *swarm_routes.routes(
                self._context.member,
                local_logs=swarm_routes.engine_logs(self._context.engine),
                network_name=swarm_routes.engine_network_name(self._context.engine),
            ),
        ]
        server = f"swarmd/{self._context.info.version} (linux)"
        return build(routes, server=server, our_names=browsers.names_of(hosts))

    async def start(self, hosts: Sequence[str]) -> None:
        """Listen on every host URL: ``unix:///path`` or ``tcp://host:port`` (loopback only, for want of TLS).

        Raises: ListenError: a URL cannot be used, or another daemon answers there; then none is listened on.
        """
        with contextlib.ExitStack() as opened:
            listeners: list[Listener] = []
            for host in hosts:
                for listener in await asyncio.to_thread(listen, host):
                    opened.callback(listener.close)
                    listeners.append(listener)
            self._runner = web.AppRunner(
                self.application(hosts),
                access_log=None,
                handler_cancellation=True,
                shutdown_timeout=HANDLER_GRACE_S,
                max_line_size=LINE_BYTES_MAX,
                max_field_size=LINE_BYTES_MAX,
            )
            await self._runner.setup()
            for listener in listeners:
                await web.SockSite(self._runner, listener.sock).start()
            self._listeners = listeners
            opened.pop_all()
        log.info("api.started", hosts=list(hosts), api_version=str(MAX_VERSION))

    async def close(self) -> None:
        """Stop listening, end streams, let changes that are under way finish for a while. Idempotent."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()
        await self._operations.close(grace_s=OPERATION_GRACE_S)
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
