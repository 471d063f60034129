"""Taking away what a stopped engine leaves in the kernel: ``python -m runtime.teardown --state DIR --run DIR ...``.

Containers outlive their daemon by design, so stopping the daemon is not an end. This is: processes, mounts, the bridge
with its ports and rules, control groups. Files stay; they can be deleted once nothing is mounted below them. It may be
run any number of times, also halfway through, and it needs nothing that the engine wrote: all is found in the kernel.

What it touches is bounded by what it is given, because a wrong argument would end the host: processes of the control
group (and conmons whose exit folder is below RUN), mounts strictly below STATE and RUN, a device only if it is a bridge.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import msgspec

from runtime.containers import cgroups
from runtime.errors import EngineError
from runtime.kernel import netlink, nft
from runtime.kernel.linux_network import parse_names
from runtime.kernel.mounts import mount_points, own_mounts, unmount
from runtime.networks import forwarding, options, rules
from runtime.networks.controller import read_table
from runtime.resolver.messages import PROCESS as RESOLVER

LOCK_FILE = "swarmd.lock"
KILL_TIMEOUT_S = 10.0
CONMON_TIMEOUT_S = 5.0
_POLL_PERIOD_S = 0.02
_DEPTH_MIN = 2
_BRIDGE = re.compile(r"[A-Za-z0-9_.-]{1,15}")


class TeardownRefusedError(EngineError):
    """Nothing was touched: the daemon runs, or an argument would reach too far."""


class Target(msgspec.Struct, frozen=True):
    """What the engine was given (see ``Engine``); ``cgroup_parent`` absolute inside the hierarchies, not "/".

    Raises:
        TeardownRefusedError: an argument that cannot be an engine's.
    """

    state: Path
    run: Path
    bridge: str
    cgroup_parent: str

    def __post_init__(self) -> None:
        for name, path in (("--state", self.state), ("--run", self.run)):
            if not path.is_absolute() or len(path.parts) <= _DEPTH_MIN or ".." in path.parts:
                raise TeardownRefusedError(f"{name} {path}: want an absolute path at least two levels deep")
        if not _BRIDGE.fullmatch(self.bridge):
            raise TeardownRefusedError(f"--bridge {self.bridge}: no name of a network device")
        parts = Path(self.cgroup_parent).parts
        if parts[:1] != ("/",) or len(parts) == 1 or ".." in parts:
            raise TeardownRefusedError(f"--cgroup-parent {self.cgroup_parent}: want an absolute path below /")


class Report(msgspec.Struct):
    """One phrase for each thing removed, in order, and one with the reason for each that is still there."""

    removed: list[str] = msgspec.field(default_factory=list)
    left: list[str] = msgspec.field(default_factory=list)


def teardown(target: Target) -> Report:
    """Remove all of it; blocks, for some seconds when processes are slow to go. Idempotent.

    The daemon's lock is held meanwhile, so that none starts into it.

    Raises:
        TeardownRefusedError: a daemon holds the lock, or this process is in the control group itself.
    """
    report = Report()
    with _daemon_kept_out(target.state.parent / LOCK_FILE):
        groups = _groups(target.cgroup_parent)
        if os.getpid() in cgroups.processes(groups):
            raise TeardownRefusedError(f"this process is in the cgroup {target.cgroup_parent} itself")
        _attempt(report, _end_processes, groups, target.cgroup_parent, report)
        _attempt(report, _end_conmons, target.run.resolve(), report)
        _attempt(report, _end_resolvers, target.run.resolve(), report)
        _attempt(report, _remove_mounts, [target.state.resolve(), target.run.resolve()], report)
        bridges = _bridges(target)
        _attempt(report, _remove_rules, target.bridge, bridges, report)
        for bridge in bridges:
            _attempt(report, _remove_bridge, bridge, report)
        _attempt(report, _remove_groups, groups, report)
    return report


def mounts_below(mountinfo: str, folders: Sequence[Path]) -> list[Path]:
    """Mount points strictly below the folders, in the order in which to unmount them; stacked ones as often as stacked.

    Pure. ``mountinfo`` is the text of /proc/self/mountinfo, whose later lines lie above earlier ones (proc(5)).
    """
    points = [mount.point for mount in mount_points(mountinfo)]
    below = [point for point in points if any(folder in point.parents for folder in folders)]
    order = sorted(enumerate(below), key=lambda item: (len(item[1].parts), item[0]), reverse=True)
    return [point for _, point in order]


def hierarchies(mountinfo: str) -> list[Path]:
    """Mount points of all control group hierarchies of both versions, named ones (systemd's) included. Pure."""
    found: dict[Path, None] = {}
    for mount in mount_points(mountinfo):
        if mount.kind in ("cgroup", "cgroup2"):
            found[mount.point] = None
    return list(found)


def in_group(membership: str, parent: str) -> bool:
    """Whether /proc/PID/cgroup's text has the process in ``parent`` or below it, in any hierarchy. Pure."""
    paths = [line.split(":", 2)[-1] for line in membership.split("\n")]
    return any(path == parent or path.startswith(parent.rstrip("/") + "/") for path in paths)


@contextlib.contextmanager
def _daemon_kept_out(path: Path) -> Iterator[None]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read().decode(errors="replace").strip() or "unknown"
            raise TeardownRefusedError(f"swarmd (PID {holder}) runs on {path.parent}: stop it first") from None
        yield


def _attempt(report: Report, step: Callable[..., None], *arguments: object) -> None:
    """One kind that will not go must not keep the others from going."""
    try:
        step(*arguments)
    except (EngineError, OSError) as error:
        report.left.append(str(error))


def _groups(parent: str) -> list[Path]:
    mounts = hierarchies(own_mounts())
    return [group for mount in mounts if (group := mount / parent.lstrip("/")).is_dir()]


def _end_processes(groups: Sequence[Path], parent: str, report: Report) -> None:
    ended: set[int] = set()
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while alive := cgroups.processes(groups):
        if time.monotonic() > deadline:
            report.left.append(f"processes in cgroup {parent}: {sorted(alive)} do not end")
            break
        _kill_all(groups, alive, parent)
        ended |= alive
        time.sleep(_POLL_PERIOD_S)
    if ended:
        report.removed.append(f"{len(ended)} processes of cgroup {parent}")


def _kill_all(groups: Sequence[Path], pids: Iterable[int], parent: str) -> None:
    """SIGKILL for all. Version 1: frozen meanwhile, so that none forks away; a frozen one dies once thawed."""
    for group in groups:
        with contextlib.suppress(OSError):
            (group / "cgroup.kill").write_text("1")
        if (group / "freezer.state").exists():
            (group / "freezer.state").write_text("FROZEN")
    for pid in pids:
        _kill(pid, lambda pid: _is_below(pid, groups, parent))
    for folder in chain.from_iterable(map(cgroups.walk, groups)):
        if "freezer.state" in folder.others:
            with (
                contextlib.suppress(OSError),
                open(os.open("freezer.state", os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder.fd), "w") as state,
            ):
                state.write("THAWED")


def _is_below(pid: int, groups: Sequence[Path], parent: str) -> bool:
    """Raises: OSError, the process is gone."""
    try:
        return in_group(Path(f"/proc/{pid}/cgroup").read_text(errors="surrogateescape"), parent)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return pid in cgroups.processes(groups)  # the kernel tells no path beyond PATH_MAX, so look for the process


def _kill(pid: int, still_meant: Callable[[int], bool]) -> None:
    """SIGKILL by pidfd, after asking again whether the number still belongs to whom we mean."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if still_meant(pid):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


def _end_conmons(run: Path, report: Report) -> None:
    """Each conmon ends by itself once its container has; one that does not is killed."""
    if not (found := conmons(run)):
        return
    deadline = time.monotonic() + CONMON_TIMEOUT_S
    while (alive := conmons(run)) and time.monotonic() < deadline:
        time.sleep(_POLL_PERIOD_S)
    for pid in alive:
        _kill(pid, lambda pid: _is_conmon(pid, run))
    report.removed.append(f"{len(found)} conmon processes of {run}")


def conmons(run: Path) -> set[int]:
    """PIDs of the conmons that write their exit files below ``run``, execs' included."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return {pid for pid in pids if _is_conmon(pid, run)}


def _is_conmon(pid: int, run: Path) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    if Path(os.fsdecode(words[0])).name != "conmon" or b"--exit-dir" not in words[:-1]:
        return False
    return run in Path(os.fsdecode(words[words.index(b"--exit-dir") + 1])).parents


def _end_resolvers(run: Path, report: Report) -> None:
    """The name server of the containers, of whom there are none any more."""
    for pid in resolvers(run):
        _kill(pid, lambda pid: _is_resolver(pid, run))
        report.removed.append(f"the resolver of {run}")


def resolvers(run: Path) -> set[int]:
    """PIDs of the resolvers that have their folder below ``run``: one, or none."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return {pid for pid in pids if _is_resolver(pid, run)}


def _is_resolver(pid: int, run: Path) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return words[-2:-1] == [RESOLVER.encode()] and run in Path(os.fsdecode(words[-1])).parents


def _remove_mounts(folders: Sequence[Path], report: Report) -> None:
    found = mounts_below(own_mounts(), folders)
    for point in found:
        _attempt(report, unmount, point)
    left = mounts_below(own_mounts(), folders)
    report.left += [f"mount {point}" for point in left]
    report.removed += [f"mount {point}" for point in found if point not in left]


def _bridges(target: Target) -> list[str]:
    """Devices of the engine's networks, the default bridge first, less those that were there before their network."""
    found = [target.bridge]
    for network in read_table(target.state):
        if network.Driver == "bridge" and network.Settled and not network.DeviceFound:
            with contextlib.suppress(EngineError):
                found.append(options.parse(network).device)
    return list(dict.fromkeys(found))


def _remove_rules(engine: str, bridges: Sequence[str], report: Report) -> None:
    table = rules.table_name(engine)
    tables = {line.removeprefix("table ") for line in nft.run("list tables").splitlines()}
    commands = ""
    for version, shared in forwarding.TABLES.items():
        if shared not in tables:
            continue
        removals, is_last = forwarding.removals(shared, bridges, _names_in(shared, forwarding.BRIDGES))
        commands += removals
        if is_last:
            (Path("/proc/sys/net") / forwarding.SYSCTLS[version]).write_text("0")
            report.removed.append(f"forwarding of IPv{version}, which was switched on for it")
    if table in tables:
        commands += f"delete table {table}\n"
        report.removed.append(f"nftables table {table}")
    if commands:
        nft.run(commands)


def _names_in(table: str, name: str) -> set[str]:
    return parse_names(nft.run(f"list set {table} {name}"))


def _remove_bridge(bridge: str, report: Report) -> None:
    """With its ports: the kernel takes a veth pair away with its namespace, but not at once."""
    with netlink.connection() as sock:
        links = netlink.links(sock)
        if bridge not in links:
            return
        index, _, kind = links[bridge]
        if kind != "bridge":
            report.left.append(f"device {bridge}: no bridge, so not the engine's")
            return
        ports = [name for name, (_, master, _) in links.items() if master == index and name.startswith("veth")]
        netlink.send(sock, [netlink.delete_link(name) for name in [*ports, bridge]])
        report.removed.append(f"bridge {bridge} with {len(ports)} ports")


def _remove_groups(groups: Sequence[Path], report: Report) -> None:
    left = cgroups.remove(groups, patience_s=5.0)
    report.left += [f"cgroup {group}" for group in left]
    report.removed += [f"cgroup {group}" for group in groups if group not in left]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 when refused or when something is left, with a line for each on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m runtime.teardown", description="Remove what a stopped engine leaves in the kernel."
    )
    parser.add_argument("--state", type=Path, required=True, help="the engine's state folder (swarmd's: STATE/engine)")
    parser.add_argument("--run", type=Path, required=True, help="the engine's run folder (or swarmd's)")
    parser.add_argument("--bridge", required=True, metavar="NAME", help="device of its bridge")
    parser.add_argument("--cgroup-parent", required=True, metavar="PATH", help="its cgroup")
    options = parser.parse_args(arguments)
    try:
        report = teardown(Target(options.state, options.run, options.bridge, options.cgroup_parent))
    except TeardownRefusedError as error:
        sys.stderr.write(f"teardown: {error}\n")
        return 1
    for line in report.removed or ["nothing"]:
        sys.stdout.write(f"removed {line}\n")
    for line in report.left:
        sys.stderr.write(f"teardown: still there: {line}\n")
    return 1 if report.left else 0


if __name__ == "__main__":
    raise SystemExit(main())
