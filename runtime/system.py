"""The host: what it lacks to run containers, and the facts that ``docker info`` shows."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

import msgspec

from runtime.containers import cgroups
from runtime.kernel import nft
from runtime.kernel.syscalls import supports_openat2


class Problem(msgspec.Struct, frozen=True):
    """Something the host lacks: what, and how to mend it, in one line."""

    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what}: {self.mend}"


def check_host() -> list[Problem]:
    """What stands in the way of running containers here, most basic first; empty when nothing does."""
    if os.geteuid() != 0:
        return [Problem("not root", "start the daemon as root (sudo, or the systemd unit)")]
    problems = [
        Problem(f"{name} is missing", f"install the package {name} (apt-get install {name})")
        for name in ("runc", "conmon")
        if shutil.which(name) is None
    ]
    if not nft.available():
        problems.append(
            Problem("libnftables is missing", "install the package libnftables1 (apt-get install libnftables1)")
        )
    if not supports_openat2():
        problems.append(
            Problem("the kernel has no openat2, or it is filtered", "use Linux 5.6 or newer, on the host itself")
        )
    problems += check_cgroups(cgroups.detect())
    # The kernel loads the module at the first mount; only a kernel without one is a problem.
    if not has_filesystem("overlay", Path("/proc/filesystems").read_text()) and not _module_exists("overlay"):
        problems.append(Problem("the kernel has no overlayfs", "use a kernel with CONFIG_OVERLAY_FS (4.0 or newer)"))
    return problems


def check_cgroups(layout: cgroups.Layout) -> list[Problem]:
    """Controllers the engine cannot do without. Pure."""
    missing = layout.missing()
    if not missing:
        return []
    if not layout.mounts:
        return [Problem("no cgroup controllers are mounted", "mount cgroup2 at /sys/fs/cgroup, or boot with systemd")]
    names = ", ".join(missing)
    return [
        Problem(
            f"cgroup controllers missing: {names}",
            "enable them on the kernel command line (such as cgroup_enable=memory) or in the parent's subtree_control",
        )
    ]


def has_filesystem(name: str, table: str) -> bool:
    """Whether /proc/filesystems lists it. Pure."""
    return any(line.split()[-1:] == [name] for line in table.splitlines())


def _module_exists(name: str) -> bool:
    folder = Path("/lib/modules") / platform.release()
    try:
        names = (folder / "modules.dep").read_text()
    except OSError:
        return False
    return f"/{name}.ko" in names


def main() -> int:
    """``python -m runtime.system``: a line on stderr for each thing this host lacks; exit status 1 when there is one."""
    problems = check_host()
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
