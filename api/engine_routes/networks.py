"""/networks: those of this host and, on a manager, those of the cluster.

Source: moby ``api/server/router/network/network_routes.go``.
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from api.engine_routes.context import EngineContext
from api.lenient import convert
from api.requests import filters_of, flag, json_body, json_response, no_content
from api.swarm_routes.networks import OVERLAY, SCOPE, SwarmNetworks
from api.versions import APIVersion, version_of
from runtime.errors import NetworkNotFoundError
from runtime.network_types import NetworkCreateRequest, NetworkCreateResponse, NetworkPruneReport, NetworkResource

_IPV4_CHOICE_SINCE = APIVersion(1, 48)


class NetworkRoutes:
    """Handlers of networks."""

    def __init__(self, context: EngineContext) -> None:
        self._engine, self._operations = context.engine, context.operations
        self._cluster = SwarmNetworks(context.member)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/networks", self.list),
            web.get("/networks/", self.list),
            web.post("/networks/create", self.create),
            web.post("/networks/prune", self.prune),
            web.get("/networks/{id}", self.inspect),
            web.delete("/networks/{id}", self.remove),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """Without containers, as dockerd does since 1.28: inspect shows them.

        What the cluster has no longer is gone, though tasks that are being stopped are still on this host's part of it: a
        client that makes what is not listed (``stack deploy`` right after ``stack rm``) would take it for there.
        """
        cluster = await self._cluster.all()
        found = self._engine.networks.list(filters_of(request), cluster or ())
        if cluster is not None:
            known = {network.Id for network in cluster}
            found = [network for network in found if network.Scope != SCOPE or network.Id in known]
        return json_response([msgspec.structs.replace(network, Containers={}) for network in found])

    async def inspect(self, request: web.Request) -> web.Response:
        flag(request, "verbose")  # what it has to show, services and their tasks, is not served yet
        return json_response(await self._find(request.match_info["id"], request.query.get("scope", "")))

    async def _find(self, ref: str, scope: str = "") -> NetworkResource:
        """A full ID or name of this host's goes before those of the cluster; a part of an ID comes last."""
        try:
            here = self._engine.networks.inspect(ref)
        except NetworkNotFoundError:
            here = None
        if here is not None and scope in ("", here.Scope) and ref in (here.Id, here.Name):
            there = await self._cluster.find(ref) if here.Scope == SCOPE else None
            return here if there is None or there.Id == here.Id else there  # another of that name was made since
        if here is not None and scope == SCOPE and self._engine.networks.is_predefined(here.Name):
            return msgspec.structs.replace(here, Scope=SCOPE)  # services may be on it, and clients ask so
        there = await self._cluster.find(ref)
        for found in (there, here):
            if found is not None and scope in ("", found.Scope):
                return found
        raise NetworkNotFoundError(ref)

    async def create(self, request: web.Request) -> web.Response:
        body = convert(await json_body(request), NetworkCreateRequest)
        if version_of(request) < _IPV4_CHOICE_SINCE:
            body = msgspec.structs.replace(body, EnableIPv4=None)
        if body.Driver == OVERLAY or body.Scope == SCOPE:
            return json_response(NetworkCreateResponse(Id=await self._cluster.create(body)), status=201)
        made = await self._operations.run_to_end(self._engine.networks.create(body), name="network.create")
        return json_response(made, status=201)

    async def remove(self, request: web.Request) -> web.Response:
        found = await self._find(request.match_info["id"])
        if found.Scope == SCOPE:
            await self._cluster.remove(found.Id)
            return no_content()
        change = self._engine.networks.remove(found.Id)
        await self._operations.run_to_end(change, name="network.remove")
        return no_content()

    async def prune(self, request: web.Request) -> web.Response:
        filters = filters_of(request)
        change = self._engine.networks.prune(filters)
        report = await self._operations.run_to_end(change, name="network.prune")
        unused = self._engine.networks.prunable(filters, await self._cluster.all() or ())
        deleted = [*(report.NetworksDeleted or ()), *await self._cluster.prune(unused)]
        return json_response(NetworkPruneReport(NetworksDeleted=deleted or None))
