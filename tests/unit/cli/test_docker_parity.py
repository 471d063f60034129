"""The same question to the same daemon, by ``docker`` and by ``swarm``: the answers are the same, byte for byte."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest

from tests.unit.cli import samples
from tests.unit.cli.conftest import Run
from tests.unit.cli.fake_engine import Asked, FakeEngine, Raw, missing

DOCKER = shutil.which("docker")
pytestmark = pytest.mark.skipif(DOCKER is None, reason="no docker command to compare with")


@pytest.fixture
def cluster(engine: FakeEngine) -> FakeEngine:
    fill(engine)
    return engine


def fill(engine: FakeEngine) -> None:
    """Routes of a cluster of three nodes with three services and a little history."""
    nodes = [
        samples.node(1, "host-10", role="manager", leader=True),
        samples.node(2, "host-9", role="manager"),
        samples.node(3, "host-1", Status={"State": "down", "Message": "heartbeat failure", "Addr": "10.0.0.3"}),
    ]
    nodes[1]["Spec"]["Labels"] = {"zone": "b", "flag": ""}
    services = [samples.service(1, "web"), samples.service(2, "agent", replicas=None), samples.service(3, "db-2")]
    rich(services[0])
    tasks = [
        samples.task("t1", services[0], 1, nodes[0]),
        samples.task("t2", services[0], 2, nodes[1]),
        samples.task("t3", services[0], 10, nodes[1]),
        samples.task("t4", services[0], 1, nodes[1], "failed", CreatedAt=samples.ago(hours=2)),
        samples.task("t5", services[0], 1, nodes[1], "rejected", CreatedAt=samples.ago(hours=4)),
        samples.task("t6", services[1], 0, nodes[0]),
    ]
    tasks[3]["Status"] |= {"Err": "task: non-zero exit (137): and a longer text", "Timestamp": samples.ago(hours=1.6)}
    tasks[2]["Status"]["PortStatus"] = {
        "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"}]
    }
    blob = {"Version": {"Index": 5}, "CreatedAt": samples.ago(hours=3), "UpdatedAt": samples.ago(seconds=70)}
    blobs = [
        {"ID": "blob2".ljust(25, "q"), **blob, "Spec": {"Name": "b-10", "Labels": {"a": "1"}, "Data": "aGVsbG8="}},
        {"ID": "blob1".ljust(25, "q"), **blob, "Spec": {"Name": "b-9", "Labels": {}, "Data": "aGVsbG8="}},
    ]
    stacked = samples.service(4, "shop_front")
    stacked["Spec"]["Labels"] = {"com.docker.stack.namespace": "shop"}
    engine.routes = {
        "GET /info": samples.info(nodes[0]),
        "GET /nodes": nodes,
        "GET /nodes/(.+)": lambda asked: one(asked, nodes, "node"),
        "GET /services": lambda asked: [stacked] if "namespace" in asked.query.get("filters", "") else services,
        "GET /services/(.+)": lambda asked: one(asked, [*services, stacked], "service"),
        "GET /tasks": lambda asked: [] if "nothing" in asked.query.get("filters", "") else tasks,
        "GET /tasks/(.+)": lambda asked: one(asked, tasks, "task"),
        "GET /secrets": blobs,
        "GET /secrets/(.+)": lambda asked: one(asked, blobs, "secret"),
        "GET /configs": blobs,
        "GET /configs/(.+)": lambda asked: one(asked, blobs, "config"),
        "GET /networks": [],
        "DELETE /nodes/(.+)": lambda asked: gone_or_done(one(asked, nodes, "node")),
        "DELETE /services/(.+)": lambda asked: gone_or_done(one(asked, services, "service")),
        "POST /nodes/.+/update": {},
        "POST /services/.+/update": {"Warnings": ["a warning"]},
        "GET /swarm": {
            "ID": "cluster",
            "Version": {"Index": 3},
            "Spec": {"Name": "default", "CAConfig": {}, "EncryptionConfig": {"AutoLockManagers": False}},
            "JoinTokens": {"Worker": "SWMTKN-1-w", "Manager": "SWMTKN-1-m"},
        },
        "POST /swarm/init": nodes[0]["ID"],
        "POST /swarm/(update|join|leave)": {},
        "GET /swarm/unlockkey": {"UnlockKey": "SWMKEY-1-x"},
        "GET /images/json": IMAGES,
        "GET /containers/json": containers(),
    }


IMAGES = [
    {
        "Id": f"sha256:{'b' * 64}",
        "RepoTags": ["localhost:5000/team/web:2"],
        "RepoDigests": [],
        "Created": 1_700_000_000,
        "Size": 4_261_550,
        "Containers": -1,
        "SharedSize": -1,
        "Labels": None,
    },
    {
        "Id": f"sha256:{'c' * 64}",
        "RepoTags": [],
        "RepoDigests": ["web@sha256:" + "d" * 64],
        "Created": 1_600_000_000,
        "Size": 999_999,
        "Containers": -1,
        "SharedSize": -1,
        "Labels": None,
    },
]


def containers() -> list[dict[str, Any]]:
    return [
        {
            "Id": "e" * 64,
            "Names": ["/web.1.abc"],
            "Image": "busybox:1",
            "ImageID": f"sha256:{'b' * 64}",
            "Command": "sh -c 'while true; do sleep 1; done'",
            "Created": 1_700_000_000,
            "State": "running",
            "Status": "Up 3 minutes",
            "Ports": [
                {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
                {"PrivatePort": 53, "Type": "udp"},
            ],
            "Labels": {},
            "HostConfig": {"NetworkMode": "default"},
            "NetworkSettings": {"Networks": {}},
            "Mounts": [],
        }
    ]


def rich(found: dict[str, Any]) -> None:
    """A service with everything that ``inspect --pretty`` shows."""
    spec = found["Spec"]
    spec["Labels"] = {"a": "1", "empty": ""}
    spec["UpdateConfig"] = {
        "Parallelism": 2,
        "Delay": 10_000_000_000,
        "FailureAction": "pause",
        "Monitor": 90_000_000_000,
        "MaxFailureRatio": 0.25,
        "Order": "stop-first",
    }
    spec["RollbackConfig"] = {**spec["UpdateConfig"], "Delay": 0, "MaxFailureRatio": 0}
    template = spec["TaskTemplate"]
    template["Placement"] = {
        "Constraints": ["node.role==worker", "node.labels.a==b"],
        "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}],
        "MaxReplicas": 3,
    }
    template["Resources"] = {
        "Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 67_108_864, "Pids": 10},
        "Reservations": {"MemoryBytes": 33_554_432},
    }
    template["LogDriver"] = {"Name": "json-file", "Options": {"max-size": "1m"}}
    template["ContainerSpec"] |= {
        "Args": ["sleep", "9d"],
        "Env": ["A=1", "B=2"],
        "Dir": "/srv",
        "User": "nobody",
        "Init": True,
        "CapabilityAdd": ["CAP_NET_ADMIN"],
        "Sysctls": {"net.core.somaxconn": "1024"},
        "Ulimits": [{"Name": "nofile", "Soft": 10, "Hard": 20}],
        "Mounts": [{"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True}],
        "Secrets": [{"File": {"Name": "s", "UID": "0", "GID": "0", "Mode": 292}, "SecretID": "i", "SecretName": "n"}],
        "Configs": [{"File": {"Name": "c", "UID": "0", "GID": "0", "Mode": 292}, "ConfigID": "i", "ConfigName": "n"}],
    }
    found["UpdateStatus"] = {
        "State": "completed",
        "StartedAt": samples.ago(minutes=10),
        "CompletedAt": samples.ago(minutes=9),
        "Message": "update completed",
    }
    ports = [(80, 8080), (81, 8081), (443, 8443)]
    found["Endpoint"]["Ports"] = [
        {"Protocol": "tcp", "TargetPort": target, "PublishedPort": published, "PublishMode": "ingress"}
        for target, published in ports
    ]


def one(asked: Asked, entries: list[dict[str, Any]], kind: str) -> Any:
    reference = asked.path.split("/")[2]
    for entry in entries:
        name = entry.get("Spec", {}).get("Name") or entry.get("Description", {}).get("Hostname")
        if reference in (entry["ID"], name):
            return entry
    return missing(f"{kind} {reference} not found")


def gone_or_done(found: Any) -> Any:
    return found if isinstance(found, Raw) else {}


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
