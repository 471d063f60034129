"""The swarm half of the Engine API: /swarm, /nodes, /services, /tasks, /secrets, /configs.

Each handler turns a request into one call of the managers' control API and the answer into Engine API JSON; it
decides nothing. Paths carry no version prefix (the server strips it). Handlers raise; the server maps exceptions
with ``api.errors``.
"""

from __future__ import annotations

from aiohttp import web

from api.swarm_routes import cluster, logs, nodes, payloads, services, tasks
from api.swarm_routes.context import LocalLogs, LogOptions, SwarmContext
from api.swarm_routes.logs import engine_logs
from worker.membership import ClusterMember

__all__ = ["LocalLogs", "LogOptions", "engine_logs", "routes"]


def routes(member: ClusterMember, *, local_logs: LocalLogs | None = None) -> list[web.RouteDef]:
    """Every swarm route.

    Args:
        member: this host's place in a cluster; ``control()`` is asked anew for each request.
        local_logs: reads the logs of tasks that run on this host (``engine_logs`` makes one); without it log routes
            answer 501.
    """
    context = SwarmContext(member, local_logs)
    parts = (cluster, nodes, services, tasks, payloads, logs)
    return [route for part in parts for route in part.routes(context)]
