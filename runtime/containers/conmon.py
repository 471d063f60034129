"""Creating and starting a container by runc under conmon; all functions block and run in threads.

conmon holds stdio, log and exit status, so that the daemon may end at any moment. It forks away from the daemon (own
session, child of init), runs ``runc create``, reports the PID through a pipe, and writes the exit status to a file
named after the container in the exit folder, by rename.

Two steps of runc are carried out here to save a process each (about 8 ms of CPU per step, measured):

- ``runc start`` only opens ``exec.fifo`` in runc's state folder, which its waiting init takes as the sign to go on, and
  removes it (libcontainer container_linux.go, ``exec``). Without the fifo the real ``runc start`` runs.
- ``runc delete`` removes the cgroups and the state folder. What cannot be removed is left to ``runc delete --force``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any  # Any: a value of the spec's JSON, or of conmon's answer

import msgspec
import structlog

from base.trees import remove_tree
from runtime.containers import cgroups, working_dir
from runtime.containers.pins import unpin
from runtime.errors import HostError, StartError

log = structlog.get_logger(__name__)

CREATE_TIMEOUT_S = 60.0
START_TIMEOUT_S = 10.0
WAITING_CHECK_S = 0.5
STRAY_TIMEOUT_S = 5.0
CHILD_UMASK = 0o022
"""Of conmon and runc, and of what an exec runs: the daemon's own is stricter, and mount points inside a container, which
runc makes, are for all its users."""
_MESSAGE_SIZE_MAX = 1 << 16


class Paths(msgspec.Struct, frozen=True):
    """Folders below RUN: ``bundles/ID``, ``pins/ID``, ``runc`` (runc's root), ``exits``."""

    run: Path

    @property
    def runc(self) -> Path:
        return self.run / "runc"

    @property
    def exits(self) -> Path:
        return self.run / "exits"

    def bundle(self, container_id: str) -> Path:
        """config.json, attach socket, control fifos and PID files of a container."""
        return self.run / "bundles" / container_id

    def pins(self, container_id: str) -> Path:
        """Mounts of what was opened by descriptor, there while runc makes a container (see ``pins``)."""
        return self.run / "pins" / container_id

    def prepare(self) -> None:
        """Make them, for nobody else."""
        for path in (self.run, self.runc, self.exits, self.run / "bundles", self.run / "pins"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)


class Tools(msgspec.Struct, frozen=True):
    """Paths of the programs."""

    runc: str
    conmon: str


class CreateRequest(msgspec.Struct, frozen=True):
    """What conmon has to know; ``log_driver`` is "k8s-file" or "none"."""

    container_id: str
    name: str
    spec: dict[str, Any]
    log_path: Path
    log_driver: str
    tty: bool
    open_stdin: bool
    stdin_once: bool


class Created(msgspec.Struct, frozen=True):
    """The waiting init and its conmon."""

    pid: int
    conmon_pid: int


def find_tools() -> Tools:
    """Raises HostError when runc or conmon is not installed."""
    found = {name: shutil.which(name) for name in ("runc", "conmon")}
    for name, path in found.items():
        if path is None:
            raise HostError(f"{name} is missing: install the package {name}")
    return Tools(str(found["runc"]), str(found["conmon"]))


def create(tools: Tools, paths: Paths, request: CreateRequest) -> Created:
    """Write the bundle and create the container; its init then waits for ``start``.

    Raises:
        StartError: the runtime refused.
        InvalidParameterError: its working directory is not one of its own files.
        HostError: conmon did not answer, or a file could not be written.
    """
    bundle = paths.bundle(request.container_id)
    try:
        (paths.exits / request.container_id).unlink(missing_ok=True)
        shutil.rmtree(bundle, ignore_errors=True)
        bundle.mkdir(mode=0o710)
        (bundle / "config.json").write_bytes(json.dumps(request.spec, separators=(",", ":")).encode())
    except OSError as error:
        raise HostError(f"cannot write the bundle of {request.container_id[:12]}: {error}") from error
    try:
        answer = _spawn(_command(tools, paths, request, bundle), bundle, CREATE_TIMEOUT_S)
    finally:
        unpin(paths.pins(request.container_id))
    pid = answer.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        raise start_error(failure_reason(bundle) or str(answer.get("message") or "no reason given"))
    try:
        created = Created(pid, int((bundle / "conmon.pid").read_text()))
    except (OSError, ValueError) as error:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # just made and not let go, so it is still the one
        raise HostError(f"cannot take over container {request.container_id[:12]}: {error}") from error
    try:
        working_dir.check_created(pid, request.spec["process"]["cwd"])
    except BaseException:
        abandon(created)
        raise
    return created


def _command(tools: Tools, paths: Paths, request: CreateRequest, bundle: Path) -> list[str]:
    log_argument = "none:" if request.log_driver == "none" else f"k8s-file:{request.log_path}"
    command = [
        *(tools.conmon, "--cid", request.container_id, "--cuuid", request.container_id, "--name", request.name),
        *("--runtime", tools.runc, "--bundle", str(bundle), "--persist-dir", str(bundle)),
        *("--container-pidfile", str(bundle / "init.pid"), "--conmon-pidfile", str(bundle / "conmon.pid")),
        *("--exit-dir", str(paths.exits), "--log-path", log_argument, "--log-level", "error"),
        *("--full-attach", "--no-sync-log", "--no-new-keyring"),
    ]
    for argument in runc_arguments(paths, bundle):
        command += ["--runtime-arg", argument]
    if request.tty:
        command.append("--terminal")
    if request.open_stdin:
        command.append("--stdin")
        if not request.stdin_once or request.tty:  # a terminal has no end of input, and may be detached from
            command.append("--leave-stdin-open")
    return command


def runc_arguments(paths: Paths, bundle: Path) -> list[str]:
    """Global options of each runc call."""
    return ["--root", str(paths.runc), "--log", str(bundle / "runc.log"), "--log-format", "json"]


def _spawn(command: Sequence[str], folder: Path, timeout_s: float) -> dict[str, Any]:
    """Run conmon and read the line it sends once the container is created."""
    reading, writing = os.pipe()
    deadline = time.monotonic() + timeout_s
    try:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=(folder / "conmon.log").open("wb"),
                pass_fds=(writing,),
                env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "_OCI_SYNCPIPE": str(writing)},
                cwd=folder,
                start_new_session=True,
                umask=CHILD_UMASK,
            )
        except OSError as error:
            raise HostError(f"cannot run {command[0]}: {error}") from error
        finally:
            os.close(writing)
        line = _read_line(reading, deadline)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)  # the parent half ends as soon as it has forked
    finally:
        os.close(reading)
    if line is None:
        raise HostError(f"conmon gave no answer within {timeout_s:.0f} s")
    try:
        answer: dict[str, Any] = json.loads(line)
    except ValueError:
        said = (folder / "conmon.log").read_text(errors="replace").strip() or "no reason given"
        raise HostError(f"conmon failed: {said.splitlines()[-1]}") from None
    return answer


def _read_line(fd: int, deadline: float) -> bytes | None:
    data = b""
    while b"\n" not in data and len(data) < _MESSAGE_SIZE_MAX:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            return None
        piece = os.read(fd, 4096)
        if not piece:
            break
        data += piece
    return data.partition(b"\n")[0]


def failure_reason(bundle: Path) -> str:
    """The last error in runc's own log."""
    try:
        lines = (bundle / "runc.log").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if entry.get("level") in ("error", "fatal"):
                return str(entry.get("msg", ""))
    return ""


def start_error(reason: str) -> StartError:
    """dockerd's text around runc's reason, and the exit code that ``docker run`` ends with."""
    text = f"failed to create task for container: OCI runtime create failed: {reason}"
    return StartError(text, exit_code=failure_code(reason, 128))


def failure_code(reason: str, default: int) -> int:
    """127 for a program that is not there, 126 for one that cannot be run."""
    if re.search(r"executable file not found|no such file or directory", reason):
        return 127
    if re.search(r"permission denied|is a directory|not a directory", reason):
        return 126
    return default


def start(tools: Tools, paths: Paths, container_id: str, pid: int) -> None:
    """Let the waiting init become the container's process. Raises StartError, HostError."""
    fifo = paths.runc / container_id / "exec.fifo"
    # The pidfd before the fifo: opening the fifo lets the process go, and a short one has ended a moment later.
    try:
        init = os.pidfd_open(pid)
    except ProcessLookupError:
        raise start_error(
            failure_reason(paths.bundle(container_id)) or "its init ended before it was started"
        ) from None
    try:
        fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        os.close(init)
        run_runc(tools, paths, container_id, "start", container_id)
        return
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.register(init, select.POLLIN)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            ready = {ready_fd for ready_fd, _ in poller.poll(WAITING_CHECK_S * 1000)}
            with contextlib.suppress(BlockingIOError):
                if fd in ready and os.read(fd, 1):
                    break
            if init in ready:
                raise start_error(
                    failure_reason(paths.bundle(container_id)) or "its init ended while it was being started"
                )
            if not ready and not is_waiting(
                paths, container_id, pid
            ):  # an earlier daemon let it go just before it died
                break
            if time.monotonic() > deadline:
                raise HostError(f"container {container_id[:12]} did not start within {START_TIMEOUT_S:.0f} s")
        fifo.unlink(missing_ok=True)
    finally:
        os.close(fd)
        os.close(init)


def abandon(created: Created) -> None:
    """End a container that was created but is not to be started, and wait for its conmon, which else would write an
    exit file after the next start."""
    for pid, number in ((created.pid, signal.SIGKILL), (created.conmon_pid, 0)):
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if number:
                signal.pidfd_send_signal(fd, number)
            if not select.select([fd], [], [], 5.0)[0]:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            continue
        finally:
            os.close(fd)


def _is_a_daemons(entry: Path) -> bool:
    """Whether a process has our user and is in our PID namespace, as all that a daemon runs itself. Raises OSError."""
    is_here = os.readlink(entry / "ns/pid") == os.readlink("/proc/self/ns/pid")
    return is_here and entry.stat().st_uid == os.geteuid()


def end_strays(paths: Paths, keep: Set[str]) -> None:
    """End the monitors and runc calls of a dead daemon whose container is not in ``keep``; let those of others finish.

    A daemon that died in the middle of a start leaves conmon and runc at work: what they make after the cleaning would
    stay. An exec's monitor is left alone as long as its container runs. Anybody, in a container too, may give a process
    such words for a command line: those are none of ours, and all that is waited for has one time together.
    """
    ours, end = os.fsencode(paths.run) + b"/", time.monotonic() + STRAY_TIMEOUT_S
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fd = os.pidfd_open(int(entry.name))
        except OSError:
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")[:-1]
            if not any(word.startswith(ours) for word in words) or not _is_a_daemons(entry):
                continue
            is_conmon = Path(os.fsdecode(words[0])).name == "conmon"
            owner = words[words.index(b"--cid") + 1] if is_conmon else words[-1]
            if not is_conmon and Path(os.fsdecode(words[0])).name != "runc":
                continue
            if owner.decode() not in keep:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            elif is_conmon or b"exec" in words or b"create" in words:
                continue
            select.select([fd], [], [], max(0.0, end - time.monotonic()))
        except (OSError, ValueError, IndexError):  # ended meanwhile, or these are not the words of one of them
            continue
        finally:
            os.close(fd)


def run_runc(tools: Tools, paths: Paths, container_id: str, *arguments: str, timeout_s: float = 30.0) -> str:
    """Run one runc command to its end; returns what it prints. Raises HostError with runc's reason."""
    bundle = paths.bundle(container_id)
    try:
        done = subprocess.run(
            [tools.runc, "--root", str(paths.runc), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            umask=CHILD_UMASK,
            cwd=bundle if bundle.is_dir() else "/",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"runc {arguments[0]}: {error}") from error
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip().splitlines()
        reason = text[-1] if text else f"exit status {done.returncode}"
        raise HostError(f"runc {arguments[0]}: {reason}")
    return done.stdout.decode(errors="replace")


def resize(folder: Path, height: int, width: int) -> None:
    """Tell the conmon of this folder the size of its terminal. Raises HostError."""
    try:
        fd = os.open(folder / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot resize: {error.strerror}") from error
    try:
        os.write(fd, f"1 {height} {width}\n".encode())
    finally:
        os.close(fd)


def is_created(paths: Paths, container_id: str) -> bool:
    """Whether runc knows the container."""
    return (paths.runc / container_id / "state.json").exists()


def is_waiting(paths: Paths, container_id: str, pid: int) -> bool:
    """Whether its init has yet to be let go: it holds the fifo until then (runc's standard_init_linux.go closes it).

    That the fifo is there says less: it is removed after the process was let go.
    """
    try:
        fifo = (paths.runc / container_id / "exec.fifo").stat()
        held = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
    for link in held:
        with contextlib.suppress(OSError):
            if os.path.samestat(link.stat(), fifo):
                return True
    return False


def exit_status(paths: Paths, container_id: str) -> tuple[int, int] | None:
    """Exit code (128 + N for signal N) and time in nanoseconds, as conmon wrote them; None when it has not.

    Raises:
        OSError: it cannot be read now (no descriptor left): whether conmon wrote it is not known.
    """
    path = paths.exits / container_id
    try:
        return int(path.read_text()), path.stat().st_mtime_ns
    except (FileNotFoundError, ValueError):
        return None


def clean(tools: Tools, paths: Paths, container_id: str, groups: Sequence[Path]) -> None:
    """After a container ended: kill what is left in its cgroups, then remove cgroups, runc's state and the bundle.

    ``groups`` are the container's cgroups as the layout has them; runc's own record names them all. Idempotent.

    Raises:
        HostError: something is left; all the rest is gone.
    """
    folder = paths.runc / container_id
    found = {*groups, *_recorded_groups(folder)}
    for pid in cgroups.processes(found):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    cgroups.thaw(found)
    failed: list[str] = []
    if cgroups.remove(sorted(found)):
        try:
            run_runc(tools, paths, container_id, "delete", "--force", container_id)
        except HostError as error:
            failed.append(str(error))
    for tree in (folder, paths.bundle(container_id)):
        try:
            remove_tree(tree)
        except OSError as error:
            failed.append(f"cannot remove {tree}: {error.strerror}")
    if not unpin(paths.pins(container_id)):
        failed.append(f"cannot remove {paths.pins(container_id)}")
    if failed:
        raise HostError("; ".join(failed))


def forget_exit(paths: Paths, container_id: str) -> None:
    """The exit status was taken down. Idempotent. Raises OSError."""
    (paths.exits / container_id).unlink(missing_ok=True)


def _recorded_groups(folder: Path) -> list[Path]:
    try:
        state = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError):
        return []
    # The last part must be the container's ID: never remove a group above it, whatever the file says.
    groups = [Path(path) for path in (state.get("cgroup_paths") or {}).values() if path]
    return [path for path in groups if path.name == folder.name]
