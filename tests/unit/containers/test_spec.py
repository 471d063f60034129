"""From configuration to OCI spec: pure."""

from __future__ import annotations

import platform
from typing import Any

import msgspec
import pytest

from runtime.containers import capabilities, limits, spec, update
from runtime.containers.users import User
from runtime.errors import InvalidParameterError
from runtime.types import ContainerConfig, HostConfig, Ulimit

CAPS = tuple(f"CAP_{name}" for name in capabilities.KNOWN)
CAPACITY = limits.Capacity(
    cpus=2, cpuset_cpus="0-1,4", cpuset_mems="0", swap=True, swappiness=True, oom_kill_disable=True
)
FACTS = spec.HostFacts(
    cgroup_version=1,
    capabilities=CAPS,
    init_path="/usr/bin/tini",
    capacity=CAPACITY,
    recursive_read_only=True,
)
ROOT = User(0, 0, (), "/root")


def build(config: ContainerConfig | None = None, host: HostConfig | None = None, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "container_id": "c" * 64,
        "rootfs": "/rootfs",
        "cgroup_path": "/swarm/c",
        "hostname": "box",
        "config": config or ContainerConfig(Cmd=["true"]),
        "host": host or HostConfig(),
        "user": ROOT,
        "mounts": [],
        "files": [],
        "namespaces": {},
        "devices": [],
        "facts": FACTS,
    }
    return spec.build(spec.SpecInput(**{**given, **changes}))


def test_defaults_are_dockers() -> None:
    document = build()
    process, linux = document["process"], document["linux"]
    assert process["capabilities"]["bounding"] == process["capabilities"]["effective"]
    assert sorted(process["capabilities"]["bounding"]) == sorted(f"CAP_{name}" for name in capabilities.DEFAULT)
    assert "inheritable" not in process["capabilities"]
    assert "ambient" not in process["capabilities"]
    assert process["env"] == [f"PATH={spec.DEFAULT_PATH}", "HOSTNAME=box"]
    assert linux["maskedPaths"] == list(spec.MASKED_PATHS)
    assert linux["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert {item["type"] for item in linux["namespaces"]} == {"mount", "uts", "pid", "ipc", "network"}
    assert linux["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert [mount["destination"] for mount in document["mounts"]][:2] == ["/proc", "/dev"]


def test_a_container_may_dump_core_as_under_docker_whatever_the_daemon_may() -> None:
    """The unit has LimitCORE=0."""
    free = {"type": "RLIMIT_CORE", "hard": 2**64 - 1, "soft": 2**64 - 1}
    facts = msgspec.structs.replace(FACTS, capabilities=(*FACTS.capabilities, "CAP_SYS_RESOURCE"))
    assert build(facts=facts)["process"]["rlimits"] == [free]
    own = HostConfig(Ulimits=[Ulimit(Name="core", Soft=0, Hard=1)])
    assert build(facts=facts, host=own)["process"]["rlimits"] == [{"type": "RLIMIT_CORE", "hard": 1, "soft": 0}]


def test_a_host_that_may_not_raise_limits_does_not_try() -> None:
    facts = msgspec.structs.replace(FACTS, capabilities=("CAP_CHOWN",))
    assert build(facts=facts)["process"]["rlimits"] == []


def test_the_apparmor_profile_is_the_process_and_opens_what_it_guards() -> None:
    guarded = build(apparmor="swarm-default", sockets_hidden=True)
    assert guarded["process"]["apparmorProfile"] == "swarm-default"
    assert "apparmorProfile" not in build()["process"]
    for document, refused in ((guarded, False), (build(), True)):
        names = {
            name for rule in document["linux"]["seccomp"]["syscalls"] for name in rule["names"] if "errnoRet" in rule
        }
        assert ("socketcall" in names) == (refused and platform.machine() == "x86_64")


@pytest.mark.parametrize("option", ["label=disable", "label:disable", "apparmor=unconfined", "apparmor:own"])
def test_options_that_can_be_honoured(option: str) -> None:
    assert spec.parse_security([option]).apparmor == spec.wanted_apparmor([option])
    assert spec.wanted_apparmor([option]) == {"apparmor=unconfined": "unconfined", "apparmor:own": "own"}.get(
        option, ""
    )


def test_privileged_masks_and_filters_nothing() -> None:
    linux = build(host=HostConfig(Privileged=True))["linux"]
    assert (linux["maskedPaths"], linux["readonlyPaths"]) == ([], [])
    assert "seccomp" not in linux
    assert linux["resources"]["devices"] == [{"allow": True, "access": "rwm"}]


@pytest.mark.parametrize(
    ("options", "privileged", "action"),
    [
        (["seccomp=builtin"], False, "SCMP_ACT_ERRNO"),
        (["seccomp=builtin"], True, "SCMP_ACT_ERRNO"),
        (["seccomp=unconfined"], False, None),
        (['seccomp={"defaultAction": "SCMP_ACT_LOG"}'], False, "SCMP_ACT_LOG"),
        (['seccomp={"defaultAction": "SCMP_ACT_LOG"}'], True, "SCMP_ACT_LOG"),
    ],
)
def test_a_filter_that_was_asked_for_is_used_whatever_else(
    options: list[str], privileged: bool, action: str | None
) -> None:
    linux = build(host=HostConfig(SecurityOpt=options, Privileged=privileged))["linux"]
    assert linux.get("seccomp", {}).get("defaultAction") == action


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        (["net_admin"], ["CAP_CHOWN"], {f"CAP_{n}" for n in capabilities.DEFAULT} - {"CAP_CHOWN"} | {"CAP_NET_ADMIN"}),
        ([], ["ALL"], set()),
        (["CHOWN"], ["ALL"], {"CAP_CHOWN"}),
        (["ALL"], ["SYS_ADMIN"], set(CAPS) - {"CAP_SYS_ADMIN"}),
    ],
)
def test_capabilities(add: list[str], drop: list[str], expected: set[str]) -> None:
    assert set(capabilities.effective(add, drop, privileged=False, available=CAPS)) == expected


def test_an_unknown_capability_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match='unknown capability: "CAP_FLY"'):
        capabilities.normalise(["fly"])


def test_bounding_set_limits_what_can_be_granted() -> None:
    assert capabilities.parse_bounding_set("Name:\tx\nCapBnd:\t0000000000000005\n") == [
        "CAP_CHOWN",
        "CAP_DAC_READ_SEARCH",
    ]


def test_resources() -> None:
    host = HostConfig(Memory=64 << 20, NanoCpus=1_500_000_000, CpuShares=512, PidsLimit=10, CpusetCpus="0")
    resources = spec.resources(host, FACTS)
    assert resources["memory"] == {"limit": 64 << 20, "swap": 128 << 20}
    assert resources["cpu"] == {"quota": 150_000, "period": 100_000, "shares": 512, "cpus": "0"}
    assert resources["pids"] == {"limit": 10}
    without_swap = msgspec.structs.replace(host, MemorySwap=-1)
    assert spec.resources(without_swap, FACTS)["memory"]["swap"] == -1
    assert spec.resources(HostConfig(Memory=2**62), FACTS)["memory"]["swap"] == 2**63 - 1
    assert spec.resources(HostConfig(PidsLimit=-5), FACTS)["pids"] == {"limit": -1}


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (HostConfig(Memory=1024), "Minimum memory limit allowed is 6MB"),
        (HostConfig(MemorySwap=1 << 30), "always set the Memory limit"),
        (HostConfig(Memory=1 << 30, MemorySwap=1 << 20), "larger than memory limit"),
        (HostConfig(NanoCpus=10**9, CpuQuota=1), "Nano CPUs and CPU Quota cannot both be set"),
        (HostConfig(NanoCpus=10**9, CpuPeriod=1000), "Nano CPUs and CPU Period cannot both be set"),
        (HostConfig(NanoCpus=2_000_000_001), "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"),
        (HostConfig(NanoCpus=-1), "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"),
        (HostConfig(NanoCpus=9_999_999), "range of CPUs is from 0.01 to 2.00"),
        (HostConfig(CpuShares=1), "the minimum allowed cpu-shares is 2"),
        (HostConfig(CpuShares=262145), "the maximum allowed cpu-shares is 262144"),
        (HostConfig(PidsLimit=4194305), r"invalid PIDs limit \(4194305\): the largest is 4194304"),
        (HostConfig(CpusetCpus="0-4"), "Requested CPUs are not available - requested 0-4, available: 0-1,4"),
        (HostConfig(CpusetMems="1"), "Requested memory nodes are not available - requested 1, available: 0"),
        (HostConfig(CpusetCpus="1-0"), "Invalid value 1-0 for cpuset cpus: invalid format: 1-0"),
        (HostConfig(CpusetCpus="0,"), "Invalid value 0, for cpuset cpus: invalid format: 0,"),
        (HostConfig(CpusetMems="1-9223372036854775807"), "Invalid value .* for cpuset mems: invalid format"),
        (HostConfig(CpusetMems="0-99999"), "for cpuset mems: value of out range, maximum is 8192"),
        (HostConfig(MemoryReservation=1024), "Minimum memory reservation allowed is 6MB"),
        (HostConfig(MemorySwappiness=101), "Invalid value: 101, valid memory swappiness range is 0-100"),
        (HostConfig(CpuShares=-1), r"invalid CPU shares \(-1\): value must be a positive integer"),
        (HostConfig(CpuPeriod=999), r"CPU cfs period can not be less than 1ms \(i.e. 1000\) or larger than 1s"),
        (HostConfig(CpuQuota=999), r"CPU cfs quota can not be less than 1ms \(i.e. 1000\)"),
        (HostConfig(BlkioWeight=5), "Range of blkio weight is from 10 to 1000"),
        (HostConfig(OomScoreAdj=-1001), r"Invalid value -1001, range for oom score adj is \[-1000, 1000\]"),
        (HostConfig(ShmSize=-1), "SHM size can not be less than 0"),
        (HostConfig(Sysctls={"kernel.panic": "1"}), "sysctl 'kernel.panic' is not allowed"),
        (HostConfig(Ulimits=[Ulimit(Name="nofile", Soft=2, Hard=1)]), "soft limit must be less"),
        (HostConfig(Ulimits=[Ulimit(Name="cheese")]), "invalid ulimit type: cheese"),
        (HostConfig(SecurityOpt=["cheese"]), "invalid --security-opt"),
        (HostConfig(SecurityOpt=["apparmor="]), "invalid --security-opt"),
        (HostConfig(SecurityOpt=["apparmor"]), "invalid --security-opt"),
        (HostConfig(SecurityOpt=["label="]), "invalid --security-opt"),
        (HostConfig(SecurityOpt=["label=type:svirt_t"]), "SELinux labels are not applied here"),
        (HostConfig(SecurityOpt=["label:level:s0"]), "SELinux labels are not applied here"),
        (HostConfig(SecurityOpt=['seccomp={"syscalls": 1}']), "Decoding seccomp profile failed"),
    ],
)
def test_contradictions_are_refused(host: HostConfig, words: str) -> None:
    with pytest.raises(InvalidParameterError, match=words):
        build(host=host)


def test_limits_that_the_host_has_are_taken() -> None:
    host = HostConfig(NanoCpus=2 * 10**9, CpusetCpus="1,4,0-1", CpusetMems="0", MemorySwappiness=-1)
    assert build(host=host)["linux"]["resources"]["cpu"]["cpus"] == "1,4,0-1"


def test_what_the_host_cannot_limit_is_taken_away_and_said() -> None:
    able = HostConfig(Memory=64 << 20, MemorySwap=128 << 20, MemorySwappiness=10, OomKillDisable=True, CpusetCpus="0")
    assert limits.settle(able, CAPACITY) == (able, [])
    nothing = limits.Capacity(
        cpus=2, cpuset_cpus="", cpuset_mems="", swap=False, swappiness=False, oom_kill_disable=False
    )
    settled, warnings = limits.settle(able, nothing)
    assert settled == HostConfig(Memory=64 << 20, MemorySwap=-1)
    assert warnings == [
        "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.",
        "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. "
        "Memory swappiness discarded.",
        "Your kernel does not support OomKillDisable. OomKillDisable discarded.",
        "Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.",
    ]
    limits.check(settled, nothing)
    plain = HostConfig(MemorySwappiness=-1, OomKillDisable=False)
    assert limits.settle(plain, nothing) == (plain, [])
    (warning,) = limits.settle(HostConfig(OomKillDisable=True), CAPACITY)[1]
    assert warning.startswith("OOM killer is disabled for the container, but no memory limit is set")


def test_what_a_container_has_already_does_not_stand_against_an_update() -> None:
    """The host may have had more CPUs when it was made."""
    before = HostConfig(CpusetCpus="7", NanoCpus=10**11)
    assert update.merged(before, HostConfig(Memory=64 << 20), FACTS).Memory == 64 << 20
    with pytest.raises(InvalidParameterError, match="Requested CPUs are not available"):
        update.merged(
            HostConfig(), before, msgspec.structs.replace(FACTS, capacity=msgspec.structs.replace(CAPACITY, cpus=100))
        )


def test_device_rules() -> None:
    built = build(host=HostConfig(DeviceCgroupRules=["c 7:* rw", "a *:* r"]))
    rules = built["linux"]["resources"]["devices"]
    assert {"allow": True, "type": "c", "major": 7, "access": "rw"} in rules
    assert rules[-1] == {"allow": True, "type": "a", "access": "r"}
    for bad in ("c 7 rw", "d 7:1 rw", "c 7:1", "c 7:1 x", "c 7:1 rwmr"):
        with pytest.raises(InvalidParameterError, match="invalid device cgroup rule format"):
            spec.device_rule(bad)


def test_init_wraps_the_command() -> None:
    document = build(host=HostConfig(Init=True))
    assert document["process"]["args"] == ["/sbin/docker-init", "--", "true"]
    assert document["mounts"][-1]["destination"] == "/sbin/docker-init"


def test_a_users_mount_replaces_a_default() -> None:
    own = {"destination": "/dev/shm", "type": "bind", "source": "/x", "options": []}
    mounts = build(mounts=[own])["mounts"]
    assert [mount for mount in mounts if mount["destination"] == "/dev/shm"] == [own]


def test_namespaces_of_others_and_of_the_host() -> None:
    namespaces = build(namespaces={"network": "/proc/7/ns/net", "pid": None})["linux"]["namespaces"]
    assert {"type": "network", "path": "/proc/7/ns/net"} in namespaces
    assert "pid" not in {item["type"] for item in namespaces}
    facts = spec.HostFacts(
        cgroup_version=2, capabilities=CAPS, init_path="", capacity=CAPACITY, recursive_read_only=True
    )
    assert {"type": "cgroup"} in build(facts=facts)["linux"]["namespaces"]


def test_environment_overrides_and_removes() -> None:
    config = ContainerConfig(Cmd=["x"], Env=["PATH=/b", "A=1=2", "HOSTNAME"], Tty=True)
    assert spec.environment(config, "box") == ["PATH=/b", "TERM=xterm", "A=1=2"]
