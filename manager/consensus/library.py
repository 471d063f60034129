"""pysyncobj made usable: its pickle out of reach, our journal in, nodes and transport of ours. Imported for its effect too.

The library's module globals are replaced once, for the whole process: nothing else here uses it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from pysyncobj import syncobj
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from manager.consensus.journal import Journal
from manager.consensus.port import NodeID


class Peer(Node):
    """A library node whose hash does not depend on the process, so that a simulation replays.

    The library looks nodes up many times an entry: one object a member (``RaftCore.peer``), its hash kept.
    """

    def __init__(self, node_id: NodeID) -> None:
        super().__init__(node_id)
        self.hash = zlib.crc32(node_id.encode())

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Node) and self.id == other.id)

    @property
    def node_id(self) -> NodeID:
        return NodeID(self.id)


class NoPickle:
    """In place of the library's pickle module: nothing may ever reach it."""

    def __getattr__(self, name: str) -> Any:  # stands for a whole module
        raise AssertionError(f"pysyncobj reached for pickle.{name}")


class NoPoller:
    """Sockets are the transport's; the library has none to wait for."""

    def poll(self, timeout: float) -> None:
        pass


def _journal_of(conf_value: Journal) -> Journal:
    return conf_value


syncobj.pickle = NoPickle()
syncobj.createJournal = _journal_of  # the object itself rides in conf.journalFile


class Bridge(Transport):
    """Where the library thinks it sends and from where it receives.

    Args:
        sends: called with every message of the library.
    """

    def __init__(self, sends: Callable[[NodeID, dict[str, Any]], None]) -> None:
        super().__init__(None, None, [])
        self._sends = sends

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        self._sends(NodeID(node.id), message)
        return True

    def deliver(self, node: Node, message: dict[str, Any]) -> None:
        self._onMessageReceived(node, message)

    def connected(self, node: Node) -> None:
        self._onNodeConnected(node)

    def disconnected(self, node: Node) -> None:
        self._onNodeDisconnected(node)
