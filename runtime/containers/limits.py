"""Limits of a container against what there is: pure, with dockerd's words (moby daemon/daemon_unix.go, pkg/sysinfo).

What dockerd leaves to the kernel at the start (the least quota, shares, PIDs) is refused here too.
"""

from __future__ import annotations

import re

import msgspec

from runtime.errors import InvalidParameterError
from runtime.types import HostConfig

_NUMBER_MAX = 8192  # CPUs that Linux knows at most; a larger range would only cost memory (CVE-2018-20699)
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)
_MEMORY_MIN_BYTES = 6 << 20
_NANO_CPUS_MIN = 10_000_000  # with a period of 100 ms the kernel's least quota, 1 ms
_SHARES_MIN, _SHARES_MAX = 2, 1 << 18
_PIDS_MAX = 1 << 22  # PID_MAX_LIMIT (linux/threads.h)


class Capacity(msgspec.Struct, frozen=True):
    """What containers can be limited to on this host.

    Attributes:
        cpus: how many the daemon may run on.
        cpuset_cpus, cpuset_mems: CPUs and memory nodes as the kernel lists them ("0-3,8"); "" where it cannot limit them.
        swap, swappiness, oom_kill_disable: whether it can set these for a container.
    """

    cpus: int
    cpuset_cpus: str
    cpuset_mems: str
    swap: bool
    swappiness: bool
    oom_kill_disable: bool


def settle(host: HostConfig, capacity: Capacity) -> tuple[HostConfig, list[str]]:
    """Without what this host cannot limit, and a warning for each: to be said at create, never dropped in silence."""
    changes: dict[str, object] = {}
    warnings = []
    missing = "Your kernel does not support"
    if host.Memory > 0 and host.MemorySwap != -1 and not capacity.swap:
        warnings.append(f"{missing} swap limit capabilities or the cgroup is not mounted. Memory limited without swap.")
        changes["MemorySwap"] = -1
    if host.MemorySwappiness not in (None, -1) and not capacity.swappiness:
        warnings.append(
            f"{missing} memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded."
        )
        changes["MemorySwappiness"] = None
    if host.OomKillDisable and not capacity.oom_kill_disable:
        warnings.append(f"{missing} OomKillDisable. OomKillDisable discarded.")
        changes["OomKillDisable"] = None
    elif host.OomKillDisable and not host.Memory:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system "
            "running out of resources."
        )
    if (host.CpusetCpus or host.CpusetMems) and not capacity.cpuset_cpus:
        warnings.append(f"{missing} cpuset or the cgroup is not mounted. Cpuset discarded.")
        changes |= {"CpusetCpus": "", "CpusetMems": ""}
    return msgspec.structs.replace(host, **changes), warnings


def check(host: HostConfig, capacity: Capacity) -> None:
    """Everything that can be refused for itself; 0 and "" are no limit. Raises InvalidParameterError."""
    for refused, message in (
        (0 < host.MemoryReservation < _MEMORY_MIN_BYTES, "Minimum memory reservation allowed is 6MB"),
        (
            host.MemorySwappiness not in (None, -1) and not 0 <= (host.MemorySwappiness or 0) <= 100,
            f"Invalid value: {host.MemorySwappiness}, valid memory swappiness range is 0-100",
        ),
        (
            host.NanoCpus > 0 and host.CpuPeriod > 0,
            "Conflicting options: Nano CPUs and CPU Period cannot both be set",
        ),
        (
            host.NanoCpus > 0 and host.CpuQuota > 0,
            "Conflicting options: Nano CPUs and CPU Quota cannot both be set",
        ),
        (
            host.NanoCpus != 0 and not _NANO_CPUS_MIN <= host.NanoCpus <= capacity.cpus * 10**9,
            f"range of CPUs is from 0.01 to {capacity.cpus}.00, as there are only {capacity.cpus} CPUs available",
        ),
        (host.CpuShares < 0, f"invalid CPU shares ({host.CpuShares}): value must be a positive integer"),
        (0 < host.CpuShares < _SHARES_MIN, f"the minimum allowed cpu-shares is {_SHARES_MIN}"),
        (host.CpuShares > _SHARES_MAX, f"the maximum allowed cpu-shares is {_SHARES_MAX}"),
        ((host.PidsLimit or 0) > _PIDS_MAX, f"invalid PIDs limit ({host.PidsLimit}): the largest is {_PIDS_MAX}"),
        (
            host.CpuPeriod != 0 and not 1000 <= host.CpuPeriod <= 1_000_000,
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        ),
        (0 < host.CpuQuota < 1000, "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
        (
            host.BlkioWeight != 0 and not 10 <= host.BlkioWeight <= 1000,
            "Range of blkio weight is from 10 to 1000",
        ),
        (
            not -1000 <= host.OomScoreAdj <= 1000,
            f"Invalid value {host.OomScoreAdj}, range for oom score adj is [-1000, 1000]",
        ),
        (host.ShmSize < 0, "SHM size can not be less than 0"),
    ):
        if refused:
            raise InvalidParameterError(message)
    _check_set("cpus", "CPUs", host.CpusetCpus, capacity.cpuset_cpus)
    _check_set("mems", "memory nodes", host.CpusetMems, capacity.cpuset_mems)


def _check_set(key: str, words: str, wanted: str, available: str) -> None:
    try:
        numbers = _numbers(wanted)
    except ValueError as error:
        raise InvalidParameterError(f"Invalid value {wanted} for cpuset {key}: {error}") from error
    if not numbers <= _numbers(available):
        raise InvalidParameterError(f"Requested {words} are not available - requested {wanted}, available: {available}")


def _numbers(text: str) -> set[int]:
    """The numbers of a list as the kernel writes it: "0,3-4,7". Raises ValueError."""
    found: set[int] = set()
    for part in text.split(",") if text else ():
        match = _RANGE.fullmatch(part)
        first = int(match[1]) if match else 0
        last = int(match[2]) if match and match[2] else first
        if match is None or last < first:
            raise ValueError(f"invalid format: {text}")
        if last > _NUMBER_MAX:
            raise ValueError(f"value of out range, maximum is {_NUMBER_MAX}")
        found.update(range(first, last + 1))
    return found
