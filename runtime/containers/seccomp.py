"""Seccomp profiles in the form that an OCI runtime takes: conditions resolved, sub-architectures listed.

The default one comes from ``seccomp_rules``. A user's own is in moby's profile format (``archMap``; rules with
``includes``/``excludes`` on capabilities, architectures and a minimum kernel). OCI form: runtime-spec config-linux.md,
"Seccomp".
"""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Collection, Iterable, Mapping
from typing import Any  # Any: a value of the OCI spec's JSON

from runtime.containers import seccomp_rules as rules
from runtime.errors import InvalidParameterError
from runtime.kernel.syscalls import supports_x32

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


_TESTS = {"equal": "SCMP_CMP_EQ", "unequal": "SCMP_CMP_NE"}


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
    document = default_document(capabilities, machine=platform.machine())
    if not supports_x32() and "SCMP_ARCH_X32" in document.get("architectures", ()):
        document["architectures"].remove("SCMP_ARCH_X32")
    return document


def default_document(capabilities: Collection[str], *, machine: str) -> dict[str, Any]:
    """The default profile for a container with ``capabilities`` (CAP_X) on ``machine`` (uname -m), in OCI form. Pure."""
    arch = _GO_ARCH.get(machine, machine)
    allowed = set(rules.ALLOWED)
    for arches, names in rules.BY_MACHINE:
        if arch in arches:
            allowed.update(names.split())
    for capability in capabilities:
        allowed.update(rules.BY_CAPABILITY.get(capability, "").split())
    syscalls: list[dict[str, Any]] = [{"names": sorted(allowed), "action": "SCMP_ACT_ALLOW"}]
    syscalls += [_allowed_if(name, test) for name, tests in rules.ALLOWED_IF.items() for test in tests]
    if "CAP_SYS_ADMIN" not in capabilities:
        syscalls.append(_allowed_if(*rules.new_process(arch)))
        syscalls.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": rules.ENOSYS})
    result: dict[str, Any] = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": syscalls}
    if architectures := rules.ARCHITECTURES.get(arch):
        result["architectures"] = list(architectures)
    result["defaultErrnoRet"] = rules.EPERM
    return result


def _allowed_if(name: str, test: rules.Argument) -> dict[str, Any]:
    condition: dict[str, Any] = {"index": test.index, "value": test.value}
    if test.test == "bits-clear":
        # Masked comparison: ``value`` is the mask, ``valueTwo`` what must be left.
        condition |= {"valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    else:
        condition["op"] = _TESTS[test.test]
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [condition]}


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
