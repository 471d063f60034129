"""The addresses of this member: asked for at init and join, and followed when the host has others (E07)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec
import structlog

from pki.addresses import AddressError, join_host_port, split_host_port
from proto.node_pb2 import LocalState
from worker.membership.addresses import (
    GRPC_PORT,
    SystemAddress,
    follows_host,
    is_here,
    resolve_advertise,
    resolve_data_path,
    resolve_listen,
)
from worker.membership.cluster_member import InitRequest, InvalidRequestError, JoinRequest

log = structlog.get_logger(__name__)

ReadAddresses = Callable[[], Awaitable[Sequence[SystemAddress]]]


class OwnAddresses(msgspec.Struct, frozen=True):
    """As in ``LocalState``; ``asked`` is its ``advertise_asked``, None when the user named an IP."""

    listen: str
    advertise: str
    data_path: str
    asked: str | None

    @classmethod
    async def of(cls, request: InitRequest | JoinRequest, read: ReadAddresses) -> OwnAddresses:
        """What a request asks for, resolved against this host. Raises: InvalidRequestError."""
        try:
            system = await read()
            listen = resolve_listen(request.listen_addr, system)
            advertise = resolve_advertise(request.advertise_addr, listen, system)
            data_path = resolve_data_path(request.data_path_addr, advertise, system)
        except AddressError as error:
            raise InvalidRequestError(str(error)) from error
        asked = request.advertise_addr if follows_host(request.advertise_addr, listen) else None
        return cls(listen, advertise, data_path, asked)

    def write_to(self, state: LocalState) -> None:
        """All four; who the managers are is left as it is."""
        state.listen_addr, state.advertise_addr, state.data_path_addr = self.listen, self.advertise, self.data_path
        state.ClearField("advertise_asked")
        if self.asked is not None:
            state.advertise_asked = self.asked


def grpc_address(advertise: str) -> str:
    """Where the gRPC server of a manager is that advertises ``advertise``."""
    return join_host_port(split_host_port(advertise)[0], GRPC_PORT)


async def follow_host(state: LocalState, read: ReadAddresses) -> bool:
    """Take the address that the host has now, where the user named none and the old one is gone.

    Returns:
        Whether ``state`` was changed.
    """
    before = split_host_port(state.advertise_addr)[0]
    if is_here(before):
        return False
    if not state.HasField("advertise_asked"):
        log.info("address.elsewhere", address=before, reason="this host does not have it: fine if it is translated")
        return False
    try:
        advertise = resolve_advertise(state.advertise_asked, state.listen_addr, await read())
    except (AddressError, OSError) as error:
        log.warning("address.lost", address=before, reason=str(error))
        return False
    state.advertise_addr, after = advertise, split_host_port(advertise)[0]
    if state.data_path_addr == before:
        state.data_path_addr = after
    for manager in state.managers:
        if manager.node_id == state.node_id:
            manager.raft_addr, manager.grpc_addr = advertise, grpc_address(advertise)
    log.warning("address.changed", before=before, after=after)
    return True
