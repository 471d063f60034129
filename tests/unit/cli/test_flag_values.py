"""Flags whose value cannot be read: refused before anything is asked, in Docker's words and with its exit status."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from cli import service_spec
from tests.unit.cli.conftest import Run
from tests.unit.cli.fake_engine import FakeEngine
from tests.unit.cli.test_docker_parity import docker

CREATE = ("service", "create", "-d", "--no-resolve-image")
UPDATE = ("service", "update", "-d")
DOCKERS = [
    (*CREATE, "--mount", "type=bind", "image"),
    (*CREATE, "--mount", "foo=bar,target=/x", "image"),
    (*CREATE, "--mount", "type=volume,target=/x,tmpfs-size=1m", "image"),
    (*CREATE, "--publish", "x", "image"),
    (*CREATE, "-p", "1.2.3.4:80:80", "image"),
    (*CREATE, "--publish", "80/foo", "image"),
    (*CREATE, "--secret", "target=x", "image"),
    (*CREATE, "--env", "=x", "image"),
    (*CREATE, "--host", "x", "image"),
    (*CREATE, "--host", "a:x", "image"),
    (*CREATE, "--dns", "x.y", "image"),
    (*CREATE, "--dns-search", "a b", "image"),
    (*CREATE, "--ulimit", "x", "image"),
    (*CREATE, "--ulimit", "nofile=5:1", "image"),
    (*CREATE, "--generic-resource", "x", "image"),
    (*CREATE, "--label", "=x", "image"),
    (*CREATE, "--limit-cpu", "x", "image"),
    (*CREATE, "--limit-memory", "x", "image"),
    (*CREATE, "--limit-pids", "x", "image"),
    (*CREATE, "--reserve-cpu", "0.0000000001", "image"),
    (*CREATE, "--replicas", "x", "image"),
    (*CREATE, "--replicas", "-1", "image"),
    (*CREATE, "--update-parallelism", "-1", "image"),
    (*CREATE, "--update-max-failure-ratio", "x", "image"),
    (*CREATE, "--health-interval", "x", "image"),
    (*CREATE, "--entrypoint", "'x", "image"),
    (*UPDATE, "--mount-add", "type=x", "web"),
    (*UPDATE, "--publish-add", "x", "web"),
    (*UPDATE, "--secret-add", "target=x", "web"),
    (*UPDATE, "--host-add", "x", "web"),
    (*UPDATE, "--env-add", "=x", "web"),
    (*UPDATE, "--args", "'x", "web"),
    ("service", "ps", "-f", "x", "web"),
    ("node", "ls", "--filter", "x"),
    ("secret", "create", "--label", "=x", "a", "-"),
]


@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker command to compare with")
@pytest.mark.parametrize("words", DOCKERS, ids=" ".join)
def test_a_value_that_cannot_be_read_is_refused_as_by_docker(
    engine: FakeEngine, run: Run, words: tuple[str, ...]
) -> None:
    _, theirs, code = docker(engine, *words)
    engine.asked.clear()
    ran = run(*words)
    assert (ran.out, ran.code, code) == ("", 125, 125)
    assert ran.err.splitlines()[0].lower() == theirs.splitlines()[0].lower()
    assert not engine.asked


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("init", "--cert-expiry", "x"), 'invalid argument "x" for "--cert-expiry" flag: time: invalid duration "x"'),
        (("update", "--dispatcher-heartbeat", "x"), 'for "--dispatcher-heartbeat" flag: time: invalid duration "x"'),
        (("run", "-m", "x", "image"), 'invalid argument "x" for "-m, --memory" flag: invalid size: \'x\''),
        (("run", "-p", "x", "image"), 'invalid argument "x" for "-p, --publish" flag: Invalid containerPort: x'),
        (("run", "-v", "x", "image"), 'invalid argument "x" for "-v, --volume" flag: want SOURCE:TARGET'),
        (
            (*UPDATE, "--publish-rm", "80:80", "web"),
            'invalid argument "80:80" for "--publish-rm" flag: want a target port',
        ),
    ],
)
def test_a_value_of_ours_alone_is_refused_in_the_same_form(
    engine: FakeEngine, run: Run, words: tuple[str, ...], told: str
) -> None:
    ran = run(*words)
    assert (ran.out, ran.code) == ("", 125)
    assert told in ran.err
    assert not engine.asked


CAPABILITIES = [
    (["CAP_SYS_NICE"], ["CAP_MKNOD"], ["RESET"], []),
    (["CAP_SYS_NICE"], ["CAP_MKNOD"], [], ["reset"]),
    (["CAP_SYS_NICE"], ["CAP_MKNOD"], ["RESET", "NET_ADMIN"], ["RESET", "KILL"]),
    (["CAP_SYS_NICE"], ["CAP_MKNOD"], ["MKNOD"], ["SYS_NICE"]),
    (["CAP_SYS_NICE"], ["CAP_MKNOD"], ["mknod", "mknod"], ["mknod", "KILL"]),
    ([], [], ["ALL"], ["SYS_NICE"]),
    ([], ["ALL"], ["ALL"], []),
]


@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker command to compare with")
@pytest.mark.parametrize(("added", "dropped", "add", "drop"), CAPABILITIES)
def test_an_update_leaves_the_capabilities_that_dockers_leaves(
    engine: FakeEngine, run: Run, added: list[str], dropped: list[str], add: list[str], drop: list[str]
) -> None:
    container = {"Image": "i", "CapabilityAdd": added, "CapabilityDrop": dropped}
    spec = {"Name": "web", "TaskTemplate": {"ContainerSpec": container}, "Mode": {"Replicated": {"Replicas": 1}}}
    engine.routes = {
        "GET /services/web": {"ID": "s", "Version": {"Index": 1}, "Spec": spec},
        "POST /services/.+/update": {"Warnings": None},
    }
    words = [word for name in add for word in ("--cap-add", name)]
    words += [word for name in drop for word in ("--cap-drop", name)]

    def left() -> list[set[str]]:
        [body] = engine.bodies("POST", "/services/s/update")
        engine.asked.clear()
        found = body["TaskTemplate"]["ContainerSpec"]
        return [set(found.get(key) or ()) for key in ("CapabilityAdd", "CapabilityDrop")]

    _, err, code = docker(engine, *UPDATE, *words, "web")
    assert code == 0, err
    theirs = left()
    ran = run(*UPDATE, *words, "web")
    assert ran.code == 0, ran.err
    assert left() == theirs


def test_a_reset_of_nothing_changes_nothing() -> None:
    spec: dict[str, Any] = {"TaskTemplate": {"ContainerSpec": {"Image": "i"}}}
    service_spec.settle_capabilities(spec, ["RESET"], ["RESET"])
    assert spec == {"TaskTemplate": {"ContainerSpec": {"Image": "i"}}}
