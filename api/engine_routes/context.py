"""What every handler of the engine's routes works with."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import msgspec

from base.tasks import OwnedTasks
from runtime.engine import Engine
from worker.membership.cluster_member import ClusterMember


class DaemonInfo(msgspec.Struct, frozen=True):
    """What the daemon tells about itself in /version and /info.

    Attributes:
        version: of this distribution, such as "0.1.0".
        state: root folder of the daemon, ``DockerRootDir``.
        daemon_id: stable ID of this daemon, ``ID`` of /info.
        labels: engine labels, ``key=value``.
        git_commit, build_time: of the build, may be empty.
        insecure_registries, mirrors: as the image store was given them.
        warnings: what this host lacks, for people.
    """

    version: str
    state: Path
    daemon_id: str = ""
    name: str = msgspec.field(default_factory=platform.node)
    labels: Sequence[str] = ()
    git_commit: str = ""
    build_time: str = ""
    debug: bool = False
    insecure_registries: Sequence[str] = ()
    mirrors: Sequence[str] = ()
    warnings: Sequence[str] = ()


class EngineContext(msgspec.Struct, frozen=True):
    """The engine, the host's place in a cluster, and what the daemon says of itself.

    Attributes:
        operations: changes that go on when their client goes away. A handler is cancelled with its connection, which is
            right for reading and wrong half-way through a stop.
    """

    engine: Engine
    member: ClusterMember
    info: DaemonInfo
    operations: OwnedTasks
