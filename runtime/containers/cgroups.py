"""Control groups in both layouts: version 1 (each controller a hierarchy of its own, hybrid included) and version 2.

runc makes a container's own groups; here are the facts about the host, the parent group, counters, and the removal.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from base.files import make_public_folder
from base.trees import Folder, walk_tree
from runtime.containers.limits import Capacity
from runtime.errors import HostError
from runtime.kernel.mounts import mount_points, own_mounts

log = structlog.get_logger(__name__)

REQUIRED = ("cpu", "memory", "pids")
_CONTROLLERS_V1 = {"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "net_cls", "net_prio", "perf_event", "pids"}  # fmt: skip


class Layout(msgspec.Struct, frozen=True):
    """Where the hierarchies are mounted.

    Attributes:
        version: 1 when controllers have hierarchies of their own, 2 for the unified one alone.
        mounts: mount point by controller; in version 2 every controller has the same one.
        own: path of this process's group by controller, "/..." inside the hierarchy.
    """

    version: int
    mounts: Mapping[str, Path]
    own: Mapping[str, str]

    @property
    def root(self) -> Path:
        """Mount point of version 2."""
        return next(iter(self.mounts.values()), Path("/sys/fs/cgroup"))

    def missing(self) -> list[str]:
        """Controllers the engine needs and the host lacks, in order."""
        return [name for name in REQUIRED if name not in self.mounts]


def parse_layout(mountinfo: str, own: str, unified_controllers: Mapping[str, str]) -> Layout:
    """Layout from the texts of /proc/self/mountinfo, /proc/self/cgroup and each unified mount's cgroup.controllers."""
    mounts: dict[str, Path] = {}
    unified: Path | None = None
    for mount in mount_points(mountinfo):
        if mount.kind == "cgroup":
            for option in mount.options.split(","):
                if option in _CONTROLLERS_V1:
                    mounts.setdefault(option, mount.point)
        elif mount.kind == "cgroup2" and unified is None:
            unified = mount.point
    paths: dict[str, str] = {}
    for line in own.splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        for name in names.split(",") if names else [""]:
            paths[name] = path
    if mounts or unified is None:
        return Layout(1, mounts, paths)
    controllers = unified_controllers.get(str(unified), "").split()
    return Layout(2, dict.fromkeys(controllers, unified), {name: paths.get("", "/") for name in controllers})


def detect() -> Layout:
    """The layout of this host."""
    mountinfo = own_mounts()
    controllers = {}
    for mount in mount_points(mountinfo):
        if mount.kind == "cgroup2":
            try:
                controllers[str(mount.point)] = (mount.point / "cgroup.controllers").read_text()
            except OSError:
                controllers[str(mount.point)] = ""
    return parse_layout(mountinfo, Path("/proc/self/cgroup").read_text(), controllers)


def resolve_parent(layout: Layout, parent: str) -> str:
    """Absolute group path. A relative ``parent`` is below the daemon's own group (systemd's Delegate=yes)."""
    if parent.startswith("/"):
        return parent.rstrip("/") or "/"
    own = next((path for path in (layout.own.get("memory"), layout.own.get("")) if path), "/")
    return f"{own.rstrip('/')}/{parent}"


def prepare_parent(layout: Layout, parent: str) -> None:
    """Make the parent group; in version 2 hand its controllers down, from the root on.

    A version 2 group with processes of its own cannot hand controllers down ("no internal processes"). When that is
    the daemon's own group, as under systemd with Delegate=yes, its processes move to a leaf named "daemon" first.

    Raises:
        HostError: the kernel refused; says which file.
    """
    try:
        if layout.version == 1:
            for mount in set(layout.mounts.values()):
                make_public_folder(mount / parent.lstrip("/"))
            _copy_cpusets(layout.mounts.get("cpuset"), parent)
            return
        group = layout.root
        for part in ["", *Path(parent.lstrip("/")).parts]:
            group = group / part
            make_public_folder(group)
            _hand_down(group)
    except OSError as error:
        raise HostError(f"cannot set up cgroup {parent}: {error}") from error


def _copy_cpusets(mount: Path | None, parent: str) -> None:
    """A new cpuset group is empty in version 1 and takes no process until it has CPUs and memory nodes."""
    group = mount
    for part in Path(parent.lstrip("/")).parts if mount else ():
        assert group is not None
        child = group / part
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (child / name).exists() and not (child / name).read_text().strip():
                (child / name).write_text((group / name).read_text())
        group = child


def _hand_down(group: Path) -> None:
    available = set((group / "cgroup.controllers").read_text().split())
    enabled = set((group / "cgroup.subtree_control").read_text().split())
    wanted = available - enabled
    if not wanted:
        return
    try:
        _enable(group, wanted)
    except OSError as error:
        if error.errno != 16:  # EBUSY: the group has processes of its own
            raise
        leaf = group / "daemon"
        make_public_folder(leaf)
        for pid in (group / "cgroup.procs").read_text().split():
            try:
                (leaf / "cgroup.procs").write_text(pid)
            except ProcessLookupError:
                continue
        _enable(group, wanted)


def _enable(group: Path, controllers: Iterable[str]) -> None:
    """One by one: a controller that is busy elsewhere (cpu with real-time processes) must not cost the others."""
    for name in sorted(controllers):
        try:
            (group / "cgroup.subtree_control").write_text(f"+{name}")
        except OSError as error:
            if error.errno == 16 or name in REQUIRED:
                raise
            log.warning("controller.unavailable", cgroup=str(group), controller=name, reason=str(error))


def swap_limit(layout: Layout) -> bool:
    """Whether this kernel can limit swap: it may be built or booted without (``swapaccount=0``).

    In version 2 the root has no limits, so any group that limits memory is looked at; where none does yet, a kernel
    that swaps is one that can.
    """
    mount = layout.mounts.get("memory")
    if mount is None:
        return False
    if layout.version == 1:
        return (mount / "memory.memsw.limit_in_bytes").exists()
    limiting = next(itertools.chain(mount.glob("memory.max"), mount.glob("*/memory.max")), None)
    return limiting.with_name("memory.swap.max").exists() if limiting else Path("/proc/swaps").exists()


def capacity(layout: Layout, parent: str) -> Capacity:
    """What containers below ``parent``, which need not be there yet, may be limited to."""
    sets = []
    for kind in ("cpus", "mems"):
        names = (f"cpuset.{kind}.effective",) if layout.version == 2 else (f"cpuset.effective_{kind}", f"cpuset.{kind}")
        sets.append(_nearest(layout.mounts.get("cpuset"), parent, names))
    cpus, mems = sets
    return Capacity(
        cpus=len(os.sched_getaffinity(0)),
        cpuset_cpus=cpus,
        cpuset_mems=mems,
        swap=swap_limit(layout),
        swappiness=layout.version == 1,
        oom_kill_disable=layout.version == 1,
    )


def _nearest(mount: Path | None, parent: str, names: Sequence[str]) -> str:
    """Text of the first of these files in ``parent``, or in the next group above it that has one."""
    if mount is None:
        return ""
    group = mount / parent.lstrip("/")
    for folder in (group, *group.parents):
        for name in names:
            with contextlib.suppress(OSError):
                if text := (folder / name).read_text().strip():
                    return text
        if folder == mount:
            break
    return ""


def container_paths(layout: Layout, parent: str, container_id: str) -> list[Path]:
    """The folders of a container's groups, one a hierarchy."""
    inner = f"{parent.lstrip('/')}/{container_id}"
    return [mount / inner for mount in sorted(set(layout.mounts.values()))]


def oom_kills(layout: Layout, parent: str, container_id: str) -> int:
    """How many processes of the container the kernel killed for want of memory; 0 when the group is gone."""
    mount = layout.mounts.get("memory")
    if mount is None:
        return 0
    name = "memory.events" if layout.version == 2 else "memory.oom_control"
    try:
        text = (mount / parent.lstrip("/") / container_id / name).read_text()
    except OSError:
        return 0
    fields = dict(line.split(None, 1) for line in text.splitlines() if " " in line)
    return int(fields.get("oom_kill", "0"))


def processes(paths: Iterable[Path]) -> set[int]:
    """IDs of all processes in these groups and below."""
    found: set[int] = set()
    for path in paths:
        for folder in walk(path):
            try:
                with open(os.open("cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder.fd)) as procs:
                    found.update(map(int, procs.read().split()))
            except OSError:
                continue
    return found


def walk(path: Path) -> Iterator[Folder]:
    """A group after those below it, as many levels as a container made; what cannot be read or is gone is left out."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        yield from walk_tree(path, lambda _: None)


def is_frozen(paths: Iterable[Path]) -> bool:
    """Whether a container's groups are paused."""
    for path in paths:
        for name, frozen in (("freezer.state", ("FREEZING", "FROZEN")), ("cgroup.freeze", ("1",))):
            try:
                if (path / name).read_text().strip() in frozen:
                    return True
            except OSError:
                continue
    return False


def thaw(paths: Iterable[Path]) -> None:
    """Let a SIGKILL through: in version 1 it waits in a frozen group; version 2 needs no help."""
    for path in paths:
        file = path / "freezer.state"
        try:
            if file.read_text().strip() != "THAWED":
                file.write_text("THAWED")
        except OSError:  # gone with its container, or no freezer here
            continue


def remove(paths: Iterable[Path], *, patience_s: float = 2.0) -> list[Path]:
    """Remove groups and those below them; returns what would not go.

    A group is busy for a moment after its last process exited, hence the patience. Blocks; call it in a thread.
    """
    left = list(paths)
    deadline = time.monotonic() + patience_s
    pause_s = 0.0005
    while True:
        left = [path for path in left if not _remove_tree(path)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)


def _remove_tree(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        with contextlib.suppress(OSError):
            for folder in walk(path):
                os.rmdir(folder.name, dir_fd=folder.parent)
        return not path.exists()
    return True
