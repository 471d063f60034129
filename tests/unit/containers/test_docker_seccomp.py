"""The default filter against Docker's published profile, machine by machine and capability by capability.

Each difference stands here with its reason; one more, on either side, fails.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.containers import capabilities, seccomp, seccomp_rules
from tests.unit.containers import docker_seccomp

MACHINES = ("x86_64", "aarch64", "armv7l", "i686", "ppc64le", "s390x", "riscv64")
"""``uname -m`` of all machines that Docker is published for."""

DIFFERENT: dict[tuple[str, str], str] = {
    ("x86_64", "socketcall"): "ENOSYS: a filter cannot see that it asks for AF_ALG (docs/security.md)",
}
ARGUMENTS_DIFFER = {"socket": "AF_ALG is refused too, and the family is compared in the 32 bits that the kernel takes"}
KERNEL = (4, 8)
"""From here on ptrace is allowed there; older ones lack what this engine needs."""


def verdicts(document: dict[str, Any]) -> dict[str, str]:
    """By name, what happens to a call whatever its arguments, or its conditions."""
    found: dict[str, str] = {}
    for rule in document["syscalls"]:
        for name in rule["names"]:
            if "args" in rule:
                normal = [{"valueTwo": 0} | argument for argument in rule["args"]]
                found[name] = found.get(name, "") + str([sorted(argument.items()) for argument in normal])
            else:
                found[name] = f"{rule['action']} {rule.get('errnoRet')}"
    return found


@pytest.mark.parametrize("confined", [False, True])
@pytest.mark.parametrize("machine", MACHINES)
def test_each_capability_opens_what_it_opens_under_docker(machine: str, confined: bool) -> None:
    theirs = seccomp.parse_profile(docker_seccomp.profile())
    for extra in (None, *capabilities.KNOWN):
        granted = {f"CAP_{name}" for name in (*capabilities.DEFAULT, *([extra] if extra else []))}
        compare(theirs, granted, machine, confined)
    compare(theirs, set(), machine, confined)
    compare(theirs, {f"CAP_{name}" for name in capabilities.KNOWN}, machine, confined)


def compare(profile: seccomp.Profile, granted: set[str], machine: str, confined: bool) -> None:
    own = seccomp.default_document(granted, machine=machine, confined=confined)
    reference = seccomp.to_oci(profile, granted, machine=machine, kernel=KERNEL)
    ours, theirs = verdicts(own), verdicts(reference)
    differ = {name for name in ours | theirs if ours.get(name) != theirs.get(name)} - set(ARGUMENTS_DIFFER)
    assert differ == (set() if confined else {name for where, name in DIFFERENT if where == machine})
    assert (own["defaultAction"], own["defaultErrnoRet"]) == (reference["defaultAction"], reference["defaultErrnoRet"])
    # riscv64 is not named here: a libseccomp that does not know it would refuse the filter, and native is the default.
    assert own.get("architectures", []) == [name for name in reference.get("architectures", []) if "RISCV" not in name]


def test_what_differs_is_never_allowed_by_us_alone() -> None:
    for machine, name in DIFFERENT:
        assert name not in docker_seccomp_allowed(seccomp.default_document(set(), machine=machine))


def docker_seccomp_allowed(document: dict[str, Any]) -> set[str]:
    return {name for rule in document["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}


@given(family=st.integers(0, 2**64 - 1) | st.integers(0, 200))
@example(family=38)
@example(family=40)
@example(family=2**32 + 38)
@example(family=2**63 + 40)
@example(family=2**64 - 1)
def test_a_socket_is_of_any_family_but_two_as_the_kernel_reads_it(family: int) -> None:
    """``int family``: the kernel looks at 32 bits of the register."""
    conditions = seccomp_rules.families_but(seccomp_rules.AF_ALG, seccomp_rules.AF_VSOCK)
    matched = [condition for condition in conditions if family & condition.mask == condition.value]
    kernel_sees = family & 0xFFFF_FFFF
    assert bool(matched) == (kernel_sees < 64 and kernel_sees not in (38, 40))
    assert all(condition.value & ~condition.mask == 0 for condition in conditions)
