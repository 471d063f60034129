"""What other managers say: whether they reach hosts that this one, the leader, has no answer from."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence

import grpc.aio
import structlog

from manager.consensus.port import Consensus, ConsensusError
from manager.dispatcher.looking import LOOK_S
from manager.dispatcher.watching import LookTarget
from manager.health import LOOK_HOSTS_MAX
from proto.ca_pb2 import ManagerAddress
from proto.health_pb2 import LookRequest, LookResponse
from proto.health_pb2_grpc import HealthStub

log = structlog.get_logger(__name__)

ASKED_MAX = 2
"""So many of the others are asked, by chance: one may be in the same trouble."""

ANSWER_TIMEOUT_S = LOOK_S + 2.0
TRANSFER_TIMEOUT_S = 2.0


class OtherManagers:
    """The managers that Raft hears now, but for this one."""

    def __init__(
        self,
        consensus: Consensus,
        managers: Callable[[], Sequence[ManagerAddress]],
        channels: Callable[[str], grpc.aio.Channel],
    ) -> None:
        """
        Args:
            managers: all there are, this one included.
            channels: makes one to ``host:port`` of a manager's gRPC server; closed here.
        """
        self._consensus, self._managers, self._channels = consensus, managers, channels

    async def ask(self, hosts: Sequence[LookTarget]) -> Mapping[str, bool]:
        """Have them look; by node ID whether any had an answer. A node is missing when nobody could look."""
        asked = {host.node_id for host in hosts}
        heard = self._consensus.reachable
        others = [
            manager.grpc_addr
            for manager in self._managers()
            if manager.node_id in heard and manager.node_id != self._consensus.node_id and manager.node_id not in asked
        ]
        some = random.sample(others, min(ASKED_MAX, len(others)))
        parts = [hosts[begin : begin + LOOK_HOSTS_MAX] for begin in range(0, len(hosts), LOOK_HOSTS_MAX)]
        responses = await asyncio.gather(*(self._ask(addr, part) for part in parts for addr in some))
        silent = {node_id: False for response in responses for node_id in response.silent}
        return silent | {node_id: True for response in responses for node_id in response.answered}

    async def _ask(self, addr: str, hosts: Sequence[LookTarget]) -> LookResponse:
        request = LookRequest()
        for host in hosts:
            request.hosts.add(node_id=host.node_id, addr=host.host, port=host.port)
        try:
            async with self._channels(addr) as channel:
                response: LookResponse = await HealthStub(channel).Look(request, timeout=ANSWER_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.info("manager.not_asked", addr=addr, code=error.code().name, reason=error.details())
            return LookResponse()
        return response

    async def hand_over(self) -> None:
        """Give the lead to one of them."""
        try:
            await self._consensus.transfer_leadership(timeout_s=TRANSFER_TIMEOUT_S)
        except ConsensusError as error:
            log.warning("leadership.kept", reason=str(error))
