"""The engine half of the Engine API: /containers, /exec, /images, /networks, /volumes, /system, /events.

Each handler reads the request, calls ``runtime.engine.Engine`` or a part of it, and writes the answer; it decides
nothing. Paths carry no version prefix (the router strips it). Handlers raise; the server maps exceptions with
``api.errors``.
"""

from __future__ import annotations

from aiohttp import web

from api.engine_routes.auth import AuthRoutes
from api.engine_routes.container_io import ContainerIORoutes
from api.engine_routes.containers import ContainerRoutes
from api.engine_routes.context import EngineContext
from api.engine_routes.endpoints import EndpointRoutes
from api.engine_routes.events import EventRoutes
from api.engine_routes.images import ImageRoutes
from api.engine_routes.networks import NetworkRoutes
from api.engine_routes.stats import StatsRoutes
from api.engine_routes.system import SystemRoutes
from api.engine_routes.volumes import VolumeRoutes

__all__ = ["routes"]


def routes(context: EngineContext) -> list[web.RouteDef]:
    """Every engine route."""
    parts = (
        ContainerRoutes(context),
        ContainerIORoutes(context),
        StatsRoutes(context),
        ImageRoutes(context),
        NetworkRoutes(context),
        EndpointRoutes(context),
        VolumeRoutes(context),
        SystemRoutes(context),
        EventRoutes(context),
        AuthRoutes(context),
    )
    return [route for part in parts for route in part.routes()]
