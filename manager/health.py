"""The Health service: what this manager knows of itself."""

from __future__ import annotations

from typing import Any  # of a context: its handler's messages

import grpc.aio

from manager.consensus.port import Consensus
from proto.health_pb2 import HealthCheckRequest, HealthCheckResponse
from proto.health_pb2_grpc import HealthServicer


class HealthService(HealthServicer):
    def __init__(self, consensus: Consensus) -> None:
        self._consensus = consensus

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
