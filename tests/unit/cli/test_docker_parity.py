"""The same question to the same daemon, by ``docker`` and by ``swarm``: the answers are the same, byte for byte."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.fake_engine import FakeEngine
from tests.unit.cli.sample_cluster import fill

DOCKER = shutil.which("docker")
pytestmark = pytest.mark.skipif(DOCKER is None, reason="no docker command to compare with")


@pytest.fixture
def cluster(engine: FakeEngine) -> FakeEngine:
    fill(engine)
    return engine


def docker(engine: FakeEngine, *words: str) -> tuple[str, str, int]:
    assert DOCKER is not None
    done = subprocess.run(
        [DOCKER, "-H", engine.host, *words], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    return done.stdout, done.stderr, done.returncode


SERVICE = "svc1".ljust(25, "y")
SAME = [
    "node ls",
    "node ls -q",
    "node ls --format {{.Hostname}}:{{.Self}}:{{.TLSStatus}}",
    "node ls --format json",
    "node inspect --pretty self host-9 host-1",
    "node inspect -f {{.Spec.Role}} host-9",
    "node inspect -f {{.ID}} gone host-9",
    "node ps",
    "node ps -q host-9",
    "node ps --no-trunc --no-resolve host-9",
    "node promote host-1",
    "node promote host-9",
    "node demote host-9",
    "node demote host-1",
    "node rm gone host-1",
    "node update --availability drain host-1",
    "node update --label-rm nope host-1",
    "service ls",
    "service ls -q",
    "service ls --format json",
    "service ps web",
    "service ps web gone",
    "service ps gone",
    "service ps -q web",
    "service ps --no-trunc web",
    "service ps --format {{.Name}}|{{.Error}} web",
    "service ps --format json web",
    "service inspect --pretty web",
    "service inspect --pretty agent db-2",
    "service inspect -f {{.Spec.Mode.Replicated.Replicas}} db-2",
    "service inspect gone",
    "service scale -d web=3 db-2=1",
    "service scale -d agent=3",
    "service scale web=x",
    "service rm " + SERVICE,
    "service rm gone " + SERVICE,
    "service update -d --image x:2 --no-resolve-image web",
    "stack ls",
    "stack ls --format {{.Name}}",
    "stack services shop",
    "stack ps shop",
    "stack ps nothing",
    "secret ls",
    "secret ls -q",
    "secret inspect --pretty b-9 b-10",
    "config ls",
    "config ls --format {{.Name}}={{.Labels}}",
    "config inspect --pretty b-9 b-10",
    "images",
    "images -q",
    "images --no-trunc",
    "images --format {{.Repository}}={{.Tag}}={{.Size}}",
    "ps",
    "ps -q",
    "ps --no-trunc",
    "ps --format table\t{{.ID}}\\t{{.Names}}\\t{{.Status}}",
    "swarm init",
    "swarm join --token x 10.0.0.1",
    "swarm join-token worker",
    "swarm join-token -q manager",
    "swarm join-token --rotate manager",
    "swarm leave",
    "swarm update --task-history-limit 3",
    "swarm unlock-key",
    "swarm unlock-key -q",
    "node list",
    "service rm gone",
    "service list --format {{.ID}}",
    "node ls --filter x",
]


@pytest.mark.parametrize("line", SAME)
def test_prints_what_docker_prints(cluster: FakeEngine, run: Run, line: str) -> None:
    words = line.split(" ")
    if words[-1].startswith("table\t"):
        words = [*words[:-1], words[-1].replace("\t", " ", 1)]
    if "table\t{{.ID}}\\t{{.Names}}\\t{{.Status}}" in words:
        words[words.index("table\t{{.ID}}\\t{{.Names}}\\t{{.Status}}")] = r"table {{.ID}}\t{{.Names}}\t{{.Status}}"
    out, err, code = docker(cluster, *words)
    asked_by_docker = changes(cluster)
    cluster.asked.clear()
    ours = run(*(words[1:] if words[0] == "swarm" else words))
    out = re.sub(r"docker (swarm )", "swarm ", out)
    assert ours.out == out, ours.err
    assert (ours.err.strip() != "", ours.code) == (err.strip() != "", code), (ours.err, err)
    assert changes(cluster) == asked_by_docker


def changes(engine: FakeEngine) -> list[tuple[str, str]]:
    """The requests that change something, in order."""
    return [(asked.method, asked.path) for asked in engine.asked if asked.method not in ("GET", "HEAD")]
