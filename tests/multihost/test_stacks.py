"""A stack of three tiers on two overlays, deployed by ``docker`` and by ``swarm`` (features W12, A13.01, A13.11)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.multihost.testbed import Testbed
from tests.waiting import wait_until

STACK = Path(__file__).parents[2] / "examples/three-tier/stack.yml"
COMMANDS = {"docker": ["docker"], "swarm": [sys.executable, "-c", "from cli.main import main; main()"]}


def call(testbed: Testbed, command: str, *words: str) -> str:
    """What a command of host 1 prints; it must succeed."""
    done = subprocess.run(
        [*COMMANDS[command], *words],
        env={**os.environ, **testbed.env(1)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(autouse=True)
def nothing_is_left(three: Testbed) -> Iterator[None]:
    yield
    client = three.client(1)
    for service in client.services.list():
        service.remove()
    wait_until(lambda: not client.api.tasks(), "every task is gone")
    for network in client.networks.list(filters={"driver": "overlay", "label": "com.docker.stack.namespace"}):
        network.remove()


def containers(testbed: Testbed, service: str) -> list[Any]:
    return [
        each
        for host in testbed.hosts()
        for each in testbed.client(host).containers.list(filters={"label": f"com.docker.swarm.service.name={service}"})
    ]


def running(testbed: Testbed, service: str, count: int) -> list[Any]:
    wait_until(lambda: len(containers(testbed, service)) == count, f"{count} containers of {service} run")
    return containers(testbed, service)


def says(container: Any, command: str) -> str:
    return str(container.exec_run(["sh", "-c", command]).output.decode())


def reaches(container: Any, host: str, port: int) -> bool:
    return bool(container.exec_run(["sh", "-c", f"nc -w 3 {host} {port} </dev/null | grep -q ."]).exit_code == 0)


@pytest.mark.parametrize("command", ["docker", "swarm"])
def test_who_may_reach_whom_does_and_who_may_not_does_not(three: Testbed, command: str) -> None:
    if shutil.which(COMMANDS[command][0]) is None:
        pytest.skip("no docker command: scripts/setup --dev")
    deploy = ("stack", "deploy", "-d", "--resolve-image", "never", "-c", str(STACK), "shop")
    made = call(three, command, *deploy)
    assert {line for line in made.splitlines() if line.startswith("Creating network")} == {
        "Creating network shop_front",
        "Creating network shop_back",
    }
    web, api = running(three, "shop_web", 2), running(three, "shop_api", 2)
    [database] = running(three, "shop_database", 1)

    # From outside, by each host, through all tiers: one of them has no web server.
    for host in three.hosts():
        ask = ["busybox", "nc", "-w", "5", three.ip(host), "8080"]
        wait_until(
            lambda a=ask: three.exec(1, a, check=False).split() == ["web", "api", "database"],  # type: ignore[misc]
            f"host {host} leads to a web server, which answers through the tiers behind it",
        )
    for each in api:
        assert "database" in says(each, "nc -w 3 db 5432 </dev/null"), "an alias of the stack file"
    # Not past its tier: neither by name nor by address.
    [address] = [
        network["IPAddress"]
        for name, network in database.attrs["NetworkSettings"]["Networks"].items()
        if name == "shop_back"
    ]
    assert all(reaches(each, address, 5432) for each in api)
    for each in web:
        assert not reaches(each, "database", 5432)
        assert not reaches(each, address, 5432)
    assert not reaches(database, "web", 8080)

    # Again and by the other command: nothing is made or replaced.
    before = {each.id for each in (*web, *api, database)}
    for other in COMMANDS:
        if shutil.which(COMMANDS[other][0]) is not None:
            assert "Creating" not in call(three, other, *deploy)
    three.client(1).services.create("busybox:latest", command=["sleep", "100"], name="later")
    running(three, "later", 1)
    found = {each.id for name in ("web", "api", "database") for each in containers(three, f"shop_{name}")}
    assert found == before

    removed = call(three, command, "stack", "rm", "shop")
    assert {line for line in removed.splitlines() if line.startswith("Removing network")} == {
        "Removing network shop_front",
        "Removing network shop_back",
    }
    # At once again, while tasks of before are still on networks of the same names.
    label = {"label": "com.docker.stack.namespace=shop"}
    assert not three.client(1).networks.list(filters=label)
    assert call(three, command, *deploy).count("Creating network") == 2
    running(three, "shop_database", 1)
    call(three, command, "stack", "rm", "shop")
    for host in three.hosts():
        wait_until(
            lambda h=host: not three.client(h).networks.list(filters=label),  # type: ignore[misc]
            f"host {host} has none of the networks any more, once its tasks have ended",
        )
