"""The default system call filter, and profiles that users bring."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from runtime.containers import capabilities, seccomp, seccomp_rules
from runtime.errors import InvalidParameterError

DEFAULT_CAPABILITIES = frozenset(f"CAP_{name}" for name in capabilities.DEFAULT)


def default(*caps: str, machine: str = "x86_64") -> dict[str, Any]:
    return seccomp.default_document(set(caps), machine=machine)


def allowed(document: dict[str, Any]) -> set[str]:
    """Names allowed whatever their arguments."""
    rules = [rule for rule in document["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule]
    return {name for rule in rules for name in rule["names"]}


def conditions(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [rule["args"][0] for rule in document["syscalls"] if name in rule["names"] and "args" in rule]


def test_what_is_not_listed_is_refused_with_eperm() -> None:
    document = default()
    assert (document["defaultAction"], document["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)


def test_default_capabilities_allow_everyday_calls_and_none_that_reach_the_host() -> None:
    names = allowed(seccomp.default_document(DEFAULT_CAPABILITIES, machine="x86_64"))
    assert {"read", "execve", "ptrace", "openat2", "arch_prctl", "futex_waitv", "chroot"} <= names
    assert names.isdisjoint(
        {"mount", "umount2", "unshare", "setns", "clone", "clone3", "bpf", "keyctl", "add_key", "request_key", "reboot"}
        | {"io_uring_setup", "userfaultfd", "init_module", "kexec_load", "swapon", "settimeofday", "open_by_handle_at"}
        | {"perf_event_open", "syslog", "pivot_root", "personality", "socket", "mbind", "iopl", "acct", "socketcall"}
    )


@pytest.mark.parametrize(
    ("capability", "opened"),
    [
        ("CAP_SYS_ADMIN", {"mount", "unshare", "setns", "clone", "clone3", "bpf", "syslog", "perf_event_open"}),
        ("CAP_BPF", {"bpf"}),
        ("CAP_PERFMON", {"perf_event_open"}),
        ("CAP_SYSLOG", {"syslog"}),
        ("CAP_SYS_MODULE", {"init_module", "finit_module", "delete_module"}),
        ("CAP_SYS_TIME", {"settimeofday", "clock_settime", "clock_settime64", "stime"}),
        ("CAP_SYS_CHROOT", {"chroot"}),
        ("CAP_DAC_READ_SEARCH", {"open_by_handle_at"}),
        ("CAP_NET_ADMIN", set()),
    ],
)
def test_a_capability_opens_its_own_calls(capability: str, opened: set[str]) -> None:
    gained = allowed(default(capability)) - allowed(default())
    assert opened <= gained
    if capability != "CAP_SYS_ADMIN":
        assert gained == opened


def test_processes_are_made_without_namespaces_unless_sys_admin() -> None:
    mask = 0x7E020000
    assert mask == seccomp_rules.CLONE_NAMESPACES
    bits = {"value": mask, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    assert conditions(default(), "clone") == [{"index": 0, **bits}]
    assert conditions(default(machine="s390x"), "clone") == [{"index": 1, **bits}]
    assert {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38} in default()["syscalls"]
    admin = default("CAP_SYS_ADMIN")
    assert conditions(admin, "clone") == []
    assert "clone3" in allowed(admin)


def test_socketcall_is_refused_where_only_programs_of_32_bits_use_it_and_nothing_else_sees_the_family() -> None:
    refused = {"names": ["socketcall"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
    assert default()["syscalls"][0] == refused  # before what allows socket, or libseccomp opens it with that
    confined = seccomp.default_document(set(), machine="x86_64", confined=True)
    assert refused not in confined["syscalls"]
    for document in (confined, default(machine="s390x"), default(machine="i686"), default(machine="aarch64")):
        assert "socketcall" in allowed(document)


def test_arguments_of_personality() -> None:
    values = [condition["value"] for condition in conditions(default(), "personality")]
    assert values == [0, 8, 0x20000, 0x20008, 0xFFFFFFFF]


@pytest.mark.parametrize(
    ("machine", "architectures", "own"),
    [
        ("x86_64", ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], {"arch_prctl", "modify_ldt"}),
        ("aarch64", ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"], {"cacheflush", "sync_file_range2"}),
        ("s390x", ["SCMP_ARCH_S390X", "SCMP_ARCH_S390"], {"s390_runtime_instr"}),
        ("riscv64", None, {"riscv_flush_icache"}),
        ("unheard-of", None, set()),
    ],
)
def test_machines(machine: str, architectures: list[str] | None, own: set[str]) -> None:
    document = default(machine=machine)
    assert document.get("architectures") == architectures
    assert own <= allowed(document)
    assert "modify_ldt" not in own or "cacheflush" not in allowed(document)


def test_tables_name_each_call_once_and_only_real_capabilities() -> None:
    assert [name for name, count in Counter(seccomp_rules.ALLOWED).items() if count > 1] == []
    assert set(seccomp_rules.BY_CAPABILITY) <= {f"CAP_{name}" for name in capabilities.KNOWN}
    always = set(seccomp_rules.ALLOWED)
    assert always.isdisjoint(name for names in seccomp_rules.BY_CAPABILITY.values() for name in names.split())


def test_two_filters_share_nothing() -> None:
    first = default()
    first["architectures"].clear()
    first["syscalls"][0]["names"].clear()
    assert default()["architectures"]
    assert "read" in allowed(default())


OWN: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
    "syscalls": [
        {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
        {"name": "mount", "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["cacheflush"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
    ],
}


def test_a_profile_of_the_users_in_moby_format() -> None:
    profile = seccomp.parse_profile(json.dumps(OWN))
    plain = seccomp.to_oci(profile, set(), machine="x86_64", kernel=(4, 4))
    assert plain["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert allowed(plain) == {"read", "write"}
    assert {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38} in plain["syscalls"]
    admin = seccomp.to_oci(profile, {"CAP_SYS_ADMIN"}, machine="aarch64", kernel=(6, 1))
    assert allowed(admin) == {"read", "write", "mount", "ptrace", "cacheflush"}
    assert "architectures" not in admin


def test_what_the_runtime_knows_beside_the_rules_reaches_it() -> None:
    text = json.dumps(OWN | {"flags": ["SECCOMP_FILTER_FLAG_LOG"], "listenerPath": "/run/agent", "defaultErrnoRet": 5})
    document = seccomp.own_filter(text, set())
    assert (document["flags"], document["listenerPath"], document["defaultErrnoRet"]) == (
        ["SECCOMP_FILTER_FLAG_LOG"],
        "/run/agent",
        5,
    )


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "not json", "[" * 100_000),
        json.dumps(OWN | {"syscalls": 5}),
        json.dumps(OWN | {"syscalls": [{"names": ["read"]}]}),
        json.dumps(OWN | {"syscalls": [{"names": "read", "action": "SCMP_ACT_ALLOW"}]}),
        json.dumps(OWN | {"syscalls": [{"names": ["read"], "name": "write", "action": "SCMP_ACT_ALLOW"}]}),
        json.dumps(OWN | {"archMap": [{}]}),
        json.dumps(OWN | {"architectures": ["SCMP_ARCH_X86"]}),
        json.dumps({"defaultAction": None}),
    ],
)
def test_a_profile_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameterError, match="Decoding seccomp profile failed"):
        seccomp.parse_profile(text)
