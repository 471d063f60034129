"""The Dispatcher service: one object a manager, serving while it leads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc.aio

from manager.store import Store
from pki.certificates import Identity
from proto.ca_pb2 import ManagerAddress
from proto.dispatcher_pb2_grpc import DispatcherServicer

Caller = Callable[[grpc.aio.ServicerContext[Any, Any]], Identity]


class Dispatcher(DispatcherServicer):
    """Register it with ``add_DispatcherServicer_to_server`` on every manager; run ``run()`` while this one leads."""

    def __init__(
        self,
        store: Store,
        *,
        caller: Caller,
        managers: Callable[[], Sequence[ManagerAddress]],
        leader_addr: Callable[[], str],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            store: this manager's store.
            caller: who makes a call, as its certificate says.
            managers: every manager, the leader first; asked again after each change of a node object.
            leader_addr: ``host:port`` of the leader's gRPC server, "" when unknown; told to agents that came to a follower.
            clock: wall clock, seconds since the epoch.
            monotonic: what heartbeats are measured with, in seconds.
        """
        raise NotImplementedError

    async def run(self) -> None:
        """Serve agents until cancelled: called when this manager has become the leader, cancelled when it is no more.

        Before and after, every call is answered FAILED_PRECONDITION with the leader's address.
        """
        raise NotImplementedError

    def managers_changed(self) -> None:
        """The answer of ``managers`` may be another now: tell the agents (changes of node objects are noticed anyway)."""
        raise NotImplementedError
