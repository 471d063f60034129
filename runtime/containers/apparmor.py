"""AppArmor: which profile a container is confined by, and the default one, which is loaded when a container needs it.

The default profile says what Docker's does (github.com/moby/profiles, apparmor/template.go at apparmor/v0.2.1): all is
allowed but AF_ALG (and here AF_VSOCK) sockets, mounts, and writes to what of /proc and /sys is the host's. Its name is another, because a
dockerd on the same host would replace ours by its own. A user who asks for ``docker-default`` gets ours.

Hosts without AppArmor, without securityfs, or without apparmor_parser (which compiles a profile for the kernel) run
containers without one, as under Docker; what is asked for by name and cannot be had is refused.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

import structlog

from runtime.errors import HostError, InvalidParameterError

log = structlog.get_logger(__name__)

DEFAULT_PROFILE = "swarm-default"
UNCONFINED = "unconfined"
DOCKERS_DEFAULT = "docker-default"
LOAD_TIMEOUT_S = 30.0
_PARSERS = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")
_NETWORK = "features/network_v8"
_ABI, _TUNABLES, _BASE = "abi/3.0", "tunables/global", "abstractions/base"

_PROFILE = """
profile {name} flags=(attach_disconnected,mediate_deleted) {{
  {base}
  network,
  # The kernel's ciphers (CVE-2026-31431): a system call filter does not see the family in socketcall.
  deny network alg,
  # No network namespace confines sockets of virtual machines.
  deny network vsock,
  capability,
  file,
  umount,

  # Signals come from the host, from the runtime and the daemon ("docker stop"), and from the container itself.
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (receive) peer="{daemon}",
  signal (send,receive) peer={name},
  ptrace (trace,read,tracedby,readby) peer={name},

  # Of /proc a container may write below the numbers of processes, and kernel.shm* below sys.
  deny @{{PROC}}/* w,
  deny @{{PROC}}/{{[^1-9/],[^1-9/][^0-9/],[^1-9s/][^0-9y/][^0-9s/],[^1-9/][^0-9/][^0-9/][^0-9/]*}}/** w,
  deny @{{PROC}}/sys/[^k]** w,
  deny @{{PROC}}/sys/kernel/{{?,??,[^s][^h][^m]**}} w,
  deny @{{PROC}}/sysrq-trigger rwklx,
  deny @{{PROC}}/kcore rwklx,

  deny mount,

  # Of /sys it may write below fs/cgroup.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"""


def profile_text(*, daemon: str, shared: frozenset[str]) -> str:
    """The default profile for apparmor_parser. Pure.

    Args:
        daemon: the profile of this process, "unconfined" when it has none.
        shared: which of the files that profiles share are below /etc/apparmor.d.
    """
    # From ABI 4.0 on "network" is without unix sockets, hence the older one (apparmor#561).
    head = [f"abi <{_ABI}>,"] if _ABI in shared else []
    head.append(f"#include <{_TUNABLES}>" if _TUNABLES in shared else "@{PROC}=/proc/")
    base = f"#include <{_BASE}>" if _BASE in shared else ""
    return "\n".join(head) + _PROFILE.format(name=DEFAULT_PROFILE, base=base, daemon=daemon)


class AppArmor:
    """AppArmor of this host.

    Args:
        sys: where sysfs is mounted.
        etc: the folder of the shared parts of profiles.
        parser: apparmor_parser, "" for none; looked up when it is not given.
    """

    def __init__(self, *, sys: Path = Path("/sys"), etc: Path = Path("/etc/apparmor.d"), parser: str | None = None):
        self._kernel, self._etc = sys / "kernel/security/apparmor", etc
        self.enabled = _says_yes(sys / "module/apparmor/parameters/enabled") and self._kernel.is_dir()
        self._parser = _find_parser() if parser is None else parser
        self._lock = threading.Lock()
        self._loaded = False

    @property
    def confines(self) -> bool:
        """Whether containers get the default profile."""
        return self.enabled and bool(self._parser)

    @property
    def warnings(self) -> list[str]:
        """What ``docker info`` shows."""
        if not self.enabled or self._parser:
            return []
        return [
            "WARNING: AppArmor is on and apparmor_parser is missing, so containers have no AppArmor profile: "
            "install the package apparmor"
        ]

    def check(self, wanted: str) -> None:
        """Refuse what this host can never give, ``wanted`` being the option's value. Raises InvalidParameterError."""
        if wanted in ("", UNCONFINED):
            return
        if not self.enabled:
            raise InvalidParameterError(f"AppArmor is not enabled on this host: cannot apply the profile {wanted!r}")
        if wanted == DOCKERS_DEFAULT and not self._parser:
            raise InvalidParameterError("cannot load the default AppArmor profile: install the package apparmor")

    def shown(self, wanted: str, *, privileged: bool) -> str:
        """The profile of a container as inspect shows it: "" where it has none."""
        if not self.enabled:
            return ""
        if wanted in ("", DOCKERS_DEFAULT):
            return UNCONFINED if privileged and not wanted else DEFAULT_PROFILE if self._parser else ""
        return wanted

    def choose(self, wanted: str, *, privileged: bool) -> str:
        """The profile to start a container with, loaded; "" for none. Blocks.

        Raises:
            InvalidParameterError: ``wanted`` cannot be had.
            HostError: the default profile cannot be loaded.
        """
        self.check(wanted)
        profile = self.shown(wanted, privileged=privileged)
        if profile == DEFAULT_PROFILE:
            self._ensure_default()
        elif profile not in ("", UNCONFINED) and not self._is_loaded(profile):
            raise InvalidParameterError(
                f"AppArmor profile {profile!r} is not loaded on this host: load it with apparmor_parser"
            )
        return profile

    def hides_sockets(self, profile: str) -> bool:
        """Whether what runs under ``profile`` gets no AF_ALG or AF_VSOCK socket, by whatever system call: the
        kernel looks."""
        # Without the ABI a policy is of a time before upstream kernels looked at sockets, and its rules of them are nothing.
        return profile == DEFAULT_PROFILE and (self._etc / _ABI).exists() and (self._kernel / _NETWORK).is_dir()

    def _ensure_default(self) -> None:
        """Once in the life of this process, since the text may be another than an earlier version's; and again when
        somebody took it away (aa-remove-unknown does)."""
        with self._lock:
            if not self._loaded or not self._is_loaded(DEFAULT_PROFILE):
                self._load()
                self._loaded = True

    def _load(self) -> None:
        shared = frozenset(name for name in (_ABI, _TUNABLES, _BASE) if (self._etc / name).exists())
        text = profile_text(daemon=_own_profile(), shared=shared)
        try:
            done = subprocess.run(
                [self._parser, "-Kr"],  # no cache: it may be on a read-only file system
                input=text,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=LOAD_TIMEOUT_S,
                check=False,
            )
            reason = done.stdout.strip() if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        if reason or not self._is_loaded(DEFAULT_PROFILE):
            raise HostError(
                f"AppArmor is on, but the profile {DEFAULT_PROFILE} could not be loaded: {reason or 'no reason given'} "
                "(--security-opt apparmor=unconfined runs a container without)"
            )
        log.info("apparmor.profile_loaded", profile=DEFAULT_PROFILE)

    def _is_loaded(self, profile: str) -> bool:
        """Lines of the kernel's list are ``NAME (MODE)``; names may have spaces."""
        try:
            lines = (self._kernel / "profiles").read_text(errors="replace").splitlines()
        except OSError:
            return False
        return any(line.rpartition(" (")[0] == profile for line in lines)


def _says_yes(path: Path) -> bool:
    try:
        return path.read_text().startswith("Y")
    except OSError:
        return False


def _find_parser() -> str:
    """Also where root's PATH has no sbin."""
    return shutil.which("apparmor_parser", path=os.pathsep.join((os.environ.get("PATH", ""), *_PARSERS))) or ""


def _own_profile() -> str:
    """The profile of this process, without its mode."""
    try:
        text = Path("/proc/self/attr/apparmor/current").read_text().strip("\n\0")
    except OSError:
        return UNCONFINED
    return (text.rpartition(" (")[0] if text.endswith(")") else text) or UNCONFINED
