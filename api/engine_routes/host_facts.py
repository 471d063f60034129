"""What /info and /version tell about the host: kernel, memory, cgroup controllers, versions of the helpers.

Read once a process: none of it changes while the daemon runs. Source: moby ``pkg/sysinfo``, ``daemon/info_unix.go``.
"""

from __future__ import annotations

import asyncio
import functools
import os
import platform
import re
from pathlib import Path

import msgspec

CGROUP_ROOT = Path("/sys/fs/cgroup")
VERSION_TIMEOUT_S = 5.0

_RUNC_FIXED = {(1, 2): 8, (1, 3): 3}
"""The first release of each line with the fixes of 2025; 1.4.0 has had them from the start."""

GOARCH = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


class CgroupFacts(msgspec.Struct, frozen=True):
    """Which limits this kernel can set beside those that the engine knows of; the names are those of /info."""

    version: str
    memory_limit: bool
    cpu_cfs_period: bool
    cpu_cfs_quota: bool
    cpu_shares: bool
    cpu_set: bool
    pids_limit: bool

    def warnings(self, *, swap_limit: bool) -> list[str]:
        """What is missing here, as ``docker info`` shows it; whether swap can be limited the engine knows."""
        missing = {
            "memory limit": self.memory_limit,
            "swap limit": swap_limit,
            "cpu cfs quota": self.cpu_cfs_quota,
            "cpu shares": self.cpu_shares,
            "cpuset": self.cpu_set,
            "pids limit": self.pids_limit,
        }
        return [f"WARNING: No {name} support" for name, present in missing.items() if not present]


def read_cgroup_facts(root: Path = CGROUP_ROOT) -> CgroupFacts:
    """Look at a mounted cgroup hierarchy: version 2, or version 1 with a folder a controller."""
    try:
        controllers = (root / "cgroup.controllers").read_text().split()
    except FileNotFoundError:
        return _facts_v1(root)
    cpu = "cpu" in controllers
    return CgroupFacts(
        version="2",
        memory_limit="memory" in controllers,
        cpu_cfs_period=cpu,
        cpu_cfs_quota=cpu,
        cpu_shares=cpu,
        cpu_set="cpuset" in controllers,
        pids_limit="pids" in controllers,
    )


def _facts_v1(root: Path) -> CgroupFacts:
    def has(controller: str, name: str) -> bool:
        return (root / controller / name).exists()

    return CgroupFacts(
        version="1",
        memory_limit=has("memory", "memory.limit_in_bytes"),
        cpu_cfs_period=has("cpu", "cpu.cfs_period_us"),
        cpu_cfs_quota=has("cpu", "cpu.cfs_quota_us"),
        cpu_shares=has("cpu", "cpu.shares"),
        cpu_set=has("cpuset", "cpuset.cpus"),
        pids_limit=(root / "pids").is_dir(),
    )


def memory_total_bytes() -> int:
    """RAM of the host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def go_architecture() -> str:
    """The machine in Go's word, as in image platforms."""
    return GOARCH.get(platform.machine(), platform.machine())


@functools.cache
def operating_system() -> tuple[str, str]:
    """``PRETTY_NAME`` and ``VERSION_ID`` of the distribution."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return platform.system(), ""
    return release.get("PRETTY_NAME", "Linux"), release.get("VERSION_ID", "")


def runc_warnings(version: str) -> list[str]:
    """What ``docker info`` shows for a runc whose version is older than the fixes of its known ways out of a container.

    A distribution may have brought fixes back without the version showing it. Advisories of opencontainers/runc:
    GHSA-xr7r-f8xq-vfvv (2024), GHSA-9493-h29p-rfm2, GHSA-qw9x-cqr3-wc7r and GHSA-cgrx-mc8f-2prm (2025).
    """
    match = re.match(r"([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})", version)
    if match is None:
        return []
    major, minor, patch = (int(number) for number in match.groups())
    if (major, minor, patch) < (1, 1, 12):
        fixes, fixed = "CVE-2024-21626, CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881", "1.2.8"
    elif (major, minor) < (1, 4) and patch < _RUNC_FIXED.get((major, minor), patch + 1):
        fixes, fixed = "CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881", "1.3.3" if minor == 3 else "1.2.8"
    else:
        return []
    return [
        f"WARNING: runc {version} is older than {fixed}, which lets no container out by {fixes}: "
        f"upgrade it, unless your distribution says that its package has these fixes"
    ]


async def helper_version(command: str) -> str:
    """``1.1.5`` of ``runc --version``; empty when the helper is missing or does not answer."""
    try:
        process = await asyncio.create_subprocess_exec(
            command, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError:
        return ""
    try:
        async with asyncio.timeout(VERSION_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return ""
    match = re.search(rb"version:?\s+v?([0-9][^\s,]*)", output)
    return match[1].decode("ascii", "replace") if match else ""
