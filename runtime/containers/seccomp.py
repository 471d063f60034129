"""Seccomp profiles in the form that an OCI runtime takes: conditions resolved, sub-architectures listed.

The default one comes from ``seccomp_rules``. A user's own is in moby's profile format (``archMap``; rules with
``includes``/``excludes`` on capabilities, architectures and a minimum kernel). OCI form: runtime-spec config-linux.md,
"Seccomp".
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Collection, Sequence
from typing import Any  # Any: a value of the OCI spec's JSON

import msgspec

from base.json_text import read_json
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


class ArgumentCondition(msgspec.Struct, frozen=True):
    """On one argument of a call, as the OCI spec has it."""

    index: int
    value: int
    op: str
    valueTwo: int = 0  # noqa: N815  # the OCI spec's spelling, as all below


class Circumstances(msgspec.Struct, frozen=True):
    """Where a rule applies, or does not."""

    caps: list[str] | None = None
    arches: list[str] | None = None
    minKernel: str | None = None  # noqa: N815


class Rule(msgspec.Struct, frozen=True):
    """What happens to calls; ``name`` is the old spelling of one."""

    action: str
    name: str = ""
    names: list[str] | None = None
    errnoRet: int | None = None  # noqa: N815
    args: list[ArgumentCondition] | None = None
    includes: Circumstances | None = None
    excludes: Circumstances | None = None


class Machines(msgspec.Struct, frozen=True):
    """A machine and the others whose programs it runs."""

    architecture: str
    subArchitectures: list[str] | None = None  # noqa: N815


class Profile(msgspec.Struct, frozen=True):
    """A profile in moby's format; ``architectures`` and all that follows is the OCI spec's and goes to the runtime."""

    defaultAction: str  # noqa: N815
    archMap: list[Machines] | None = None  # noqa: N815
    syscalls: list[Rule] | None = None
    architectures: list[str] | None = None
    defaultErrnoRet: int | None = None  # noqa: N815
    flags: list[str] | None = None
    listenerPath: str | None = None  # noqa: N815
    listenerMetadata: str | None = None  # noqa: N815


def parse_profile(text: str) -> Profile:
    """A profile given by the user. Raises InvalidParameterError."""
    try:
        profile = read_json(text, type=Profile)
    except msgspec.DecodeError as error:
        raise InvalidParameterError(f"Decoding seccomp profile failed: {error}") from None
    if profile.architectures and profile.archMap:
        raise InvalidParameterError(
            "Decoding seccomp profile failed: both 'architectures' and 'archMap' are specified in the seccomp profile, "
            "use either 'architectures' or 'archMap'"
        )
    if any(rule.name and rule.names for rule in profile.syscalls or ()):
        raise InvalidParameterError(
            "Decoding seccomp profile failed: both 'name' and 'names' are specified in the seccomp profile, "
            "use either 'name' or 'names'"
        )
    return profile


@functools.lru_cache(maxsize=32)
def default_filter(capabilities: frozenset[str], *, confined: bool = False) -> dict[str, Any]:
    """The default profile for a set of capabilities on this machine, in OCI form; shared, do not change it.

    ``confined``: AppArmor refuses the address families that a filter cannot see in ``socketcall``.

    Where the kernel has no x32 table, that architecture is left out: building its third of the filter costs 10 of the
    45 ms that a start takes, and no program could use it. (Without it an x32 call is answered by SIGSYS, not ENOSYS.)
    """
    document = default_document(capabilities, machine=platform.machine(), confined=confined)
    if not supports_x32() and "SCMP_ARCH_X32" in document.get("architectures", ()):
        document["architectures"].remove("SCMP_ARCH_X32")
    return document


def default_document(capabilities: Collection[str], *, machine: str, confined: bool = False) -> dict[str, Any]:
    """The default profile for a container with ``capabilities`` (CAP_X) on ``machine`` (uname -m), in OCI form. Pure."""
    arch = _GO_ARCH.get(machine, machine)
    allowed = set(rules.ALLOWED)
    for arches, names in rules.BY_MACHINE:
        if arch in arches:
            allowed.update(names.split())
    for capability in capabilities:
        allowed.update(rules.BY_CAPABILITY.get(capability, "").split())
    syscalls: list[dict[str, Any]] = []
    if arch in rules.SOCKETCALL_REFUSED and not confined:
        syscalls.append(_not_there("socketcall"))
    else:
        allowed.add("socketcall")
    syscalls.append({"names": sorted(allowed), "action": "SCMP_ACT_ALLOW"})
    syscalls += [_allowed_if(name, test) for name, tests in rules.ALLOWED_IF.items() for test in tests]
    if "CAP_SYS_ADMIN" not in capabilities:
        syscalls.append(_allowed_if(*rules.new_process(arch)))
        syscalls.append(_not_there("clone3"))
    result: dict[str, Any] = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": syscalls}
    if architectures := rules.ARCHITECTURES.get(arch):
        result["architectures"] = list(architectures)
    result["defaultErrnoRet"] = rules.EPERM
    return result


def _not_there(name: str) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": rules.ENOSYS}


def _allowed_if(name: str, test: rules.Argument) -> dict[str, Any]:
    condition: dict[str, Any] = {"index": test.index, "value": test.value, "op": "SCMP_CMP_EQ"}
    if test.mask != 2**64 - 1:  # a masked comparison: ``value`` is the mask, ``valueTwo`` what must be left
        condition |= {"value": test.mask, "valueTwo": test.value, "op": "SCMP_CMP_MASKED_EQ"}
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


def to_oci(profile: Profile, capabilities: Collection[str], *, machine: str, kernel: tuple[int, int]) -> dict[str, Any]:
    """Resolve a profile for a container with ``capabilities`` (CAP_X) on ``machine`` (uname -m)."""
    arch = _GO_ARCH.get(machine, machine)
    native = _SCMP_ARCH.get(arch)
    architectures = profile.architectures or []
    for entry in profile.archMap or ():
        if entry.architecture == native:
            architectures = [native, *(entry.subArchitectures or ())]
    syscalls = [
        _rule(rule, names)
        for rule in profile.syscalls or ()
        if _applies(rule, set(capabilities), arch, kernel) and (names := rule.names or ([rule.name] * bool(rule.name)))
    ]
    result: dict[str, Any] = {"defaultAction": profile.defaultAction, "syscalls": _merged(syscalls)}
    result |= {
        name: value
        for name in ("defaultErrnoRet", "flags", "listenerPath", "listenerMetadata")
        if (value := getattr(profile, name)) is not None
    }
    return result | ({"architectures": architectures} if architectures else {})


def _applies(rule: Rule, capabilities: set[str], arch: str, kernel: tuple[int, int]) -> bool:
    includes, excludes = rule.includes or Circumstances(), rule.excludes or Circumstances()
    if includes.arches and arch not in includes.arches:
        return False
    if not capabilities.issuperset(includes.caps or ()):
        return False
    if includes.minKernel and kernel < kernel_version(includes.minKernel):
        return False
    if arch in (excludes.arches or ()):
        return False
    if not capabilities.isdisjoint(excludes.caps or ()):
        return False
    return not (excludes.minKernel and kernel >= kernel_version(excludes.minKernel))


def _rule(rule: Rule, names: Sequence[str]) -> dict[str, Any]:
    result: dict[str, Any] = {"names": list(names), "action": rule.action}
    if rule.errnoRet is not None:
        result["errnoRet"] = rule.errnoRet
    if rule.args:
        result["args"] = [msgspec.to_builtins(condition) for condition in rule.args]
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
