"""What a host tells the managers about itself (features A4.10, A4.11)."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from worker.membership.description import describe


def test_a_node_offers_all_that_its_host_has() -> None:
    found = describe(
        engine_version="1.2.3", labels={"rack": "7"}, drivers={"Log": ["json-file", "none"], "Volume": ["local"]}
    )
    assert found.resources.nano_cpus == (os.cpu_count() or 1) * 10**9
    total_kib = int(Path("/proc/meminfo").read_text().split()[1])  # the first line is MemTotal
    assert abs(found.resources.memory_bytes - total_kib * 1024) < total_kib * 1024 / 100
    assert (found.platform.os, found.platform.architecture) == ("linux", platform.machine())
    assert (found.engine.engine_version, dict(found.engine.labels)) == ("1.2.3", {"rack": "7"})
    assert [(plugin.type, plugin.name) for plugin in found.engine.plugins] == [
        ("Log", "json-file"),
        ("Volume", "local"),
    ]
