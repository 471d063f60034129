"""The default seccomp profile in the form that an OCI runtime takes: conditions resolved, sub-architectures listed.

Profile format: moby's (``archMap``; rules with ``includes``/``excludes`` on capabilities, architectures and a minimum
kernel). OCI form: runtime-spec config-linux.md, "Seccomp".
"""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Collection, Iterable, Mapping
from importlib import resources
from typing import Any

from runtime.errors import InvalidParameterError
from runtime.linux import supports_x32

_GO_ARCH = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "i686": "x86",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}
_SCMP_ARCH = {
    "amd64": "SCMP_ARCH_X86_64",
    "arm64": "SCMP_ARCH_AARCH64",
    "arm": "SCMP_ARCH_ARM",
    "x86": "SCMP_ARCH_X86",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "s390x": "SCMP_ARCH_S390X",
    "riscv64": "SCMP_ARCH_RISCV64",
}


@functools.cache
def default_profile() -> Mapping[str, Any]:
    """The profile that containers get unless they ask for another; do not change it."""
    loaded: dict[str, Any] = json.loads(resources.files("runtime.seccomp").joinpath("default.json").read_bytes())
    return loaded


def parse_profile(text: str) -> Mapping[str, Any]:
    """A profile given by the user. Raises InvalidParameterError."""
    try:
        profile = json.loads(text)
    except ValueError as error:
        raise InvalidParameterError(f"Decoding seccomp profile failed: {error}") from None
    if not isinstance(profile, dict) or "defaultAction" not in profile:
        raise InvalidParameterError("Decoding seccomp profile failed: no defaultAction")
    return profile


@functools.lru_cache(maxsize=32)
def default_filter(capabilities: frozenset[str]) -> dict[str, Any]:
    """The default profile for a set of capabilities on this machine, in OCI form; shared, do not change it.

    Where the kernel has no x32 table, that architecture is left out: building its third of the filter costs 10 of the
    45 ms that a start takes, and no program could use it. (Without it an x32 call is answered by SIGSYS, not ENOSYS.)
    """
    document = to_oci(default_profile(), capabilities, machine=platform.machine(), kernel=kernel_version())
    if not supports_x32() and "SCMP_ARCH_X32" in document.get("architectures", ()):
        document["architectures"].remove("SCMP_ARCH_X32")
    return document


def own_filter(profile: str, capabilities: Collection[str]) -> dict[str, Any]:
    """A profile given as JSON text, in OCI form for this machine. Raises InvalidParameterError."""
    return to_oci(parse_profile(profile), capabilities, machine=platform.machine(), kernel=kernel_version())


def kernel_version(release: str | None = None) -> tuple[int, int]:
    """Major and minor version of the running kernel, (0, 0) when its name is no version."""
    parts = (release or platform.release()).split("-")[0].split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError):
        return (0, 0)


def to_oci(
    profile: Mapping[str, Any], capabilities: Collection[str], *, machine: str, kernel: tuple[int, int]
) -> dict[str, Any]:
    """Resolve a profile for a container with ``capabilities`` (CAP_X) on ``machine`` (uname -m)."""
    arch = _GO_ARCH.get(machine, machine)
    native = _SCMP_ARCH.get(arch)
    architectures = list(profile.get("architectures") or ())
    for entry in profile.get("archMap") or ():
        if entry["architecture"] == native:
            architectures = [native, *(entry.get("subArchitectures") or ())]
    syscalls = [
        _rule(rule, names)
        for rule in profile.get("syscalls") or ()
        if _applies(rule, set(capabilities), arch, kernel) and (names := _names(rule))
    ]
    result: dict[str, Any] = {"defaultAction": profile["defaultAction"], "syscalls": _merged(syscalls)}
    if architectures:
        result["architectures"] = architectures
    if profile.get("defaultErrnoRet") is not None:
        result["defaultErrnoRet"] = profile["defaultErrnoRet"]
    return result


def _names(rule: Mapping[str, Any]) -> list[str]:
    return list(rule.get("names") or ([rule["name"]] if rule.get("name") else ()))


def _applies(rule: Mapping[str, Any], capabilities: set[str], arch: str, kernel: tuple[int, int]) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if (arches := includes.get("arches")) and arch not in arches:
        return False
    if not capabilities.issuperset(includes.get("caps") or ()):
        return False
    if (least := includes.get("minKernel")) and kernel < kernel_version(least):
        return False
    if arch in (excludes.get("arches") or ()):
        return False
    if not capabilities.isdisjoint(excludes.get("caps") or ()):
        return False
    return not ((limit := excludes.get("minKernel")) and kernel >= kernel_version(limit))


def _rule(rule: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    result: dict[str, Any] = {"names": list(names), "action": rule["action"]}
    if rule.get("errnoRet") is not None:
        result["errnoRet"] = rule["errnoRet"]
    if rule.get("args"):
        result["args"] = rule["args"]
    return result


def _merged(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Unconditional rules with one action as one rule: less for the runtime to parse at each start."""
    plain: dict[tuple[str, int | None], dict[str, Any]] = {}
    result = []
    for rule in rules:
        if "args" in rule:
            result.append(rule)
            continue
        key = (rule["action"], rule.get("errnoRet"))
        if key in plain:
            plain[key]["names"] = sorted({*plain[key]["names"], *rule["names"]})
        else:
            plain[key] = rule
            result.append(rule)
    return result
