"""The unmodified docker command drives a cluster (features W09 to W11, A4, A5, A7)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from tests.multihost.testbed import Testbed
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(shutil.which("docker") is None, reason="no docker command: scripts/setup --dev")


def docker_cli(testbed: Testbed, host: int, *words: str, check: bool = True, timeout_s: float = 120) -> str:
    """Run the docker command against a host; return stdout and stderr together."""
    done = subprocess.run(
        ["docker", *words],
        env={**os.environ, **testbed.env(host)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stdout
    return done.stdout


def columns(text: str) -> list[str]:
    return re.split(r"\s{2,}", text.splitlines()[0].strip())


def test_node_ls_names_every_host_and_the_leader(three: Testbed) -> None:
    text = docker_cli(three, 1, "node", "ls")
    assert columns(text) == ["ID", "HOSTNAME", "STATUS", "AVAILABILITY", "MANAGER STATUS", "ENGINE VERSION"]
    lines = text.splitlines()[1:]
    assert len(lines) == 3
    assert sum("Leader" in line for line in lines) == 1
    assert sum("Reachable" in line for line in lines) == 2
    assert sum(" * " in line for line in lines) == 1
    assert all("Ready" in line and "Active" in line for line in lines)
    # Each node tells with its description whose certificate it has (A2.05).
    wait_until(
        lambda: docker_cli(three, 1, "node", "ls", "--format", "{{.TLSStatus}}").split() == ["Ready"] * 3,
        "every node trusts the cluster's root",
    )


def test_a_service_from_create_to_rm(three: Testbed) -> None:
    worker = docker_cli(three, 1, "node", "ls", "-q").split()[1]
    # The command does not retry when the node object has just changed (W06): its user would.
    wait_until(
        lambda: docker_cli(three, 1, "node", "update", "--label-add", "disk=ssd", worker), "the node is labelled"
    )
    text = docker_cli(
        *(three, 1, "service", "create", "--name", "cli", "--replicas", "5", "--no-resolve-image"),
        *("--constraint", "node.labels.disk==ssd", "--update-monitor", "1s", "busybox:latest", "sleep", "3600"),
    )
    assert "overall progress: 5 out of 5 tasks" in text
    assert re.search(r"verify: Service \w+ converged", text)

    text = docker_cli(three, 2, "service", "ls")
    assert columns(text) == ["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"]
    assert "5/5" in text

    text = docker_cli(three, 3, "service", "ps", "cli")
    assert columns(text)[:6] == ["ID", "NAME", "IMAGE", "NODE", "DESIRED STATE", "CURRENT STATE"]
    assert len(re.findall(r"cli\.\d", text)) == 5
    assert len(docker_cli(three, 1, "node", "ps", worker, "-q").split()) == 5

    text = docker_cli(three, 1, "service", "scale", "cli=2")
    assert "cli scaled to 2" in text
    assert re.search(r"verify: Service \w+ converged", text)
    # The containers have ten seconds to stop: until then they are counted as running, as in Docker.
    wait_until(lambda: "2/2" in docker_cli(three, 1, "service", "ls"), "two tasks are left")

    assert "busybox:latest" in docker_cli(three, 1, "service", "inspect", "--pretty", "cli")
    assert docker_cli(three, 1, "service", "rm", "cli").strip() == "cli"
    wait_until(lambda: not three.client(1).api.tasks(), "every task is gone")
    wait_until(lambda: docker_cli(three, 1, "node", "update", "--label-rm", "disk", worker), "the label is gone")


def test_errors_read_as_dockers_do(three: Testbed) -> None:
    assert "Error response from daemon: service nope not found" in docker_cli(
        three, 1, "service", "scale", "nope=1", check=False
    )
    text = docker_cli(three, 1, "swarm", "init", check=False)
    assert "This node is already part of a swarm" in text
    text = docker_cli(three, 1, "node", "rm", three.node_id(1), check=False)
    assert "must be demoted to worker before removal" in text


def test_info_and_version_show_the_swarm(three: Testbed) -> None:
    text = docker_cli(three, 1, "info")
    assert "Swarm: active" in text
    assert "Managers: 3" in text
    assert "Nodes: 3" in text
    assert "API version" in docker_cli(three, 1, "version")


def test_configs_and_join_tokens(three: Testbed) -> None:
    token = docker_cli(three, 1, "swarm", "join-token", "-q", "worker").strip()
    assert re.fullmatch(r"SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}", token)
    docker_cli(three, 1, "swarm", "join-token", "--rotate", "-q", "worker")
    assert docker_cli(three, 2, "swarm", "join-token", "-q", "worker").strip() != token
    subprocess.run(
        ["docker", "config", "create", "motd", "-"],
        env={**os.environ, **three.env(1)},
        input=b"hello",
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert docker_cli(three, 3, "config", "inspect", "-f", '{{printf "%s" .Spec.Data}}', "motd").strip() == "hello"
    docker_cli(three, 1, "config", "rm", "motd")
