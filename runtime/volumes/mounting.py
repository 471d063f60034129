"""Options of the local driver: what is mounted at a volume's folder while containers use it, in mount(8)'s words.

``type`` is the file system, ``device`` what to mount, ``o`` the options: an NFS or CIFS share, a tmpfs, or a folder of
the host (``type=none``, ``o=bind``). It is mounted by the first container that starts and unmounted after the last has
ended, as dockerd does (moby volume/local/local_unix.go); no mount helper is run, so ``addr=NAME`` is looked up here.

mount(8) is told what to mount by a file in memory in the form of fstab(5): every user of the host may read a command
line, and passwords of shares are among the options.

All functions block.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from runtime.errors import HostError, InvalidParameterError
from runtime.kernel.mounts import make_slave, mount_points, own_mounts, unmount

MOUNT_TIMEOUT_S = 60.0
_NEEDS = {"device": ("type",), "type": ("device",), "o": ("device", "type")}
_PROPAGATIONS = {f"{deep}{kind}" for deep in ("", "r") for kind in ("shared", "slave", "private", "unbindable")}
_PASSWORD = re.compile(r"\bpass(word2?)?=(?:[^,\s]|,,)*")
_ESCAPED = str.maketrans({character: f"\\{ord(character):03o}" for character in " \t\n\\#"})


def validate(options: Mapping[str, str]) -> None:
    """Raises InvalidParameterError with dockerd's words."""
    if "size" in options:
        raise InvalidParameterError("quota size requested but no quota support")
    for key in options:
        if key not in _NEEDS:
            raise InvalidParameterError(f'invalid option: "{key}"')
        if "\0" in options[key]:
            raise InvalidParameterError(f'invalid value of option "{key}": it has a NUL')
    for key in options:
        if missing := [needed for needed in _NEEDS[key] if not options.get(needed)]:
            raise InvalidParameterError(f'missing required option: "{missing[0]}"')


def table(options: Mapping[str, str], target: str, resolve: Callable[[str], str]) -> str:
    """The line of fstab(5). Pure but for ``resolve``, which gives the address of a name."""
    words = options.get("o", "")
    if options["type"] in ("nfs", "nfs4", "cifs"):
        words = ",".join(
            f"addr={resolve(word.removeprefix('addr='))}" if word.startswith("addr=") else word
            for word in words.split(",")
        )
    fields = (options["device"], target, options["type"], words or "defaults")
    return " ".join(field.translate(_ESCAPED) for field in fields) + " 0 0\n"


def is_mounted(target: Path) -> bool:
    """Whether ``target`` is a mount point, also of a folder of the same file system."""
    real = Path(os.path.realpath(target))
    return any(mount.point == real for mount in mount_points(own_mounts()))


class VolumeMounts:
    """What is mounted for whom, by the volume's folder. May be called from several threads."""

    def __init__(self) -> None:
        self._users: dict[Path, set[str]] = {}
        self._locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)

    def hold(self, target: Path, options: Mapping[str, str], user: str) -> None:
        """Mount it unless it is, and keep it for ``user``. Raises HostError."""
        with self._locks[target]:
            if not is_mounted(target):
                _mount(options, target)
            self._users.setdefault(target, set()).add(user)

    def adopt(self, target: Path, user: str) -> None:
        """Keep what an earlier daemon mounted for a user that still runs."""
        self._users.setdefault(target, set()).add(user)

    def is_held_by(self, user: str) -> bool:
        """Whether ``release`` has something to do."""
        return any(user in users for users in tuple(self._users.values()))

    def release(self, user: str) -> None:
        """Give up all that ``user`` holds; what nobody holds is unmounted. Raises HostError."""
        for target, users in tuple(self._users.items()):
            if user in users:
                with self._locks[target]:
                    users.discard(user)
                    self._unmount_if_unused(target)

    def unmount_unused(self, target: Path) -> None:
        """Take away what an earlier daemon or a crash left. Raises HostError."""
        with self._locks[target]:
            self._unmount_if_unused(target)

    def _unmount_if_unused(self, target: Path) -> None:
        if self._users.get(target):
            return
        self._users.pop(target, None)
        unmount(target)


def _mount(options: Mapping[str, str], target: Path) -> None:
    def failure(reason: str) -> HostError:
        shown = _PASSWORD.sub(r"pass\1=********", reason.strip())
        return HostError(f"error while mounting volume '{target}': failed to mount local volume: {shown}")

    try:
        text = table(options, str(target), _address)
    except OSError as error:  # a name that cannot be looked up
        raise failure(str(error)) from error
    try:
        with os.fdopen(os.memfd_create("fstab"), "w+") as file:
            file.write(text)
            file.seek(0)
            done = _run(["mount", "-n", "-i", "-T", f"/proc/self/fd/{file.fileno()}", "--", str(target)], file.fileno())
    except subprocess.TimeoutExpired:
        raise failure(f"no answer within {MOUNT_TIMEOUT_S:g} s") from None
    except OSError as error:  # no mount(8)
        raise failure(str(error)) from error
    if done.returncode:
        raise failure(done.stdout)
    if is_bind_of_no_propagation(options):
        make_slave(target)


def is_bind_of_no_propagation(options: Mapping[str, str]) -> bool:
    """Whether it binds a folder of the host without saying how mounts spread: then the host's reach it, none goes back.

    A bind is a peer of what it was bound from, where that is shared: to unmount it with what came to be mounted below
    would unmount that on the host too. Pure.
    """
    words = set(options.get("o", "").split(","))
    return bool(words & {"bind", "rbind"}) and not words & _PROPAGATIONS


def _run(command: list[str], descriptor: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[descriptor],
        text=True,
        errors="replace",
        timeout=MOUNT_TIMEOUT_S,
        check=False,
    )


def _address(name: str) -> str:
    return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
