"""The Health service: what this manager knows of itself, and of hosts that another one has no answer from."""

from __future__ import annotations

import asyncio
from typing import Any  # of a context: its handler's messages

import grpc
import grpc.aio

from manager.consensus.port import Consensus
from manager.dispatcher.looking import Answer, Looker
from proto.health_pb2 import HealthCheckRequest, HealthCheckResponse, LookRequest, LookResponse
from proto.health_pb2_grpc import HealthServicer

LOOK_HOSTS_MAX = 256
"""In one request. As many are looked at in one go, so that the answer comes within ``looking.LOOK_S`` and a little."""


class HealthService(HealthServicer):
    def __init__(self, consensus: Consensus, looker: Looker) -> None:
        self._consensus, self._looker = consensus, looker

    async def Check(  # noqa: N802 - the name is the RPC's
        self, request: HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> HealthCheckResponse:
        leader = self._consensus.leader
        return HealthCheckResponse(
            node_id=self._consensus.node_id,
            leader_id=leader.leader_id or "",
            term=leader.term,
            applied_index=self._consensus.applied_index,
            is_leader=leader.is_leader,
        )

    async def Look(  # noqa: N802 - the name is the RPC's
        self, request: LookRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> LookResponse:
        if len(request.hosts) > LOOK_HOSTS_MAX:
            message = f"{len(request.hosts)} hosts to look at, at most {LOOK_HOSTS_MAX}"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        found = await asyncio.gather(*(self._looker.look(host.addr, host.port) for host in request.hosts))
        answers = list(zip(request.hosts, found, strict=True))
        return LookResponse(
            answered=[host.node_id for host, answer in answers if answer is Answer.ANSWERED],
            silent=[host.node_id for host, answer in answers if answer is Answer.SILENT],
        )
