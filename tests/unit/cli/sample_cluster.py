"""What the fake engine of the CLI's tests answers as a cluster; ``tests/contract/test_engine_api.py`` holds it to the API."""

from __future__ import annotations

from typing import Any

from tests.unit.cli import samples
from tests.unit.cli.fake_engine import DONE, Asked, FakeEngine, Raw, attached, frame, missing

BLOB = "blob1".ljust(25, "q")


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
    secrets: list[dict[str, Any]] = [
        {"ID": "blob2".ljust(25, "q"), **blob, "Spec": {"Name": "b-10", "Labels": {"a": "1"}}},
        {"ID": BLOB, **blob, "Spec": {"Name": "b-9", "Labels": {}}},
    ]
    # A config is shown with its data, a secret never.
    configs = [{**secret, "Spec": {**secret["Spec"], "Data": "aGVsbG8="}} for secret in secrets]
    stacked = samples.service(4, "shop_front")
    stacked["Spec"]["Labels"] = {"com.docker.stack.namespace": "shop"}
    engine.routes = {
        "GET /info": samples.info(nodes[0]),
        "GET /nodes": nodes,
        "GET /nodes/(.+)": lambda asked: one(asked, nodes, "node"),
        "GET /services": lambda asked: counted(
            asked, [stacked] if "namespace" in asked.query.get("filters", "") else services
        ),
        "GET /services/(.+)": lambda asked: one(asked, counted(asked, [*services, stacked]), "service"),
        "GET /tasks": lambda asked: [] if "nothing" in asked.query.get("filters", "") else tasks,
        "GET /tasks/(.+)": lambda asked: one(asked, tasks, "task"),
        "GET /secrets": secrets,
        "GET /secrets/(.+)": lambda asked: one(asked, secrets, "secret"),
        "GET /configs": configs,
        "GET /configs/(.+)": lambda asked: one(asked, configs, "config"),
        "GET /networks": [],
        "DELETE /nodes/(.+)": lambda asked: gone_or_done(one(asked, nodes, "node")),
        "DELETE /services/(.+)": lambda asked: gone_or_done(one(asked, services, "service")),
        "POST /nodes/.+/update": DONE,
        "POST /services/.+/update": {"Warnings": ["a warning"]},
        "GET /swarm": samples.cluster() | {"JoinTokens": {"Worker": "SWMTKN-1-w", "Manager": "SWMTKN-1-m"}},
        "POST /swarm/init": nodes[0]["ID"],
        "POST /swarm/(update|join|leave)": DONE,
        "GET /swarm/unlockkey": {"UnlockKey": "SWMKEY-1-x"},
        "GET /images/json": IMAGES,
        "GET /containers/json": containers(),
    }


def fill_run(engine: FakeEngine) -> None:
    """Routes of a container that says something and ends with 3."""
    engine.routes = {
        "POST /containers/create": {"Id": "c" * 64, "Warnings": []},
        "POST /containers/c+/attach": attached(frame(1, b"out\n"), frame(2, b"err\n")),
        "POST /containers/c+/start": Raw(b"", 204),
        "POST /containers/c+/wait": {"StatusCode": 3},
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
    spec["RollbackConfig"] = {key: value for key, value in spec["UpdateConfig"].items() if key != "Delay"}
    spec["RollbackConfig"]["MaxFailureRatio"] = 0
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
        "Secrets": [
            {"File": {"Name": "s", "UID": "0", "GID": "0", "Mode": 292}, "SecretID": BLOB, "SecretName": "b-9"}
        ],
        "Configs": [
            {"File": {"Name": "c", "UID": "0", "GID": "0", "Mode": 292}, "ConfigID": BLOB, "ConfigName": "b-9"}
        ],
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


def counted(asked: Asked, services: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As asked for: with the numbers of tasks or without."""
    if "status" in asked.query:
        return services
    return [{key: value for key, value in service.items() if key != "ServiceStatus"} for service in services]


def gone_or_done(found: Any) -> Any:
    return found if isinstance(found, Raw) else DONE
