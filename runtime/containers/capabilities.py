"""Which capabilities a container gets (moby oci/caps): the default set, plus CapAdd, minus CapDrop, "ALL" in either."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.errors import InvalidParameterError

# In kernel order (linux/capability.h): bit 0 is CAP_CHOWN.
KNOWN = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
]
DEFAULT = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
]


def available_capabilities() -> list[str]:
    """All that can be granted here, as CAP_X: what the kernel knows and this process has in its bounding set."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return [f"CAP_{name}" for name in KNOWN]
    return parse_bounding_set(status)


def parse_bounding_set(status: str) -> list[str]:
    """From the text of /proc/PID/status. Pure."""
    mask = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapBnd:")), 0)
    return [f"CAP_{name}" for bit, name in enumerate(KNOWN) if mask >> bit & 1]


def normalise(names: Sequence[str]) -> list[str]:
    """CAP_X in upper case, "ALL" kept. Raises InvalidParameterError for an unknown one."""
    result = []
    for name in names:
        upper = name.upper().removeprefix("CAP_")
        if upper != "ALL" and upper not in KNOWN:
            raise InvalidParameterError(f'invalid capability: unknown capability: "CAP_{upper}"')
        result.append("ALL" if upper == "ALL" else f"CAP_{upper}")
    return result


def effective(add: Sequence[str], drop: Sequence[str], *, privileged: bool, available: Sequence[str]) -> list[str]:
    """The set for the process. ``available`` is what can be granted at all.

    "ALL" in ``add`` takes everything but ``drop``; "ALL" in ``drop`` leaves only ``add``.
    Raises InvalidParameterError.
    """
    if privileged:
        return list(available)
    added, dropped = normalise(add), normalise(drop)
    if "ALL" in added:
        wanted = set(available) - set(dropped)
    elif "ALL" in dropped:
        wanted = set(added)
    else:
        wanted = {f"CAP_{name}" for name in DEFAULT} - set(dropped) | set(added)
    return [name for name in available if name in wanted]
