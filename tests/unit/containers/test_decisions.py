"""Small pure decisions: users, mounts, restart, health, names, files, signals, merging with the image."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.containers import creation, execs, files, health, logs, mounts, restart, signals, users
from runtime.errors import InvalidParameterError
from runtime.images import ImageConfig
from runtime.networks import ports
from runtime.types import (
    BindOptions,
    ContainerConfig,
    ExecConfig,
    Health,
    HealthcheckResult,
    HealthConfig,
    HostConfig,
    LogConfig,
    Mount,
    PortBinding,
    RestartPolicy,
)

PASSWD = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:/bin/sh\n# comment\nbroken\n"
GROUP = "root:x:0:\nstaff:x:50:web,other\nwww:x:34:\n"


@pytest.mark.parametrize(
    ("wanted", "add", "expected"),
    [
        ("", (), users.User(0, 0, (), "/root")),
        ("web", (), users.User(33, 34, (50,), "/var/www")),
        ("33", (), users.User(33, 34, (50,), "/var/www")),
        ("web:staff", (), users.User(33, 50, (), "/var/www")),
        ("1234", ("staff", "77"), users.User(1234, 0, (50, 77), "/")),
        ("1234:77", (), users.User(1234, 77, (), "/")),
    ],
)
def test_users(wanted: str, add: tuple[str, ...], expected: users.User) -> None:
    assert users.resolve(wanted, add, PASSWD, GROUP) == expected


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="unable to find group nope"):
        users.resolve("web:nope", (), PASSWD, GROUP)


@pytest.mark.parametrize(
    ("text", "kind", "source", "target", "read_only"),
    [
        ("/a/../b:/c", "bind", "/b", "/c", False),
        ("name:/c:ro", "volume", "name", "/c", True),
        ("/only", "volume", "", "/only", False),
    ],
)
def test_binds(text: str, kind: str, source: str, target: str, read_only: bool) -> None:
    request = mounts.parse_bind(text)
    assert (request.kind, request.source, request.target, request.read_only) == (kind, source, target, read_only)


@pytest.mark.parametrize("text", ["a:b", "/a:/b:zz", ":/b", "./a:/b", "/a:/", "a:b:c:d"])
def test_bad_binds(text: str) -> None:
    with pytest.raises(InvalidParameterError):
        mounts.parse_bind(text)


@pytest.mark.parametrize(
    ("mount", "able", "expected"),
    [
        (Mount(Type="bind", Source="/s", Target="/t", ReadOnly=True), True, ["ro", "rro"]),
        (Mount(Type="bind", Source="/s", Target="/t", ReadOnly=True), False, ["ro"]),
        (Mount(Type="volume", Source="v", Target="/t", ReadOnly=True), True, ["ro", "rro"]),
        (
            Mount(
                Type="bind",
                Source="/s",
                Target="/t",
                ReadOnly=True,
                BindOptions=BindOptions(ReadOnlyNonRecursive=True),
            ),
            True,
            ["ro"],
        ),
        (Mount(Type="bind", Source="/s", Target="/t"), True, []),
    ],
)
def test_read_only_holds_for_what_is_mounted_below(mount: Mount, able: bool, expected: list[str]) -> None:
    options = mounts.to_oci(mounts.from_mount(mount), "/s", recursive_read_only=able)["options"]
    assert [option for option in options if option in ("ro", "rro")] == expected


def test_recursion_that_cannot_be_had_or_contradicts_itself_is_refused() -> None:
    forced = BindOptions(ReadOnlyForceRecursive=True)
    request = mounts.from_mount(Mount(Type="bind", Source="/s", Target="/t", ReadOnly=True, BindOptions=forced))
    assert "rro" in mounts.to_oci(request, "/s", recursive_read_only=True)["options"]
    with pytest.raises(InvalidParameterError, match=r"needs Linux 5\.12"):
        mounts.to_oci(request, "/s", recursive_read_only=False)
    both = BindOptions(ReadOnlyForceRecursive=True, ReadOnlyNonRecursive=True)
    with pytest.raises(InvalidParameterError, match="mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceR"):
        mounts.from_mount(Mount(Type="bind", Source="/s", Target="/t", ReadOnly=True, BindOptions=both))


def test_later_kinds_of_mount_replace_earlier_and_parents_come_first() -> None:
    config = ContainerConfig(Volumes={"/data": {}, "/a/b": {}})
    host = HostConfig(Binds=["vol:/data"], Mounts=[Mount(Type="tmpfs", Target="/a")])
    inherited = [
        mounts.MountRequest("bind", "/h", "/data"),
        mounts.MountRequest("bind", "/i", "/i"),
    ]
    planned = mounts.plan(config, host, inherited)
    assert [(item.kind, item.source, item.target) for item in planned] == [
        ("volume", "vol", "/data"),
        ("bind", "/i", "/i"),
        ("tmpfs", "", "/a"),
        ("volume", "", "/a/b"),
    ]
    with pytest.raises(InvalidParameterError, match="Duplicate mount point: /x"):
        mounts.plan(ContainerConfig(), HostConfig(Binds=["a1:/x"], Tmpfs={"/x": ""}))


def ended(
    code: int = 1, ran_s: float = 0, restarts: int = 0, delay_s: float = 0, stopped: bool = False
) -> restart.Ended:
    return restart.Ended(code, ran_s, restarts, delay_s, stopped)


@pytest.mark.parametrize(
    ("name", "retries", "how", "expected"),
    [
        ("no", 0, ended(), None),
        ("", 0, ended(), None),
        ("always", 0, ended(0), 0.1),
        ("always", 0, ended(stopped=True), None),
        ("always", 0, ended(delay_s=0.1), 0.2),
        ("always", 0, ended(delay_s=50), 60.0),
        ("always", 0, ended(delay_s=50, ran_s=11), 0.1),
        ("on-failure", 0, ended(0), None),
        ("on-failure", 2, ended(restarts=1), 0.1),
        ("on-failure", 2, ended(restarts=2), None),
        ("unless-stopped", 0, ended(0), 0.1),
    ],
)
def test_restart(name: str, retries: int, how: restart.Ended, expected: float | None) -> None:
    assert restart.delay_after(RestartPolicy(Name=name, MaximumRetryCount=retries), how) == expected


def test_only_unless_stopped_remembers_the_stop_over_a_restart_of_the_daemon() -> None:
    assert restart.starts_with_daemon(RestartPolicy(Name="always"), stopped_by_user=True)
    assert not restart.starts_with_daemon(RestartPolicy(Name="unless-stopped"), stopped_by_user=True)
    assert not restart.starts_with_daemon(RestartPolicy(Name="on-failure"), stopped_by_user=False)


def probe(code: int) -> HealthcheckResult:
    return HealthcheckResult(Start="", End="", ExitCode=code, Output="")


def test_health_counts_failures_after_the_start_period_only() -> None:
    plan = health.schedule(HealthConfig(Retries=2, StartPeriod=10_000_000_000, StartInterval=1_000_000_000))
    state = Health()
    assert health.next_delay(state, plan, 3) == 1
    state = health.after_probe(state, probe(1), plan, 5)
    assert (state.Status, state.FailingStreak) == ("starting", 0)
    state = health.after_probe(state, probe(1), plan, 11)
    assert (state.Status, state.FailingStreak) == ("starting", 1)
    state = health.after_probe(state, probe(1), plan, 12)
    assert state.Status == "unhealthy"
    state = health.after_probe(state, probe(0), plan, 13)
    assert (state.Status, state.FailingStreak) == ("healthy", 0)
    assert health.next_delay(state, plan, 3) == 30


@pytest.mark.parametrize("start_interval_s", [1, 5, 30, 3600])
@pytest.mark.parametrize("start_period_s", [2, 5, 7])
def test_a_long_start_interval_does_not_delay_the_verdict(start_interval_s: int, start_period_s: int) -> None:
    """The start period, and then as many intervals as failures are wanted, less one."""
    config = HealthConfig(
        Interval=10**9,
        Retries=3,
        StartPeriod=start_period_s * 10**9,
        StartInterval=start_interval_s * 10**9,
    )
    plan, state, age_s = health.schedule(config), Health(), 0.0
    while state.Status == "starting":
        age_s += health.next_delay(state, plan, age_s)
        state = health.after_probe(state, probe(1), plan, age_s)
    assert (state.Status, age_s) == ("unhealthy", start_period_s + 2)
    assert state.FailingStreak == 3


def test_who_has_been_healthy_is_given_no_start_period_any_more() -> None:
    plan = health.schedule(HealthConfig(Retries=2, StartPeriod=10**12))
    state = health.after_probe(Health(), probe(0), plan, 1)
    state = health.after_probe(state, probe(1), plan, 2)
    assert (state.Status, state.FailingStreak) == ("healthy", 1)
    assert health.after_probe(state, probe(1), plan, 3).Status == "unhealthy"


def test_a_health_check_that_says_nothing_has_dockers_times() -> None:
    assert health.schedule(HealthConfig()) == health.Schedule(30, 30, 0, 5, 3)


def test_health_keeps_five_results() -> None:
    state = Health()
    for _ in range(9):
        state = health.after_probe(state, probe(0), health.schedule(HealthConfig()), 0)
    assert len(state.Log) == 5


def test_hosts() -> None:
    text = files.hosts_text(
        ["db:10.0.0.1", "gw=host-gateway"], addresses=["172.17.0.2"], names=["box"], gateway="172.17.0.1"
    )
    assert text.endswith("10.0.0.1\tdb\n172.17.0.1\tgw\n172.17.0.2\tbox\n")
    with pytest.raises(InvalidParameterError):
        files.hosts_text(["a b:1"], addresses=[], names=[], gateway="")


@pytest.mark.parametrize(
    ("text", "number"),
    [("SIGTERM", 15), ("kill", 9), ("15", 15), ("RTMIN+3", signal.SIGRTMIN + 3), ("SIGRTMAX-1", signal.SIGRTMAX - 1)],
)
def test_signals(text: str, number: int) -> None:
    assert signals.parse(text) == number


@pytest.mark.parametrize("text", ["", "SIGFOO", "0", "99", "RTMIN+99", "_DFL", "-9"])
def test_bad_signals(text: str) -> None:
    with pytest.raises(InvalidParameterError, match="Invalid signal"):
        signals.parse(text)


def test_merge_with_the_image() -> None:
    image = ImageConfig(
        Entrypoint=["/init"], Cmd=["serve"], Env=["A=1", "B=2"], Labels={"x": "1"}, WorkingDir="/w", User="web"
    )
    merged = creation.merge(ContainerConfig(Env=["B=3"], Labels={"y": "2"}), image)
    assert (merged.Entrypoint, merged.Cmd, merged.Env) == (["/init"], ["serve"], ["A=1", "B=3"])
    assert (merged.Labels, merged.WorkingDir, merged.User) == ({"x": "1", "y": "2"}, "/w", "web")
    own = creation.merge(ContainerConfig(Entrypoint=["/other"]), image)
    assert (own.Entrypoint, own.Cmd) == (["/other"], None)
    none = creation.merge(ContainerConfig(Entrypoint=[""], Cmd=["sh"]), image)
    assert (none.Entrypoint, none.Cmd) == (None, ["sh"])


def test_an_image_makes_no_container_a_tasks() -> None:
    """The agent removes a task's container, and its files, when the task is gone: nobody becomes one by an image."""
    image = ImageConfig(Labels={"com.docker.swarm.task.id": "../../../etc", "x": "1"})
    assert creation.merge(ContainerConfig(), image).Labels == {"x": "1"}
    own = {"com.docker.swarm.task.id": "t1"}
    assert creation.merge(ContainerConfig(Labels=own), image).Labels == {**own, "x": "1"}


def test_exec_process_keeps_what_the_container_has() -> None:
    base = {"args": ["x"], "env": ["A=1", "B=2"], "cwd": "/c", "user": {"uid": 5}, "capabilities": {"bounding": []}}
    process = execs.process_spec(base, ExecConfig(Cmd=["y"], Env=["B=3"], Tty=True), None, ["CAP_ALL"])
    assert process["args"] == ["y"]
    assert process["env"] == ["A=1", "B=3", "TERM=xterm"]
    assert (process["cwd"], process["user"], process["terminal"]) == ("/c", {"uid": 5}, True)
    privileged = execs.process_spec(
        base, ExecConfig(Cmd=["y"], Privileged=True), users.User(7, 8, (9,), "/h"), ["CAP_ALL"]
    )
    assert privileged["capabilities"]["effective"] == ["CAP_ALL"]
    assert privileged["user"] == {"uid": 7, "gid": 8, "additionalGids": [8, 9]}
    assert "HOME=/h" in privileged["env"]


@given(st.text(max_size=40))
def test_binds_never_crash(text: str) -> None:
    try:
        request = mounts.parse_bind(text)
    except InvalidParameterError:
        return
    assert request.target.startswith("/")
    assert ".." not in request.target.split("/")


@given(st.text(max_size=30), st.text(max_size=60), st.text(max_size=60))
def test_users_never_crash(wanted: str, passwd: str, group: str) -> None:
    try:
        user = users.resolve(wanted, (), passwd, group)
    except InvalidParameterError:
        return
    assert user.uid >= 0
    assert user.gid >= 0


def test_an_exec_is_confined_as_its_container_is() -> None:
    base = {"apparmorProfile": "swarm-default", "noNewPrivileges": True, "env": []}
    process = execs.process_spec(base, ExecConfig(Cmd=["true"], Privileged=True), None, ["CAP_CHOWN"])
    assert (process["apparmorProfile"], process["noNewPrivileges"]) == ("swarm-default", True)


MANY = "9" * 5000


@pytest.mark.parametrize(
    "ask",
    [
        lambda: users.resolve(MANY, (), PASSWD, ""),
        lambda: users.resolve(f"0:{MANY}", (), PASSWD, ""),
        lambda: users.resolve("0", (MANY,), PASSWD, ""),
        lambda: users.resolve("web", (), f"web:x:{MANY}:0::/:", ""),
        lambda: users.resolve("web", (), PASSWD, f"staff:x:{MANY}:web"),
        lambda: signals.parse(MANY),
        lambda: signals.parse(f"RTMIN+{MANY}"),
        lambda: ports.parse_port(f"{MANY}/tcp"),
        lambda: ports.requests(
            ContainerConfig(), HostConfig(PortBindings={"80/tcp": [PortBinding(HostPort=f"1-{MANY}")]})
        ),
        lambda: logs.rotation(LogConfig(Type="json-file", Config={"max-file": MANY})),
        lambda: logs.rotation(LogConfig(Type="json-file", Config={"max-size": MANY})),
    ],
)
def test_a_number_of_5000_digits_is_refused_in_few_words(ask: Callable[[], object]) -> None:
    """``int`` raises ValueError from 4301 on, which no caller expects."""
    with pytest.raises(InvalidParameterError) as refused:
        ask()
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("wanted", ["¹", "1:²", "½"])
def test_a_digit_that_is_no_number_is_a_name(wanted: str) -> None:
    """``"¹".isdigit()`` holds, and ``int`` refuses it."""
    with pytest.raises(InvalidParameterError):
        users.resolve(wanted, (), "", "")
