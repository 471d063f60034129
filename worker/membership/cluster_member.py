"""What a host may be asked about its place in a cluster: the port between the HTTP API and the node.

``worker.membership.node.Node`` implements ``ClusterMember``; the API's routes and their tests need nothing else of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from proto.specs_pb2 import ClusterSpec, NodeAvailability

if TYPE_CHECKING:
    from proto.ca_pb2 import ManagerAddress
    from proto.control_pb2_grpc import ControlAsyncStub

DEFAULT_LISTEN_ADDR = "0.0.0.0:2377"


class LocalNodeState(StrEnum):
    """`Swarm.LocalNodeState` of GET /info."""

    INACTIVE = "inactive"
    PENDING = "pending"
    ACTIVE = "active"
    ERROR = "error"
    LOCKED = "locked"


class MembershipError(Exception):
    """Base of what init, join and leave may refuse; the message is the Engine API's."""


class AlreadyInSwarmError(MembershipError):
    """The node is part of a swarm already (503)."""


class NotInSwarmError(MembershipError):
    """The node is not part of a swarm (503)."""


class NotManagerError(MembershipError):
    """The node is no manager, or not in a swarm at all (503)."""


class InvalidRequestError(MembershipError):
    """An address, token or option cannot be used (400)."""


class LeaveRefusedError(MembershipError):
    """A manager leaves only with force (503)."""


class JoinTimeoutError(MembershipError):
    """Joining goes on in the background after 20 s (503, A1.15)."""


class InitRequest(msgspec.Struct, frozen=True):
    """Body of POST /swarm/init. Addresses are as the user wrote them: IP, interface name, with or without port."""

    listen_addr: str = DEFAULT_LISTEN_ADDR
    advertise_addr: str = ""
    data_path_addr: str = ""
    data_path_port: int = 0
    default_addr_pool: Sequence[str] = ()
    subnet_size: int = 0
    force_new_cluster: bool = False
    auto_lock_managers: bool = False
    availability: NodeAvailability.ValueType = NodeAvailability.NODE_AVAILABILITY_ACTIVE
    spec: ClusterSpec = msgspec.field(default_factory=ClusterSpec)


class JoinRequest(msgspec.Struct, frozen=True):
    """Body of POST /swarm/join."""

    remote_addrs: Sequence[str]
    join_token: str
    listen_addr: str = DEFAULT_LISTEN_ADDR
    advertise_addr: str = ""
    data_path_addr: str = ""
    availability: NodeAvailability.ValueType = NodeAvailability.NODE_AVAILABILITY_ACTIVE


class SwarmInfo(msgspec.Struct, frozen=True):
    """The node's own part of `Swarm` in GET /info.

    Attributes:
        data_path_addr: where it takes packets of networks; "" before it is known.
        control_available: a manager runs here and answers.
        remote_managers: as last told by the managers.
        error: why the state is ERROR, for people.
    """

    local_node_state: LocalNodeState
    node_id: str = ""
    node_addr: str = ""
    data_path_addr: str = ""
    control_available: bool = False
    error: str = ""
    remote_managers: Sequence[ManagerAddress] = ()


class ClusterMember(Protocol):
    """This host as a member (or not yet) of a cluster."""

    def info(self) -> SwarmInfo: ...

    async def init(self, request: InitRequest) -> str:
        """Make a new cluster of one; return the node ID. Raises: AlreadyInSwarmError, InvalidRequestError."""

    async def join(self, request: JoinRequest) -> None:
        """Raises: AlreadyInSwarmError, InvalidRequestError, JoinTimeoutError, MembershipError (refused by the CA)."""

    async def leave(self, *, force: bool) -> None:
        """Raises: NotInSwarmError, LeaveRefusedError."""

    def control(self) -> ControlAsyncStub:
        """The control API of the manager on this host. Raises: NotManagerError with the Engine API's text."""

    async def wait_control(self, timeout_s: float) -> ControlAsyncStub:
        """The same once the manager answers, if it is on its way. Raises: NotManagerError, at once if it is not."""
