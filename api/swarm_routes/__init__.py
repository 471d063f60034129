"""The swarm half of the Engine API: /swarm, /nodes, /services, /tasks, /secrets, /configs.

Each handler turns a request into one call of the managers' control API and the answer into Engine API JSON; it
decides nothing. Paths carry no version prefix (the server strips it). Handlers raise; the server maps exceptions
with ``api.errors``.
"""

from __future__ import annotations

from aiohttp import web

from api.swarm_routes import cluster, logs, nodes, objects, services, tasks
from api.swarm_routes.context import LocalLogs, LogOptions, NetworkName, SwarmContext
from api.swarm_routes.logs import engine_logs
from api.swarm_routes.services import engine_network_name
from worker.membership.cluster_member import ClusterMember

__all__ = ["LocalLogs", "LogOptions", "NetworkName", "engine_logs", "engine_network_name", "routes"]


def routes(
    member: ClusterMember, *, local_logs: LocalLogs | None = None, network_name: NetworkName | None = None
) -> list[web.RouteDef]:
    """Every swarm route.

    Args:
        member: this host's place in a cluster; ``control()`` is asked anew for each request.
        local_logs: reads the logs of tasks that run on this host (``engine_logs`` makes one); without it log routes
            answer 501.
        network_name: names a network of this host's engine by its ID (``engine_network_name`` makes one). The CLI
            replaces the names of networks by IDs, which mean nothing to other hosts.
    """
    context = SwarmContext(member, local_logs, network_name)
    parts = (cluster, nodes, services, tasks, objects, logs)
    return [route for part in parts for route in part.routes(context)]
