"""What a running container uses, read from its cgroups and its network namespace, and its processes.

Everything is found from the process ID of the container's init, so it works for adopted containers as well. A file
read costs some microseconds; all functions here block for less than a millisecond, except ``list_processes``.

Sources: kernel admin-guide cgroup-v1 and cgroup-v2; moby ``daemon/stats_unix.go`` and ``api/types/container/stats.go``.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from runtime.containers import cgroups
from runtime.errors import ConflictError, HostError, InvalidParameterError

NANOSECONDS = 1_000_000_000
PS_TIMEOUT_S = 10.0
_NETWORK_COUNTERS = (0, 1, 2, 3, 8, 9, 10, 11)
_NETWORK_NAMES = (
    ("rx_bytes", "rx_packets", "rx_errors", "rx_dropped", "tx_bytes", "tx_packets", "tx_errors", "tx_dropped")
)  # fmt: skip


class CPUUsage(msgspec.Struct, kw_only=True):
    """Nanoseconds of CPU time since the container's start."""

    total_usage: int = 0
    usage_in_kernelmode: int = 0
    usage_in_usermode: int = 0


class ThrottlingData(msgspec.Struct, kw_only=True):
    """How often the CPU limit held the container back; ``throttled_time`` in nanoseconds."""

    periods: int = 0
    throttled_periods: int = 0
    throttled_time: int = 0


class CPUStats(msgspec.Struct, kw_only=True, omit_defaults=True):
    """``system_cpu_usage`` is the whole host's, idle time included, in nanoseconds."""

    cpu_usage: CPUUsage = msgspec.field(default_factory=CPUUsage)
    system_cpu_usage: int = 0
    online_cpus: int = 0
    throttling_data: ThrottlingData = msgspec.field(default_factory=ThrottlingData)


class MemoryStats(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Bytes; ``limit`` is the host's memory when the container has none. ``stats`` is memory.stat."""

    usage: int = 0
    max_usage: int = 0
    stats: dict[str, int] = msgspec.field(default_factory=dict)
    failcnt: int = 0
    limit: int = 0


class PidsStats(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Tasks now and allowed; 0 when unlimited."""

    current: int = 0
    limit: int = 0


class BlkioEntry(msgspec.Struct, kw_only=True):
    """One counter of one device."""

    major: int
    minor: int
    op: str
    value: int


class Usage(msgspec.Struct, kw_only=True):
    """The counters of one moment; the names are those of ``GET /containers/{id}/stats``."""

    cpu_stats: CPUStats = msgspec.field(default_factory=CPUStats)
    memory_stats: MemoryStats = msgspec.field(default_factory=MemoryStats)
    pids_stats: PidsStats = msgspec.field(default_factory=PidsStats)
    blkio: list[BlkioEntry] = msgspec.field(default_factory=list)
    networks: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)


def read_usage(pid: int, layout: cgroups.Layout) -> Usage:
    """Counters of the container whose init is ``pid``; all zero when it has ended meanwhile."""
    groups = groups_of(pid, layout)
    if not groups:
        return Usage()
    usage = read_counters(groups, version=layout.version)
    usage.cpu_stats.system_cpu_usage = parse_system_cpu_ns(_text(Path("/proc/stat")))
    usage.cpu_stats.online_cpus = len(os.sched_getaffinity(0))
    host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not 0 < usage.memory_stats.limit < host_bytes:
        usage.memory_stats.limit = host_bytes
    usage.networks = parse_network_counters(_text(Path(f"/proc/{pid}/net/dev")))
    return usage


def groups_of(pid: int, layout: cgroups.Layout) -> dict[str, Path]:
    """The folder of a process's group by controller; empty when the process is gone."""
    found: dict[str, Path] = {}
    for line in _text(Path(f"/proc/{pid}/cgroup")).splitlines():
        _, names, path = line.split(":", 2)
        for name in layout.mounts if layout.version == 2 and not names else names.split(","):
            if name in layout.mounts:
                found[name] = layout.mounts[name] / path.lstrip("/")
    return found


def read_counters(groups: dict[str, Path], *, version: int) -> Usage:
    """Counters from the folders of one group, by controller; a controller that is missing counts nothing."""
    if version == 2:
        return _usage_v2(groups["memory"]) if "memory" in groups else Usage()
    return _usage_v1(groups)


def _usage_v1(groups: dict[str, Path]) -> Usage:
    usage = Usage()
    if (cpu := groups.get("cpuacct")) is not None:
        usage.cpu_stats.cpu_usage = CPUUsage(
            total_usage=_number(cpu / "cpuacct.usage"),
            usage_in_kernelmode=_number(cpu / "cpuacct.usage_sys"),
            usage_in_usermode=_number(cpu / "cpuacct.usage_user"),
        )
    if (cpu := groups.get("cpu")) is not None:
        stat = parse_pairs(_text(cpu / "cpu.stat"))
        usage.cpu_stats.throttling_data = ThrottlingData(
            periods=stat.get("nr_periods", 0),
            throttled_periods=stat.get("nr_throttled", 0),
            throttled_time=stat.get("throttled_time", 0),
        )
    if (memory := groups.get("memory")) is not None:
        usage.memory_stats = MemoryStats(
            usage=_number(memory / "memory.usage_in_bytes"),
            max_usage=_number(memory / "memory.max_usage_in_bytes"),
            stats=parse_pairs(_text(memory / "memory.stat")),
            failcnt=_number(memory / "memory.failcnt"),
            limit=_number(memory / "memory.limit_in_bytes"),
        )
    if (pids := groups.get("pids")) is not None:
        usage.pids_stats = PidsStats(current=_number(pids / "pids.current"), limit=_number(pids / "pids.max"))
    if (blkio := groups.get("blkio")) is not None:
        usage.blkio = parse_blkio_v1(_text(blkio / "blkio.throttle.io_service_bytes"))
    return usage


def _usage_v2(group: Path) -> Usage:
    cpu = parse_pairs(_text(group / "cpu.stat"))
    return Usage(
        cpu_stats=CPUStats(
            cpu_usage=CPUUsage(
                total_usage=cpu.get("usage_usec", 0) * 1000,
                usage_in_kernelmode=cpu.get("system_usec", 0) * 1000,
                usage_in_usermode=cpu.get("user_usec", 0) * 1000,
            ),
            throttling_data=ThrottlingData(
                periods=cpu.get("nr_periods", 0),
                throttled_periods=cpu.get("nr_throttled", 0),
                throttled_time=cpu.get("throttled_usec", 0) * 1000,
            ),
        ),
        memory_stats=MemoryStats(
            usage=_number(group / "memory.current"),
            stats=parse_pairs(_text(group / "memory.stat")),
            failcnt=parse_pairs(_text(group / "memory.events")).get("oom", 0),
            limit=_number(group / "memory.max"),
        ),
        pids_stats=PidsStats(current=_number(group / "pids.current"), limit=_number(group / "pids.max")),
        blkio=parse_io_v2(_text(group / "io.stat")),
    )


def parse_pairs(text: str) -> dict[str, int]:
    """Lines ``name number``; anything else is left out."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def parse_system_cpu_ns(text: str) -> int:
    """Time of all CPUs of the host from /proc/stat: user, nice, system, idle, iowait, irq, softirq."""
    fields = text.partition("\n")[0].split()
    if not fields or fields[0] != "cpu":
        return 0
    return sum(map(int, fields[1:8])) * NANOSECONDS // os.sysconf("SC_CLK_TCK")


def parse_network_counters(text: str) -> dict[str, dict[str, int]]:
    """Counters by interface from /proc/PID/net/dev, without loopback."""
    found = {}
    for line in text.splitlines():
        name, separator, rest = line.partition(":")
        fields = rest.split()
        if separator and len(fields) >= 12 and name.strip() != "lo":
            numbers = (int(fields[index]) for index in _NETWORK_COUNTERS)
            found[name.strip()] = dict(zip(_NETWORK_NAMES, numbers, strict=True))
    return found


def parse_blkio_v1(text: str) -> list[BlkioEntry]:
    """``8:0 Read 4096`` a line."""
    entries = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and ":" in fields[0]:
            major, _, minor = fields[0].partition(":")
            entries.append(BlkioEntry(major=int(major), minor=int(minor), op=fields[1].lower(), value=int(fields[2])))
    return entries


def parse_io_v2(text: str) -> list[BlkioEntry]:
    """``8:0 rbytes=4096 wbytes=0 rios=1 ...`` a line."""
    entries = []
    for line in text.splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        values = dict(pair.partition("=")[::2] for pair in pairs)
        for key, op in (("rbytes", "read"), ("wbytes", "write")):
            if key in values:
                entries.append(BlkioEntry(major=int(major), minor=int(minor), op=op, value=int(values[key])))
    return entries


def _text(path: Path) -> str:
    """Empty for a file that is not there: the controller is missing, or the container has just ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int:
    """0 for "max" and for a file that is not there."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else 0


# ---------------------------------------------------------------- processes


def list_processes(pid: int, layout: cgroups.Layout, ps_args: str) -> tuple[list[str], list[list[str]]]:
    """``docker top``: titles and rows of the host's ``ps`` for the processes of a container. Blocks for a fork.

    Args:
        pid: the container's init.
        ps_args: options of ps; its output must have a PID column.

    Raises:
        ConflictError: the container has ended meanwhile.
        InvalidParameterError: ps refuses the options, or shows no PID.
        HostError: the host has no ps.
    """
    # any one hierarchy holds all of them
    group = next(iter(groups_of(pid, layout).values()), None)
    pids = cgroups.processes([group]) if group is not None else set()
    if not pids:
        raise ConflictError("the container is not running")
    try:
        done = subprocess.run(
            ["ps", *ps_args.split()], capture_output=True, text=True, timeout=PS_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise HostError("ps is not installed on this host (package procps)") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"ps did not end within {PS_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise InvalidParameterError(f"ps: {done.stderr.strip().partition(chr(10))[0]}")
    return select_processes(done.stdout, pids)


def select_processes(output: str, pids: Iterable[int]) -> tuple[list[str], list[list[str]]]:
    """Titles and the rows of ``pids``; the last column keeps its spaces. Raises InvalidParameterError without PID."""
    titles, *lines = output.splitlines() or [""]
    names = titles.split()
    if "PID" not in names:
        raise InvalidParameterError("Couldn't find PID field in ps output")
    column, wanted = names.index("PID"), {str(pid) for pid in pids}
    rows: list[list[str]] = []
    for line in lines:
        fields: Sequence[str] = line.split(None, len(names) - 1)
        if len(fields) > column and fields[column] in wanted:
            rows.append([field.rstrip() for field in fields])
    return names, rows
