# The private names are those that manager/consensus/adapter.py relies on;
# tests/unit/consensus/test_pysyncobj_pin.py checks that each exists in the pinned version.
from collections.abc import Callable, Iterable
from typing import Any

from pysyncobj.config import SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport

pickle: Any
createJournal: Callable[[Any], Any]
monotonicTime: Callable[[], float]

class _RAFT_STATE:
    FOLLOWER: int
    CANDIDATE: int
    LEADER: int

class _COMMAND_TYPE:
    REGULAR: int
    NO_OP: int
    MEMBERSHIP: int
    VERSION: int

class SyncObj:
    _poller: Any
    _SyncObj__transport: Transport
    _SyncObj__otherNodes: set[Node]
    _SyncObj__readonlyNodes: set[Node]
    _SyncObj__connectedNodes: set[Node]
    _SyncObj__raftState: int
    _SyncObj__raftCurrentTerm: int
    _SyncObj__raftLeader: Node | None
    _SyncObj__raftElectionDeadline: float
    _SyncObj__transferInProgress: bool
    _SyncObj__raftCommitIndex: int
    _SyncObj__raftLastApplied: int
    _SyncObj__raftNextIndex: dict[Node, int]
    _SyncObj__raftMatchIndex: dict[Node, int]
    _SyncObj__lastResponseTime: dict[Node, float]
    _SyncObj__noopIDx: int | None
    _SyncObj__newAppendEntriesTime: float
    def __init__(
        self, selfNode: Node, otherNodes: Iterable[Node], conf: SyncObjConf | None = None, *, transport: Transport
    ) -> None: ...
    def doTick(self, timeToWait: float = 0.0) -> None: ...
    def _checkCommandsToApply(self) -> None: ...
    def _SyncObj__applyLogEntries(self) -> bool: ...
    def _SyncObj__sendAppendEntries(self) -> None: ...
    def _SyncObj__tryLogCompaction(self) -> None: ...
    def _SyncObj__generateRaftTimeout(self) -> float: ...
    def _SyncObj__setState(self, newState: int) -> None: ...
    def _SyncObj__setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None: ...
