"""A host of its own for one daemon: network, mount and PID namespace, temporary state, a cgroup parent.

When it is closed its init is killed, and with it every process in it, containers included; mounts and links go with
their namespaces, so that only the cgroups and the files are left to remove.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import Any

import docker

from tests.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
CGROUP_ROOT = Path("/sys/fs/cgroup")
DAEMON = "from api.swarmd import main; main()"
START = 'mount -t proc proc /proc && ip link set lo up && mount -t tmpfs tmpfs "$0" && exec tini -s -- "$@"'


class EngineHost:
    """One daemon on a host of its own, and the two clients that talk to it."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="swarmc", dir="/tmp"))  # short: a socket path ends at 107 bytes
        self.socket = self.directory / "engine.sock"
        self.log = self.directory / "daemon.log"
        self.cgroup_parent = f"/{self.directory.name}"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "DOCKER_CONFIG": str(self.directory / "client"),
            "DOCKER_HOST": f"unix://{self.socket}",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon and wait until it answers. Raises: RuntimeError with its log."""
        run = self.directory / "run"  # a tmpfs, as /run is
        run.mkdir()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"),
                    *("sh", "-c", START, str(run), *self.daemon_command()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
            )
        try:
            wait_until(lambda: self._listens() or self._ended(), "the daemon listens")
            if self._ended():
                raise TimeoutError("the daemon ended")
        except TimeoutError as error:
            raise RuntimeError(f"{error}:\n{self.log.read_text(errors='replace')[-4000:]}") from None

    def daemon_command(self) -> list[str]:
        """What serves ``socket``, with its files below ``directory``."""
        return [
            *(sys.executable, "-c", DAEMON, "--state", str(self.directory / "state")),
            *("--run", str(self.directory / "run"), "--cgroup-parent", self.cgroup_parent),
            *("--host", f"unix://{self.socket}"),
        ]

    def processes(self) -> list[int]:
        """Every process of the host but its init, by PID outside."""
        assert self._process is not None
        found = _children(_children(self._process.pid)[0])
        for pid in found:
            found.extend(_children(pid))
        return found

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def close(self) -> None:
        """Power off and leave nothing."""
        if self._process is not None:
            self._process.kill()  # unshare dies, --kill-child takes the init along
            self._process.wait()
            wait_until(lambda: not self._cgroup_processes(), "every process of the host is gone")
        for cgroup in self._cgroups():
            for directory, _, _ in os.walk(cgroup, topdown=False):
                with contextlib.suppress(FileNotFoundError):
                    Path(directory).rmdir()
        shutil.rmtree(self.directory)

    def _cgroups(self) -> list[Path]:
        name = self.cgroup_parent.lstrip("/")
        return [path for path in (CGROUP_ROOT / name, *CGROUP_ROOT.glob(f"*/{name}")) if path.is_dir()]

    def _cgroup_processes(self) -> list[str]:
        return [
            line
            for cgroup in self._cgroups()
            for file in cgroup.rglob("cgroup.procs")
            for line in file.read_text().split()
        ]

    def enter(self, *command: str) -> list[str]:
        """``command`` in the host's network namespace."""
        assert self._process is not None
        return ["nsenter", f"--net=/proc/{_children(self._process.pid)[0]}/ns/net", *command]

    # ------------------------------------------------------------ clients

    def cli(self, *arguments: str, stdin: bytes = b"", timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
        """Run the docker command; never raises for its exit code."""
        done = subprocess.run(
            ["docker", *arguments],
            input=stdin,
            capture_output=True,
            env=self.environment,
            timeout=timeout_s,
            check=False,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, *arguments: str, stdin: bytes = b"", timeout_s: float = 100) -> str:
        """What the docker command printed. Raises: AssertionError when it fails."""
        done = self.cli(*arguments, stdin=stdin, timeout_s=timeout_s)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.returncode}: {done.stderr or done.stdout}"
        return done.stdout.strip()

    def client(self, **options: Any) -> docker.DockerClient:
        """docker-py; the caller closes it."""
        return docker.DockerClient(base_url=f"unix://{self.socket}", timeout=100, **options)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [
            int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()
        ]
    return []


class Terminal:
    """A docker command on a terminal of 33 rows and 77 columns."""

    def __init__(self, host: EngineHost, *arguments: str) -> None:
        self._main, child = os.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
        os.set_blocking(self._main, False)
        self._output = b""
        self._process = subprocess.Popen(
            ["docker", *arguments],
            stdin=child,
            stdout=child,
            stderr=child,
            env=host.environment | {"TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(child)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._main)

    def type(self, keys: bytes) -> None:
        os.write(self._main, keys)

    def _shows(self, text: bytes) -> bool:
        with contextlib.suppress(BlockingIOError, OSError):  # EIO once the command has ended
            self._output += os.read(self._main, 65536)
        return text in self._output

    def wait_for(self, text: bytes) -> None:
        """Raises: TimeoutError with what was shown."""
        try:
            wait_until(lambda: self._shows(text), f"{text!r} on the terminal")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it shows {self._output!r}") from None

    def exit_code(self) -> int:
        """Wait for the command's end. Raises: TimeoutError."""
        wait_until(lambda: self._shows(b"\0never") or self._process.poll() is not None, "the command ends")
        return self._process.returncode
