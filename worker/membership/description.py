"""What this host tells the managers about itself (A4.02, A4.10, A4.11)."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping, Sequence

from base.printable import one_line
from proto.objects_pb2 import EngineDescription, NodeDescription, PluginDescription
from proto.specs_pb2 import Platform, Resources


def describe(
    *, engine_version: str, labels: Mapping[str, str], drivers: Mapping[str, Sequence[str]]
) -> NodeDescription:
    """The host as it is now; resources are the host's whole, without a reserve for the system.

    ``drivers`` are the engine's, by kind. That a container may have no log is told nobody.
    """
    return NodeDescription(
        hostname=one_line(socket.gethostname()),
        platform=Platform(architecture=platform.machine(), os="linux"),
        resources=Resources(
            nano_cpus=(os.cpu_count() or 1) * 10**9,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        ),
        engine=EngineDescription(
            engine_version=engine_version,
            labels=labels,
            plugins=[
                PluginDescription(type=kind, name=name)
                for kind, names in drivers.items()
                for name in names
                if name != "none"
            ],
        ),
    )
