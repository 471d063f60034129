"""Limits of a container against what there is: pure, with dockerd's words (moby daemon/daemon_unix.go, pkg/sysinfo)."""

from __future__ import annotations

import re

import msgspec

from runtime.errors import InvalidParameterError
from runtime.types import HostConfig

_NUMBER_MAX = 8192  # CPUs that Linux knows at most; a larger range would only cost memory (CVE-2018-20699)
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)
_MEMORY_MIN_BYTES = 6 << 20


class Capacity(msgspec.Struct, frozen=True):
    """What containers can be limited to on this host.

    Attributes:
        cpus: how many the daemon may run on.
        cpuset_cpus, cpuset_mems: CPUs and memory nodes as the kernel lists them ("0-3,8"); "" where it cannot limit them.
    """

    cpus: int
    cpuset_cpus: str
    cpuset_mems: str


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
            not 0 <= host.NanoCpus <= capacity.cpus * 10**9,
            f"range of CPUs is from 0.01 to {capacity.cpus}.00, as there are only {capacity.cpus} CPUs available",
        ),
        (host.CpuShares < 0, f"invalid CPU shares ({host.CpuShares}): value must be a positive integer"),
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
