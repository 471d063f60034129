"""From a container's configuration to an OCI runtime spec: a pure function, so that every default can be tested.

Follows moby daemon/oci_linux.go and oci/defaults.go for what a container gets; the OCI runtime-spec 1.0.2 for how it is
said.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any  # Any: a value of the OCI spec's JSON

import msgspec

from runtime.containers import capabilities as caps
from runtime.containers import limits, mounts, seccomp
from runtime.containers.users import User
from runtime.errors import InvalidParameterError
from runtime.types import ContainerConfig, HostConfig

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHM_BYTES = 64 << 20
INIT_TARGET = "/sbin/docker-init"
CPU_PERIOD_US = 100_000
_INT64_MAX = 2**63 - 1
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_DEVICE_RULE = re.compile(
    r"(?P<type>[acb]) (?P<major>[0-9]{1,9}|\*):(?P<minor>[0-9]{1,9}|\*) (?P<access>[rwm]{1,3})", re.ASCII
)

_RLIMITS = {
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
}
_IPC_SYSCTLS = {
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
}


class HostFacts(msgspec.Struct, frozen=True):
    """What the spec depends on besides the request.

    Attributes:
        cgroup_version: 1 or 2.
        capabilities: all that can be granted here, as CAP_X.
        init_path: a static init for ``Init``, or "".
        capacity: what limits are checked against.
        recursive_read_only: whether a mount can be made read-only with all that is mounted below.
    """

    cgroup_version: int
    capabilities: tuple[str, ...]
    init_path: str
    capacity: limits.Capacity
    recursive_read_only: bool


class SpecInput(msgspec.Struct, frozen=True):
    """Everything of one start.

    ``config`` is already merged with the image's. ``mounts`` are OCI mounts of the user, ``files`` those of the
    engine (/etc/hosts and the like). ``namespaces`` maps network, pid, ipc to "" (new), None (the host's) or a path
    (another container's). ``devices`` are OCI devices, each with an extra key ``access``. ``apparmor`` is the profile,
    "" for none; ``sockets_hidden``: it keeps address families from the container that a filter cannot see. ``linked_env``
    are variables of legacy links.
    """

    container_id: str
    rootfs: str
    cgroup_path: str
    hostname: str
    config: ContainerConfig
    host: HostConfig
    user: User
    mounts: Sequence[Mapping[str, Any]]
    files: Sequence[Mapping[str, Any]]
    namespaces: Mapping[str, str | None]
    devices: Sequence[Mapping[str, Any]]
    facts: HostFacts
    apparmor: str = ""
    sockets_hidden: bool = False
    linked_env: Sequence[str] = ()


class Security(msgspec.Struct, frozen=True):
    """``SecurityOpt`` taken apart.

    Attributes:
        profile: the seccomp profile: "" (not said), "builtin", "unconfined", or one as JSON text.
        apparmor: the AppArmor profile: "" (not said), "unconfined", or its name.
    """

    no_new_privileges: bool = False
    profile: str = ""
    unmasked: bool = False
    apparmor: str = ""


def parse_security(options: Sequence[str]) -> Security:
    """Raises InvalidParameterError for an option that nobody knows, or that cannot be honoured."""
    no_new, profile, unmasked, apparmor = False, "", False, ""
    for option in options:
        key, value = _key_and_value(option)
        if key == "no-new-privileges" and value in ("", "true", "false"):
            no_new = value != "false"
        elif key == "seccomp" and value:
            if value not in ("builtin", "unconfined"):
                seccomp.parse_profile(value)
            profile = value
        elif key == "systempaths" and value == "unconfined":
            unmasked = True
        elif key == "apparmor" and value:
            apparmor = value
        elif key == "label" and value and value != "disable":
            raise InvalidParameterError(
                f'invalid --security-opt: "{option}": SELinux labels are not applied here, so none can be chosen'
            )
        elif key != "label" or not value:
            raise InvalidParameterError(f'invalid --security-opt 2: "{option}"')
    return Security(no_new, profile, unmasked, apparmor)


def wanted_apparmor(options: Sequence[str]) -> str:
    """``Security.apparmor`` alone, of options that were accepted."""
    values = [value for key, value in map(_key_and_value, options) if key == "apparmor"]
    return values[-1] if values else ""


def _key_and_value(option: str) -> tuple[str, str]:
    key, _, value = option.partition("=" if "=" in option else ":")
    return key, value


def command(config: ContainerConfig) -> list[str]:
    """Entrypoint and Cmd in one. Raises InvalidParameterError when there is nothing to run."""
    args = [*(config.Entrypoint or ()), *(config.Cmd or ())]
    if not args or (len(args) == 1 and not args[0]):
        raise InvalidParameterError("no command specified")
    return args


def environment(config: ContainerConfig, hostname: str, linked: Sequence[str] = ()) -> list[str]:
    """PATH, HOSTNAME, (with a TTY) TERM and those of links first, each replaced by the configuration's own; unset names
    dropped."""
    env = {"PATH": f"PATH={DEFAULT_PATH}", "HOSTNAME": f"HOSTNAME={hostname}"}
    if config.Tty:
        env["TERM"] = "TERM=xterm"
    for item in (*linked, *(config.Env or ())):
        name, sep, _ = item.partition("=")
        if sep:
            env[name] = item
        else:
            env.pop(name, None)  # "NAME" alone takes a default away
    return list(env.values())


def build(given: SpecInput) -> dict[str, Any]:
    """The OCI runtime spec. Raises InvalidParameterError."""
    config, host, facts = given.config, given.host, given.facts
    limits.check(host, facts.capacity)  # again: the host may have fewer CPUs by now
    security = parse_security(host.SecurityOpt or ())
    granted = caps.effective(
        host.CapAdd or (), host.CapDrop or (), privileged=host.Privileged, available=facts.capabilities
    )
    args = command(config)
    files = list(given.files)
    if host.Init:
        if not facts.init_path:
            raise InvalidParameterError("Init was asked for, but this host has no tini (install the package tini)")
        args = [INIT_TARGET, "--", *args]
        files.append({"destination": INIT_TARGET, "type": "bind", "source": facts.init_path, "options": ["bind", "ro"]})
    base = mounts.default_mounts(
        host.ShmSize or DEFAULT_SHM_BYTES, cgroup_version=facts.cgroup_version, privileged=host.Privileged
    )
    if given.namespaces.get("ipc", "") is None:
        base = [mount for mount in base if mount["destination"] not in ("/dev/shm", "/dev/mqueue")]
        files += [
            {"destination": path, "type": "bind", "source": path, "options": ["rbind", "rw", "nosuid", "nodev"]}
            for path in ("/dev/shm", "/dev/mqueue")
        ]
    return {
        "ociVersion": "1.0.2",
        "hostname": given.hostname if host.UTSMode != "host" else "",
        "process": _process(given, args, granted, security),
        "root": {"path": given.rootfs, "readonly": host.ReadonlyRootfs},
        "mounts": mounts.merge(base, files, given.mounts),
        "annotations": dict(host.Annotations or {}),
        "linux": _linux(given, granted, security),
    }


def _process(given: SpecInput, args: list[str], granted: list[str], security: Security) -> dict[str, Any]:
    config, host, user = given.config, given.host, given.user
    process: dict[str, Any] = {
        "terminal": config.Tty,
        "user": {
            "uid": user.uid,
            "gid": user.gid,
            # The primary group too, or a process could shed it with setgroups (CVE-2022-36109).
            "additionalGids": sorted({user.gid, *user.additional_gids}),
        },
        "args": args,
        "env": environment(config, given.hostname, given.linked_env),
        "cwd": config.WorkingDir or "/",
        "capabilities": {"bounding": granted, "effective": granted, "permitted": granted},
        "noNewPrivileges": security.no_new_privileges,
        "oomScoreAdj": host.OomScoreAdj,
        **({"apparmorProfile": given.apparmor} if given.apparmor else {}),
        "rlimits": [*rlimits(host), *_core_limit(host, given.facts)],
    }
    if config.Tty and host.ConsoleSize and len(host.ConsoleSize) == 2 and all(host.ConsoleSize):
        process["consoleSize"] = {"height": host.ConsoleSize[0], "width": host.ConsoleSize[1]}
    return process


def rlimits(host: HostConfig) -> list[dict[str, Any]]:
    """``Ulimits`` in OCI form; -1 is the largest number. Raises InvalidParameterError."""
    result = []
    for limit in host.Ulimits or ():
        if limit.Name not in _RLIMITS:
            raise InvalidParameterError(f"invalid ulimit type: {limit.Name}")
        hard, soft = (value if value >= 0 else 2**64 - 1 for value in (limit.Hard, limit.Soft))
        if soft > hard:
            raise InvalidParameterError(
                f"ulimit soft limit must be less than or equal to hard limit: {limit.Soft} > {limit.Hard}"
            )
        result.append({"type": f"RLIMIT_{limit.Name.upper()}", "hard": hard, "soft": soft})
    return result


def _core_limit(host: HostConfig, facts: HostFacts) -> list[dict[str, Any]]:
    """None, as under Docker: the daemon's own is 0 (scripts/swarmd.service), and a process may not raise its limit."""
    if any(limit.Name == "core" for limit in host.Ulimits or ()) or "CAP_SYS_RESOURCE" not in facts.capabilities:
        return []
    return [{"type": "RLIMIT_CORE", "hard": 2**64 - 1, "soft": 2**64 - 1}]


def _linux(given: SpecInput, granted: list[str], security: Security) -> dict[str, Any]:
    host, facts = given.host, given.facts
    open_paths = host.Privileged or security.unmasked
    linux: dict[str, Any] = {
        "cgroupsPath": given.cgroup_path,
        "namespaces": _namespaces(given),
        "resources": resources(host, facts),
        "maskedPaths": [] if open_paths else list(host.MaskedPaths if host.MaskedPaths is not None else MASKED_PATHS),
        "readonlyPaths": []
        if open_paths
        else list(host.ReadonlyPaths if host.ReadonlyPaths is not None else READONLY_PATHS),
        "sysctl": sysctls(given),
        "devices": [{key: value for key, value in device.items() if key != "access"} for device in given.devices],
    }
    rules = linux["resources"]["devices"]
    rules += [
        {
            "allow": True,
            "type": device["type"],
            "major": device["major"],
            "minor": device["minor"],
            "access": device["access"],
        }
        for device in given.devices
        if not host.Privileged
    ]
    rules += [device_rule(rule) for rule in host.DeviceCgroupRules or ()]
    profile = security.profile or ("unconfined" if host.Privileged else "builtin")
    if profile == "builtin":
        linux["seccomp"] = seccomp.default_filter(frozenset(granted), confined=given.sockets_hidden)
    elif profile != "unconfined":
        linux["seccomp"] = seccomp.own_filter(profile, granted)
    return linux


def device_rule(text: str) -> dict[str, Any]:
    """The OCI rule of ``TYPE MAJOR:MINOR ACCESS`` (``c 7:* rw``). Raises InvalidParameterError."""
    match = _DEVICE_RULE.fullmatch(text)
    if match is None:
        raise InvalidParameterError(f"invalid device cgroup rule format: '{text}'")
    numbers = {name: int(match[name]) for name in ("major", "minor") if match[name] != "*"}
    return {"allow": True, "type": match["type"], **numbers, "access": match["access"]}


def _namespaces(given: SpecInput) -> list[dict[str, str]]:
    namespaces = [{"type": "mount"}]
    if given.host.UTSMode != "host":
        namespaces.append({"type": "uts"})
    for kind in ("pid", "ipc", "network"):
        path = given.namespaces.get(kind, "")
        if path is not None:
            namespaces.append({"type": kind, "path": path} if path else {"type": kind})
    # As dockerd: private by default in version 2, the host's in version 1.
    mode = given.host.CgroupnsMode or ("private" if given.facts.cgroup_version == 2 else "host")
    if mode == "private":
        namespaces.append({"type": "cgroup"})
    return namespaces


def sysctls(given: SpecInput) -> dict[str, str]:
    """Checked kernel parameters plus the two that dockerd sets. Raises InvalidParameterError."""
    own_network = given.namespaces.get("network", "") == ""
    result: dict[str, str] = {}
    if own_network and given.user.uid >= 0:
        result = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
    for name, value in (given.host.Sysctls or {}).items():
        if name.startswith("net."):
            if given.namespaces.get("network", "") is None:
                raise InvalidParameterError(f"sysctl '{name}' not allowed with host net enabled")
        elif name in _IPC_SYSCTLS or name.startswith("fs.mqueue."):
            if given.namespaces.get("ipc", "") is None:
                raise InvalidParameterError(f"sysctl '{name}' not allowed with host ipc enabled")
        else:
            raise InvalidParameterError(f"sysctl '{name}' is not allowed: it is not of one namespace")
        result[name] = value
    return result


def resources(host: HostConfig, facts: HostFacts) -> dict[str, Any]:
    """Cgroup limits in OCI form. Raises InvalidParameterError for limits that contradict each other."""
    result: dict[str, Any] = {"devices": [{"allow": host.Privileged, "access": "rwm"}]}
    memory = _memory(host, facts)
    if memory:
        result["memory"] = memory
    cpu: dict[str, Any] = {}
    if host.NanoCpus:
        cpu = {"quota": host.NanoCpus * CPU_PERIOD_US // 1_000_000_000, "period": CPU_PERIOD_US}
    for key, value in (
        ("shares", host.CpuShares),
        ("quota", host.CpuQuota),
        ("period", host.CpuPeriod),
        ("cpus", host.CpusetCpus),
        ("mems", host.CpusetMems),
    ):
        if value:
            cpu[key] = value
    if cpu:
        result["cpu"] = cpu
    if host.PidsLimit:
        result["pids"] = {"limit": max(host.PidsLimit, -1)}
    if host.BlkioWeight:
        result["blockIO"] = {"weight": host.BlkioWeight}
    return result


def _memory(host: HostConfig, facts: HostFacts) -> dict[str, Any]:
    memory: dict[str, Any] = {}
    if host.Memory:
        if host.Memory < 6 << 20:
            raise InvalidParameterError("Minimum memory limit allowed is 6MB")
        memory["limit"] = host.Memory
    if host.MemorySwap and not host.Memory:
        raise InvalidParameterError("You should always set the Memory limit when using Memoryswap limit, see usage")
    if 0 < host.MemorySwap < host.Memory:
        raise InvalidParameterError("Minimum memoryswap limit should be larger than memory limit, see usage")
    if host.Memory and facts.capacity.swap:
        memory["swap"] = host.MemorySwap or min(host.Memory * 2, _INT64_MAX)
    if host.MemoryReservation:
        if host.Memory and host.MemoryReservation > host.Memory:
            raise InvalidParameterError("Minimum memory limit can not be less than memory reservation limit, see usage")
        memory["reservation"] = host.MemoryReservation
    if host.MemorySwappiness is not None and host.MemorySwappiness >= 0 and facts.cgroup_version == 1:
        memory["swappiness"] = host.MemorySwappiness
    if host.OomKillDisable and facts.cgroup_version == 1:
        memory["disableOOMKiller"] = True
    return memory


def display_command(path: str, args: Sequence[str]) -> str:
    """The COMMAND column of ``docker ps``."""
    return " ".join([path, *(shlex.quote(arg) if " " in arg else arg for arg in args)])
