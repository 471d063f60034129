"""The unmodified docker command against a real engine (features W01, W02, W08, A12.04, B1, B2)."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.busybox import root_tar, write_registry
from tests.conformance.conftest import IMAGE
from tests.conformance.hosts import EngineHost, Terminal
from tests.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.slow]

ID = re.compile(r"[0-9a-f]{64}")


# ---------------------------------------------------------------- daemon


def test_version_negotiates(host: EngineHost) -> None:
    versions = json.loads(host.ok("version", "--format", "{{json .}}"))
    assert versions["Server"]["ApiVersion"] == "1.51"
    assert {one["Name"] for one in versions["Server"]["Components"]} >= {"Engine", "runc", "conmon"}


def test_info_shows_host_and_swarm_block(host: EngineHost) -> None:
    text = host.ok("info")
    for line in ("Server Version: 0.1.0", "Storage Driver: overlay2", "Swarm: inactive", "Default Runtime: runc"):
        assert line in text
    assert "Live Restore Enabled: true" in text


def test_system_df(host: EngineHost) -> None:
    host.ok("run", "-d", "--name", "one", IMAGE, "sleep", "60")
    rows = [json.loads(line) for line in host.ok("system", "df", "--format", "{{json .}}").splitlines()]
    by_type = {row["Type"]: row for row in rows}
    assert (by_type["Images"]["TotalCount"], by_type["Images"]["Active"]) == ("1", "1")
    assert by_type["Containers"]["Active"] == "1"
    assert "busybox" in host.ok("system", "df", "-v")


def test_too_new_client_is_told(host: EngineHost) -> None:
    answer = subprocess.run(
        ["curl", "-s", "--unix-socket", str(host.socket), "http://d/v1.99/info"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(answer.stdout) == {
        "message": "client version 1.99 is too new. Maximum supported API version is 1.51"
    }


# ---------------------------------------------------------------- containers


def test_run_in_the_background_then_list_inspect_stop_remove(host: EngineHost) -> None:
    container = host.ok("run", "-d", "--name", "web", "--label", "tier=front", IMAGE, "sleep", "600")
    assert ID.fullmatch(container)
    assert host.ok("ps", "-q", "--no-trunc") == container
    assert host.ok("ps", "-q", "--filter", "label=tier=back") == ""
    assert host.ok("ps", "--format", "{{.Names}} {{.Image}} {{.State}}") == f"web {IMAGE} running"
    state = json.loads(host.ok("inspect", "-f", "{{json .State}}", container[:12]))
    assert state["Running"] is True
    assert state["Pid"] > 0
    assert host.ok("stop", "-t", "0", "web") == "web"
    assert host.ok("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "web") == "exited 137"
    assert host.ok("rm", "web") == "web"
    gone = host.cli("inspect", "web")
    assert gone.returncode == 1
    assert "no such object: web" in gone.stderr.lower()


@pytest.mark.parametrize("code", [0, 3])
def test_run_in_the_foreground_prints_and_ends_with_the_exit_code(host: EngineHost, code: int) -> None:
    done = host.cli("run", "--rm", IMAGE, "sh", "-c", f"echo out; echo err >&2; exit {code}")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", code)
    assert host.ok("ps", "-aq") == ""


def test_run_passes_its_input_on(host: EngineHost) -> None:
    done = host.cli("run", "--rm", "-i", IMAGE, "wc", "-c", stdin=b"x" * 300_000)
    assert (done.returncode, done.stdout.strip()) == (0, "300000")


def test_command_that_does_not_exist_ends_with_127(host: EngineHost) -> None:
    done = host.cli("run", "--rm", IMAGE, "no-such-command")
    assert done.returncode == 127
    assert "no-such-command" in done.stderr


def test_name_in_use_is_a_conflict(host: EngineHost) -> None:
    host.ok("create", "--name", "twice", IMAGE)
    again = host.cli("create", "--name", "twice", IMAGE)
    assert again.returncode == 1
    assert 'Conflict. The container name "/twice" is already in use' in again.stderr


def test_logs_follow_until_the_end(host: EngineHost) -> None:
    script = "for i in 1 2 3; do echo line $i; sleep 0.2; done"
    host.ok("run", "-d", "--name", "talker", IMAGE, "sh", "-c", script)
    assert host.ok("logs", "-f", "talker").splitlines() == ["line 1", "line 2", "line 3"]
    assert host.ok("logs", "--tail", "1", "talker") == "line 3"
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z line 3", host.ok("logs", "-t", "--tail", "1", "talker")
    )


def test_wait_prints_the_exit_code(host: EngineHost) -> None:
    host.ok("run", "-d", "--name", "later", IMAGE, "sh", "-c", "sleep 0.3; exit 7")
    assert host.ok("wait", "later") == "7"


def test_kill_restart_pause_rename(host: EngineHost) -> None:
    host.ok("run", "-d", "--name", "one", IMAGE, "sleep", "600")
    host.ok("pause", "one")
    assert host.ok("inspect", "-f", "{{.State.Status}}", "one") == "paused"
    host.ok("unpause", "one")
    host.ok("restart", "-t", "0", "one")
    host.ok("rename", "one", "two")
    host.ok("kill", "two")
    assert host.ok("wait", "two") == "137"
    again = host.cli("kill", "two")
    assert again.returncode == 1
    assert "is not running" in again.stderr


def test_exec_passes_streams_and_exit_code(host: EngineHost) -> None:
    host.ok("run", "-d", "--name", "box", IMAGE, "sleep", "600")
    done = host.cli("exec", "-i", "box", "sh", "-c", "cat; echo err >&2; exit 4", stdin=b"given")
    assert (done.stdout, done.stderr, done.returncode) == ("given", "err\n", 4)
    missing = host.cli("exec", "box", "no-such-command")
    assert missing.returncode == 127
    assert "no-such-command" in missing.stdout
    assert host.ok("exec", "-e", "A=1", "-w", "/tmp", "box", "sh", "-c", "echo $A; pwd").split() == ["1", "/tmp"]


def test_terminal_passes_keys_and_size_and_detaches(host: EngineHost) -> None:
    with Terminal(host, "run", "-it", "--name", "tty", IMAGE, "sh") as terminal:
        # The command sets the size once the container runs; the echo of this has no "33 77".
        terminal.type(b'until [ "$(stty size)" = "33 7"7 ]; do sleep 0.1; done; stty size; tty\n')
        terminal.wait_for(b"33 77")
        terminal.type(b"exit 6\n")
        assert terminal.exit_code() == 6
    host.ok("start", "tty")
    with Terminal(host, "attach", "tty") as terminal:
        terminal.type(b"echo he''re\n")
        terminal.wait_for(b"here")
        terminal.type(b"\x10\x11")
        terminal.wait_for(b"read escape sequence")
        assert terminal.exit_code() == 1
    assert host.ok("inspect", "-f", "{{.State.Running}}", "tty") == "true"


def test_stats_and_top(host: EngineHost) -> None:
    host.ok("run", "-d", "--name", "busy", "-m", "64m", IMAGE, "sleep", "600")
    line = json.loads(host.ok("stats", "--no-stream", "--format", "{{json .}}", "busy"))
    assert line["PIDs"] == "1"
    assert line["MemUsage"].endswith("/ 64MiB")
    assert "sleep 600" in host.ok("top", "busy")
    assert host.ok("top", "busy", "-o", "pid,args").splitlines()[0].split() == ["PID", "COMMAND"]


def test_volumes_and_predefined_networks(host: EngineHost) -> None:
    host.ok("volume", "create", "--label", "a=b", "data")
    assert host.ok("volume", "ls", "-q", "--filter", "label=a=b") == "data"
    host.ok("run", "--rm", "-v", "data:/data", IMAGE, "sh", "-c", "echo kept > /data/file")
    assert host.ok("run", "--rm", "-v", "data:/data", IMAGE, "cat", "/data/file") == "kept"
    host.ok("volume", "rm", "data")
    assert set(host.ok("network", "ls", "--format", "{{.Name}}").split()) == {"bridge", "host", "none"}
    refused = host.cli("network", "rm", "bridge")
    assert refused.returncode == 1
    assert "pre-defined network" in refused.stderr


def test_networks_of_the_users(host: EngineHost) -> None:
    made = host.ok("network", "create", "--subnet", "10.9.0.0/24", "--label", "a=b", "back")
    assert ID.fullmatch(made)
    shown = json.loads(host.ok("network", "inspect", "back"))[0]
    assert (shown["Id"], shown["Driver"], shown["Scope"], shown["Labels"]) == (made, "bridge", "local", {"a": "b"})
    assert shown["IPAM"] == {"Driver": "default", "Options": {}, "Config": [{"Subnet": "10.9.0.0/24"}]}
    for arguments, text in (
        (["create", "back"], "network with name back already exists"),
        (["create", "--subnet", "10.9.0.0/25", "other"], "Pool overlaps with other one on this address space"),
        (["create", "-d", "nope", "other"], 'plugin "nope" not found'),
        (["inspect", "nope"], "network nope not found"),
    ):
        refused = host.cli("network", *arguments)
        assert refused.returncode == 1
        assert text in refused.stderr
    web = host.ok("run", "-d", "--name", "web", "--network", "back", IMAGE, "sleep", "600")
    assert host.ok("inspect", "-f", "{{.NetworkSettings.Networks.back.IPAddress}}", "web") == "10.9.0.2"
    assert host.ok("run", "--rm", "--network", "back", IMAGE, "ping", "-c1", "-W30", "10.9.0.2")
    assert web in json.loads(host.ok("network", "inspect", "back"))[0]["Containers"]
    in_use = host.cli("network", "rm", "back")
    assert in_use.returncode == 1
    assert 'network back has active endpoints (name:"web"' in in_use.stderr
    host.ok("rm", "-f", "web")
    host.ok("network", "create", "front")
    assert host.ok("network", "ls", "-q", "--filter", "dangling=true", "--filter", "label=a=b", "--no-trunc") == made
    assert host.ok("network", "rm", "back") == "back"
    assert host.ok("network", "prune", "-f").split() == ["Deleted", "Networks:", "front"]
    assert set(host.ok("network", "ls", "--format", "{{.Name}}").split()) == {"bridge", "host", "none"}


def test_containers_join_networks_and_leave_them(host: EngineHost) -> None:
    for name, subnet in (("back", "10.9.0.0/24"), ("front", "10.10.0.0/24")):
        host.ok("network", "create", "--subnet", subnet, name)
    for name, network in (("web", "back"), ("box", "bridge")):
        host.ok("run", "-d", "--name", name, "--network", network, IMAGE, "sleep", "600")
    host.ok("network", "connect", "--ip", "10.9.0.9", "--alias", "db", "back", "box")
    shown = json.loads(host.ok("inspect", "-f", "{{json .NetworkSettings}}", "box"))
    back = shown["Networks"]["back"]
    assert (back["IPAddress"], back["Aliases"], back["DNSNames"][:2]) == ("10.9.0.9", ["db"], ["box", "db"])
    assert all((back["EndpointID"], shown["SandboxID"], shown["SandboxKey"]))
    host.ok("exec", "web", "ping", "-c1", "-W30", "db")
    host.ok("stop", "-t0", "box")
    clash = host.cli("run", "--rm", "--network", "back", "--ip", "10.9.0.9", IMAGE, "true")
    assert "Address already in use: 10.9.0.9 is reserved for container box" in clash.stderr
    host.ok("start", "box")
    for arguments, text in (
        (["connect", "back", "box"], "endpoint with name box already exists in network back"),
        (["connect", "host", "box"], "cannot connect container to host network"),
        (["connect", "nope", "box"], "network nope not found"),
        (["disconnect", "-f", "back", "nope"], "endpoint nope not found"),
    ):
        refused = host.cli("network", *arguments)
        assert refused.returncode == 1
        assert text in refused.stderr
    host.ok("network", "disconnect", "back", "box")
    assert "is not connected to network back" in host.cli("network", "disconnect", "back", "box").stderr
    both = host.ok("run", "--rm", "--network", "back", "--network", "name=front,gw-priority=1", IMAGE, "ip", "route")
    assert "default via 10.10.0.1 " in both
    assert "10.9.0.0/24 " in both
    host.ok("run", "--rm", "--link", "box:data", IMAGE, "ping", "-c1", "-W30", "data")
    host.ok("rm", "-f", "web", "box")
    host.ok("network", "rm", "back", "front")


def test_events_tell_the_life_of_a_container(host: EngineHost) -> None:
    since = f"{time.time():.9f}"
    container = host.ok("run", "-d", "--name", "short", IMAGE, "true")
    host.ok("wait", "short")
    host.ok("rm", "short")
    lines = host.ok(
        *("events", "--since", since, "--until", f"{time.time():.9f}", "--filter", f"container={container}"),
        *("--format", "{{.Action}}"),
    ).splitlines()
    for action in ("create", "start", "die", "destroy"):
        assert action in lines
    assert lines.index("create") < lines.index("start") < lines.index("die") < lines.index("destroy")


def test_container_prune(host: EngineHost) -> None:
    done = host.ok("create", IMAGE)
    running = host.ok("run", "-d", IMAGE, "sleep", "600")
    assert done in host.ok("container", "prune", "-f")
    assert host.ok("ps", "-aq", "--no-trunc") == running


# ---------------------------------------------------------------- images


def test_images_tag_history_save_load_remove(host: EngineHost) -> None:
    host.ok("tag", IMAGE, "localhost:5000/team/box:1")
    rows = host.ok("images", "--format", "{{.Repository}}:{{.Tag}}").splitlines()
    assert set(rows) == {IMAGE, "localhost:5000/team/box:1"}
    assert host.ok("history", "-q", IMAGE)
    with tempfile.TemporaryDirectory() as directory:
        archive = str(Path(directory) / "box.tar")
        host.ok("save", "-o", archive, "localhost:5000/team/box:1")
        assert "Untagged: localhost:5000/team/box:1" in host.ok("rmi", "localhost:5000/team/box:1")
        assert host.ok("load", "-i", archive) == "Loaded image: localhost:5000/team/box:1"
    host.ok("rmi", "localhost:5000/team/box:1")


def test_image_in_use_is_not_removed(host: EngineHost) -> None:
    host.ok("create", "--name", "user", IMAGE)
    refused = host.cli("rmi", IMAGE)
    assert refused.returncode == 1
    assert "conflict" in refused.stderr.lower()


def test_missing_image_is_named(host: EngineHost) -> None:
    missing = host.cli("inspect", "--type", "image", "nothing:here")
    assert missing.returncode == 1
    assert "no such image" in missing.stderr.lower()


@pytest.fixture
def registry(host: EngineHost) -> Iterator[tuple[str, str]]:
    """A registry inside the host's network with one image; its address and the image's digest."""
    storage = host.directory / "registry"
    digest = write_registry(storage, "team/app", "1", root_tar())
    config = host.directory / "registry.yml"
    config.write_text(
        json.dumps(
            {
                "version": 0.1,
                "log": {"level": "error"},
                "storage": {"filesystem": {"rootdirectory": str(storage)}, "cache": {}},
                "http": {"addr": "127.0.0.1:5000"},
            }
        )
    )
    with (host.directory / "registry.log").open("wb") as log:
        server = subprocess.Popen(host.enter("docker-registry", "serve", str(config)), stdout=log, stderr=log)
    try:
        probe = host.enter("curl", "-sf", "http://127.0.0.1:5000/v2/")
        wait_until(
            lambda: subprocess.run(probe, capture_output=True, check=False).returncode == 0, "the registry answers"
        )
        yield "127.0.0.1:5000/team/app:1", digest
    finally:
        server.kill()
        server.wait()


def test_pull_and_push_show_progress_and_know_what_is_there(host: EngineHost, registry: tuple[str, str]) -> None:
    name, digest = registry
    first = host.ok("pull", name)
    assert f"Digest: {digest}" in first
    assert "Status: Downloaded newer image for" in first
    assert "Status: Image is up to date for" in host.ok("pull", name)
    assert host.ok("run", "--rm", name, "echo", "pulled") == "pulled"
    host.ok("tag", name, "127.0.0.1:5000/team/other:9")
    assert re.search(r"9: digest: sha256:[0-9a-f]{64} size: \d+", host.ok("push", "127.0.0.1:5000/team/other:9"))
    host.ok("rmi", "127.0.0.1:5000/team/other:9")
    assert "Downloaded newer image" in host.ok("pull", "127.0.0.1:5000/team/other:9")
    host.ok("rmi", "127.0.0.1:5000/team/other:9")
    missing = host.cli("pull", "127.0.0.1:5000/team/app:2")
    assert missing.returncode == 1
    assert "not found" in missing.stderr or "manifest unknown" in missing.stderr
    host.ok("rmi", name)


# ---------------------------------------------------------------- the rest


def test_what_is_not_served_is_said_in_one_sentence(host: EngineHost) -> None:
    host.ok("create", "--name", "box", IMAGE)
    refused = host.cli("commit", "box", "new")
    assert refused.returncode == 1
    assert "not served" in refused.stderr


def test_swarm_command_outside_a_swarm(host: EngineHost) -> None:
    refused = host.cli("node", "ls")
    assert refused.returncode == 1
    assert "This node is not a swarm manager" in refused.stderr
