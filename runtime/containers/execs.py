"""Further processes in a running container: runc exec under a conmon of its own.

Handshake (conmon.c, ``--exec-attach``): a byte into the start pipe lets conmon begin; it opens the attach socket and says
so on the attach pipe; a second byte, once we are connected, lets runc exec run; the sync pipe then carries the PID and,
when the process has ended, the exit code. An exec does not outlive the daemon's interest in it: after a restart its
process runs on, but its ID is unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any  # Any: a value of the OCI spec's JSON

import msgspec

from runtime.containers import attach, users
from runtime.containers.attach import AttachStream
from runtime.containers.conmon import CHILD_UMASK, Paths, Tools, failure_code, failure_reason, runc_arguments
from runtime.containers.container import Container
from runtime.errors import HostError, StartError
from runtime.types import ExecConfig, ExecInspect, ExecProcessConfig

START_TIMEOUT_S, KILL_AGAIN_S = 30.0, 1.0


class Exec(msgspec.Struct):
    """One exec instance; ``group_add`` is its container's, ``exit_code`` None while it has not ended."""

    id: str
    container_id: str
    config: ExecConfig
    group_add: Sequence[str]
    folder: Path
    running: bool = False
    started: bool = False
    pid: int = 0
    exit_code: int | None = None
    ended: asyncio.Event = msgspec.field(default_factory=asyncio.Event)

    def inspect(self) -> ExecInspect:
        """The answer of ``GET /exec/{id}/json``."""
        command = self.config.Cmd or [""]
        return ExecInspect(
            ID=self.id,
            Running=self.running,
            ExitCode=self.exit_code,
            ProcessConfig=ExecProcessConfig(
                tty=self.config.Tty,
                entrypoint=command[0],
                arguments=command[1:],
                privileged=self.config.Privileged,
                user=self.config.User,
            ),
            OpenStdin=self.config.AttachStdin,
            OpenStderr=self.config.AttachStderr,
            OpenStdout=self.config.AttachStdout,
            CanRemove=False,
            ContainerID=self.container_id,
            DetachKeys=self.config.DetachKeys or "",
            Pid=self.pid,
        )


def new_exec(container: Container, config: ExecConfig, paths: Paths) -> Exec:
    """A prepared, not yet started exec."""
    exec_id = secrets.token_hex(32)
    groups = container.record.HostConfig.GroupAdd or ()
    return Exec(exec_id, container.id, config, groups, paths.run / "execs" / exec_id[:24])


def process_spec(base: dict[str, Any], config: ExecConfig, user: users.User | None, every: list[str]) -> dict[str, Any]:
    """The OCI process of an exec, from the container's own; ``every`` are the capabilities of a privileged one. Pure."""
    process = dict(base)
    process.pop("consoleSize", None)
    process.update(args=list(config.Cmd or ()), terminal=config.Tty)
    env = {item.partition("=")[0]: item for item in base.get("env", ())}
    if config.Tty:
        env.setdefault("TERM", "TERM=xterm")
    env.update({item.partition("=")[0]: item for item in config.Env or ()})
    if config.WorkingDir:
        process["cwd"] = config.WorkingDir
    if user is not None:
        process["user"] = {
            "uid": user.uid,
            "gid": user.gid,
            "additionalGids": sorted({user.gid, *user.additional_gids}),
        }
        if not any(item.startswith("HOME=") for item in config.Env or ()):
            env["HOME"] = f"HOME={user.home}"
    process["env"] = list(env.values())
    if config.Privileged:
        process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), every)
    if config.Tty and config.ConsoleSize and len(config.ConsoleSize) == 2:
        process["consoleSize"] = {"height": config.ConsoleSize[0], "width": config.ConsoleSize[1]}
    return process


class Pipes(msgspec.Struct):
    """Our ends: ``sync`` brings PID and exit code, ``start`` lets conmon go on, ``attach`` says it listens."""

    sync: int
    start: int
    attach: int


def spawn(tools: Tools, paths: Paths, item: Exec, every: list[str]) -> Pipes:
    """Start conmon up to the point where it wants to be attached to. Blocks. Raises HostError, InvalidParameterError."""
    try:
        return _spawn(_prepare(tools, paths, item, every), item.folder)
    except (OSError, ValueError) as error:  # the container ended just now, or the run folder is full
        raise HostError(f"cannot prepare exec in container {item.container_id[:12]}: {error}") from error


def _prepare(tools: Tools, paths: Paths, item: Exec, every: list[str]) -> list[str]:
    """Write what conmon reads; its command line."""
    bundle = paths.bundle(item.container_id)
    document = json.loads((bundle / "config.json").read_text())
    user = None
    if item.config.User:
        user = users.look_up(Path(document["root"]["path"]), item.config.User, item.group_add)
    item.folder.mkdir(parents=True, mode=0o710)
    (item.folder / "exits").mkdir()
    process = process_spec(document["process"], item.config, user, every)
    (item.folder / "process.json").write_text(json.dumps(process))
    command = [
        *(tools.conmon, "--api-version", "1", "--cid", item.container_id, "--cuuid", item.id),
        *("--name", item.id[:12], "--runtime", tools.runc, "--bundle", str(item.folder)),
        *("--container-pidfile", str(item.folder / "init.pid"), "--exit-dir", str(item.folder / "exits")),
        *("--full-attach", "--log-path", "none:", "--log-level", "error", "--no-sync-log", "--no-new-keyring"),
        *("--exec", "--exec-attach", "--exec-process-spec", str(item.folder / "process.json")),
    ]
    for argument in runc_arguments(paths, item.folder):
        command += ["--runtime-arg", argument]
    if item.config.Tty:
        command.append("--terminal")
    if item.config.AttachStdin:
        command.append("--stdin")
    return command


def _spawn(command: list[str], folder: Path) -> Pipes:
    with contextlib.ExitStack() as ours:
        with contextlib.ExitStack() as given:

            def pipe() -> tuple[int, int]:
                """For us to read from and for conmon to write to; both are closed on the way out."""
                reading, writing = os.pipe()
                ours.callback(os.close, reading)
                given.callback(os.close, writing)
                return reading, writing

            (sync, its_sync), (attached, its_attached) = pipe(), pipe()
            its_begin, begin = os.pipe()
            given.callback(os.close, its_begin)
            ours.callback(os.close, begin)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=given.enter_context((folder / "conmon.log").open("wb")),
                pass_fds=(its_sync, its_begin, its_attached),
                env={
                    "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
                    "_OCI_SYNCPIPE": str(its_sync),
                    "_OCI_STARTPIPE": str(its_begin),
                    "_OCI_ATTACHPIPE": str(its_attached),
                },
                cwd=folder,
                start_new_session=True,
                umask=CHILD_UMASK,
            )
        os.write(begin, b"\0")
        ours.pop_all()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    return Pipes(sync, begin, attached)


async def run(pipes: Pipes, item: Exec, stream: AttachStream) -> None:
    """Attach, let it run, and learn its PID; then ``watch`` sees it end. Raises StartError, HostError: ``give_up`` then."""
    try:
        line = await _line(pipes.attach, START_TIMEOUT_S)
        if not line:
            raise HostError(f"exec failed: {_last_words(item.folder)}")
        stream.connected(await asyncio.to_thread(attach.connect, item.folder / "attach"))
        os.write(pipes.start, b"\0")
        answer = json.loads(await _line(pipes.sync, START_TIMEOUT_S) or b"{}")
        pid = answer.get("pid", answer.get("data", -1))
        if not isinstance(pid, int) or pid <= 0:
            raise _exec_error(item.folder, str(answer.get("message") or ""))
        item.pid, item.running, item.started = pid, True, True
    except (OSError, ValueError) as error:
        raise HostError(f"exec failed: {error}") from error
    finally:
        os.close(pipes.attach)
        os.close(pipes.start)


async def give_up(pipes: Pipes, item: Exec) -> None:
    """End what may run of one that failed: conmon takes the end of our pipes for the sign to go on."""
    try:
        answer = json.loads(await _line(pipes.sync, START_TIMEOUT_S) or b"{}")
        pid = answer.get("pid", answer.get("data", -1))
        item.pid = pid if isinstance(pid, int) and pid > 0 else 0
        while item.pid:
            kill(item)
            with contextlib.suppress(TimeoutError):  # without a descriptor it cannot be killed yet
                async with asyncio.timeout(KILL_AGAIN_S):
                    await _line(pipes.sync, None)
                    item.pid = 0
    except (HostError, ValueError):
        return
    finally:
        os.close(pipes.sync)


def kill(item: Exec) -> None:
    """End its process, if it still runs."""
    if not item.pid:
        return
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(item.pid)
        try:  # once held, it is either still ours or was somebody else's already
            if item.container_id in Path(f"/proc/{item.pid}/cgroup").read_text():
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)


async def watch(pipes: Pipes, item: Exec) -> int:
    """Wait for the end; returns the exit code."""
    try:
        answer = json.loads(await _line(pipes.sync, None) or b"{}")
    except ValueError:
        answer = {}
    finally:
        os.close(pipes.sync)
    code = answer.get("exit_code", answer.get("data"))
    if not isinstance(code, int):
        code = _exit_file(item)
    item.exit_code, item.running, item.pid = code, False, 0
    item.ended.set()
    return code


def _exit_file(item: Exec) -> int:
    try:
        return int((item.folder / "exits" / item.container_id).read_text())
    except (OSError, ValueError):
        return 137  # its conmon was killed, and the process with it


def _exec_error(folder: Path, message: str) -> StartError:
    reason = failure_reason(folder) or message or _last_words(folder)
    return StartError(f"OCI runtime exec failed: {reason}", exit_code=failure_code(reason, 126))


def _last_words(folder: Path) -> str:
    for name in ("runc.log", "conmon.log"):
        with contextlib.suppress(OSError):
            lines = (folder / name).read_text(errors="replace").strip().splitlines()
            if lines:
                return lines[-1]
    return "no reason given"


async def _line(fd: int, timeout_s: float | None) -> bytes:
    """One line from a pipe, without blocking the loop; b"" at its end. Raises HostError on a time-out."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    data = b""
    try:
        async with asyncio.timeout(timeout_s):
            while b"\n" not in data:
                ready = asyncio.Event()
                loop.add_reader(fd, ready.set)
                try:
                    await ready.wait()
                finally:
                    loop.remove_reader(fd)
                try:
                    piece = os.read(fd, 1)  # byte by byte: what follows the line belongs to the next call
                except BlockingIOError:
                    continue
                if not piece:
                    break
                data += piece
    except TimeoutError:
        raise HostError(f"conmon gave no answer within {timeout_s:.0f} s") from None
    return data.rstrip(b"\n")
