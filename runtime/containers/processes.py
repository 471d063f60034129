"""Facts about processes from /proc that tell one from a later one with the same number."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def boot_id() -> str:
    """Changes with each boot of the kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int:
    """Start time in clock ticks since boot, 0 when there is no such process (or only its zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()  # a process calls itself what it likes
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = text[text.rindex(b")") + 2 :].split()
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def is_alive(pid: int, start: int, boot: str) -> bool:
    """Whether the process that was noted down is still the one of that number."""
    return pid > 0 and boot == boot_id() and start > 0 and start_ticks(pid) == start
