"""/swarm: making, joining, leaving, looking at and changing the cluster (features A1.01 to A1.20)."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from api.errors import ConflictError
from api.json_codec import decode, encode, enum_from_api, parse_json
from api.lenient import convert
from api.requests import flag, json_response, read_body
from api.swarm_routes.context import (
    TIMEOUT_S,
    SwarmContext,
    empty_response,
    read_bool,
    read_message,
    read_version,
)
from pki.tls_info import cluster_tls_info
from proto.control_pb2 import GetClusterRequest, UpdateClusterRequest
from proto.objects_pb2 import Cluster, TLSInfo
from proto.specs_pb2 import ClusterSpec, NodeAvailability
from worker.membership.cluster_member import DEFAULT_LISTEN_ADDR, InitRequest, JoinRequest, NotManagerError


class InitBody(msgspec.Struct, frozen=True):
    """Body of POST /swarm/init."""

    ListenAddr: str = ""
    AdvertiseAddr: str = ""
    DataPathAddr: str = ""
    DataPathPort: int = 0
    DefaultAddrPool: list[str] = []
    SubnetSize: int = 0
    ForceNewCluster: bool = False
    AutoLockManagers: bool = False
    Availability: str = ""
    Spec: dict[str, Any] = {}  # read by the message codec


class JoinBody(msgspec.Struct, frozen=True):
    """Body of POST /swarm/join."""

    ListenAddr: str = ""
    AdvertiseAddr: str = ""
    DataPathAddr: str = ""
    RemoteAddrs: list[str] = []
    JoinToken: str = ""
    Availability: str = ""


def routes(context: SwarmContext) -> list[web.RouteDef]:
    handlers = _ClusterRoutes(context)
    return [
        web.post("/swarm/init", handlers.init),
        web.post("/swarm/join", handlers.join),
        web.post("/swarm/leave", handlers.leave),
        web.get("/swarm", handlers.inspect, allow_head=False),
        web.post("/swarm/update", handlers.update),
        web.get("/swarm/unlockkey", handlers.unlock_key, allow_head=False),
        web.post("/swarm/unlock", handlers.unlock),
    ]


class _ClusterRoutes:
    def __init__(self, context: SwarmContext) -> None:
        self._context = context

    async def init(self, request: web.Request) -> web.Response:
        value = parse_json(await read_body(request))
        body = convert(value, InitBody)
        spec = decode(ClusterSpec, body.Spec)
        node_id = await self._context.member.init(
            InitRequest(
                listen_addr=body.ListenAddr or DEFAULT_LISTEN_ADDR,
                advertise_addr=body.AdvertiseAddr,
                data_path_addr=body.DataPathAddr,
                data_path_port=body.DataPathPort,
                default_addr_pool=body.DefaultAddrPool,
                subnet_size=body.SubnetSize,
                force_new_cluster=body.ForceNewCluster,
                auto_lock_managers=body.AutoLockManagers or spec.encryption_config.auto_lock_managers,
                availability=_availability(body.Availability),
                spec=spec,
            )
        )
        return json_response(node_id)

    async def join(self, request: web.Request) -> web.Response:
        body = convert(parse_json(await read_body(request)), JoinBody)
        await self._context.member.join(
            JoinRequest(
                remote_addrs=body.RemoteAddrs,
                join_token=body.JoinToken,
                listen_addr=body.ListenAddr or DEFAULT_LISTEN_ADDR,
                advertise_addr=body.AdvertiseAddr,
                data_path_addr=body.DataPathAddr,
                availability=_availability(body.Availability),
            )
        )
        return empty_response()

    async def leave(self, request: web.Request) -> web.Response:
        await self._context.member.leave(force=flag(request, "force"))
        return empty_response()

    async def inspect(self, request: web.Request) -> web.Response:
        response = await (await self._context.control()).GetCluster(GetClusterRequest(), timeout=TIMEOUT_S)
        return json_response(swarm_json(response.cluster))

    async def update(self, request: web.Request) -> web.Response:
        spec = await read_message(request, ClusterSpec)
        version = read_version(request, "swarm")
        await (await self._context.control()).UpdateCluster(
            UpdateClusterRequest(
                version=version,
                spec=spec,
                rotate_worker_token=read_bool(request, "rotateWorkerToken"),
                rotate_manager_token=read_bool(request, "rotateManagerToken"),
                rotate_manager_unlock_key=read_bool(request, "rotateManagerUnlockKey"),
            ),
            timeout=TIMEOUT_S,
        )
        return empty_response()

    async def unlock_key(self, request: web.Request) -> web.Response:
        """Empty while autolock is off, and it always is: the managers refuse to switch it on."""
        await (await self._context.control()).GetCluster(GetClusterRequest(), timeout=TIMEOUT_S)
        return json_response({"UnlockKey": ""})

    async def unlock(self, request: web.Request) -> web.Response:
        """Refused: no manager is ever locked while autolock cannot be switched on."""
        try:
            await self._context.control()
        except NotManagerError as error:
            raise error from None
        raise ConflictError("swarm is not locked")


def swarm_json(cluster: Cluster) -> dict[str, object]:
    """`Swarm` of the Engine API: ClusterInfo and the join tokens."""
    return cluster_info_json(cluster) | {"JoinTokens": encode(cluster.root_ca.join_tokens)}


def cluster_info_json(cluster: Cluster) -> dict[str, object]:
    """`ClusterInfo`, as GET /info shows it as well: nothing secret in it."""
    root_pem = cluster.root_ca.ca_cert_pem
    return encode(cluster) | {"TLSInfo": encode(cluster_tls_info(root_pem) if root_pem else TLSInfo())}


def _availability(text: str) -> NodeAvailability.ValueType:
    number = enum_from_api(NodeAvailability.DESCRIPTOR, text)
    return NodeAvailability.ValueType(number or NodeAvailability.NODE_AVAILABILITY_ACTIVE)
