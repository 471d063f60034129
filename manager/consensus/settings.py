"""What a member is told: who it is, where its state lies, periods, and when to write snapshots."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from manager.consensus.files import Files, OSFiles
from manager.consensus.port import NodeID
from manager.consensus.sealed import KeyRing


@dataclass(frozen=True, slots=True)
class Timing:
    """Periods in seconds.

    The library wants ``election_timeout_s_min`` above three heartbeats. Followers of a leader whose
    connection closes do not wait for the timeout (see ``RaftCore.disconnected``), so it only has to
    cover stalls and silent partitions and may be generous.
    """

    heartbeat_period_s: float = 0.1
    election_timeout_s_min: float = 0.6
    election_timeout_s_max: float = 1.1
    check_quorum_s: float = 1.0
    commit_notice_s: float = 0.005


@dataclass(slots=True)
class SnapshotPolicy:
    """When to write a snapshot; may be changed at run time.

    What is made of the figures: ``compaction.py``.

    Attributes:
        interval_entries: ``Spec.Raft.SnapshotInterval``: at the latest after so many entries, while the state is small.
        trailing_entries: ``Spec.Raft.LogEntriesForSlowFollowers``: most entries kept behind a snapshot.
        keep_old: ``Spec.Raft.KeepOldSnapshots``: kept beside the newest.
        log_bytes_min: a log that weighs less is no reason for a snapshot, however small the state is.
    """

    interval_entries: int = 10_000
    trailing_entries: int = 500
    keep_old: int = 0
    log_bytes_min: int = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftConfig:
    """What a member is made of.

    Attributes:
        node_id: the CN of this node's certificate.
        address: ``host:port`` where peers reach this node's listener; a change is told to them.
        folder: state folder, created if absent, used by nothing else.
        keys: data keys for what is on disk.
        client_ssl: a context for dialling another manager (ALPN ``swarm-raft/1``); called for every dial.
        peer_identity: the node ID in the certificate of a finished handshake; raises ConsensusError if the
            peer is not a manager of this cluster.
        instance: of this process: another one for each start.
        claim: what this member says of the machine it runs on, with each Hello; quick, called on the raft thread.
        why_copy: why who says so of its machine is not the member of that ID, "" if it may be; the same.
        join: a fresh folder waits to be added to a group instead of founding one.
        force_new_cluster: keep the state, become the only member.
        policy: may be changed at run time through ``RaftConsensus.policy``.
        seed: of the election timeouts; None for a random one.
    """

    node_id: NodeID
    address: str
    folder: Path
    keys: KeyRing
    client_ssl: Callable[[], ssl.SSLContext]
    peer_identity: Callable[[ssl.SSLObject], NodeID]
    instance: str = field(default_factory=lambda: os.urandom(16).hex())
    claim: Callable[[], bytes] = lambda: b""
    why_copy: Callable[[NodeID, bytes], str] = lambda _node_id, _claim: ""
    join: bool = False
    force_new_cluster: bool = False
    timing: Timing = field(default_factory=Timing)
    policy: SnapshotPolicy = field(default_factory=SnapshotPolicy)
    files: Files = field(default_factory=OSFiles)
    seed: int | None = None
