"""What ``docker info`` says of the host."""

from __future__ import annotations

import pytest

from api.engine_routes.host_facts import runc_warnings


@pytest.mark.parametrize(
    ("version", "named"),
    [
        ("1.1.5+ds1", "CVE-2024-21626"),
        ("0.1.1", "CVE-2024-21626"),
        ("1.1.12", "older than 1.2.8, which lets no container out by CVE-2025-31133"),
        ("1.2.7", "older than 1.2.8"),
        ("1.3.2", "older than 1.3.3"),
        *((version, "") for version in ("1.2.8", "1.2.10", "1.3.3", "1.4.0-rc.3", "1.10.0", "2.0.0", "", "unknown")),
    ],
)
def test_a_runc_that_lets_containers_out_is_told_of(version: str, named: str) -> None:
    warnings = runc_warnings(version)
    assert len(warnings) == bool(named)
    assert named in "".join(warnings)
    assert all(text.startswith(f"WARNING: runc {version} is older than") for text in warnings)
