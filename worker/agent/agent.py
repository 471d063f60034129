"""The agent of one node in one cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import grpc.aio

from proto.ca_pb2 import ManagerAddress
from proto.objects_pb2 import Node, NodeDescription
from proto.specs_pb2 import NodeAvailability
from worker.agent.executor import Executor

ChannelFactory = Callable[[str], grpc.aio.Channel]
"""Makes a channel to ``host:port`` of a manager's gRPC server; the session closes it."""


class AgentListener(Protocol):
    """What the agent's owner wants to hear. Called on the event loop; quick, and they do not raise."""

    def on_managers(self, managers: Sequence[ManagerAddress]) -> None:
        """Every manager, the leader first."""

    def on_node(self, node: Node) -> None:
        """This node's object, at the begin of each session and after each change (role, availability, labels)."""

    def on_root_ca(self, root_ca_pem: bytes) -> None:
        """The cluster's root certificates."""

    def on_session(self, error: str) -> None:
        """A session is open ("") or was lost, and why."""


class Agent:
    """Construct, ``run()`` as a task, ``close()``; or ``leave()`` when the node leaves its cluster."""

    def __init__(
        self,
        *,
        node_id: str,
        executor: Executor,
        state_dir: Path,
        channels: ChannelFactory,
        managers: Sequence[ManagerAddress],
        describe: Callable[[], NodeDescription],
        listener: AgentListener,
        addr: str = "",
        availability: NodeAvailability.ValueType = NodeAvailability.NODE_AVAILABILITY_ACTIVE,
    ) -> None:
        """
        Args:
            node_id: this node, as its certificate says; assignments of others are ignored.
            executor: runs the containers.
            state_dir: an existing folder of the agent's own; ``assignments`` is kept there.
            channels: see ``ChannelFactory``.
            managers: where to look first; replaced by what the managers say.
            describe: the node as it is now; asked at each registration and every 20 s.
            listener: see ``AgentListener``.
            addr: the node's advertise address, told to the managers.
            availability: wished for at the node's first registration.
        """
        raise NotImplementedError

    async def run(self) -> None:
        """Take up what this node ran before, then keep a session; until cancelled or ``close()``d.

        With no manager in sight it goes on with the last assignment.

        Raises:
            AgentStateError: the stored assignments cannot be read or written.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """End the session and ``run()``; containers run on."""
        raise NotImplementedError

    async def leave(self) -> None:
        """``close()``, then stop every task, remove its container and forget all assignments."""
        raise NotImplementedError
