"""``docker network`` and ``swarm network`` before the same daemon: what they print, and what they ask for."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.fake_engine import DONE, Asked, FakeEngine, missing, refused

DOCKER = shutil.which("docker")
pytestmark = pytest.mark.skipif(DOCKER is None, reason="no docker command to compare with")


def network(number: int, name: str, **fields: object) -> dict[str, Any]:
    return {
        "Name": name,
        "Id": f"{number:x}" * 64,
        "Created": "2026-01-02T03:04:05.123456789Z",
        "Scope": "local",
        "Driver": "bridge",
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": {}, "Config": [{"Subnet": "10.9.0.0/24", "Gateway": "10.9.0.1"}]},
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {},
        "Options": {},
        "Labels": {},
        **fields,
    }


NETWORKS = [
    network(1, "net-10", Labels={"a": "1"}),
    network(2, "net-9", EnableIPv6=True, Internal=True),
    network(3, "mesh", Driver="overlay", Scope="swarm", Ingress=True),
]


def one(asked: Asked) -> object:
    ref = asked.path.split("/")[2]
    found = [each for each in NETWORKS if ref in (each["Name"], each["Id"])]
    return found[0] if found else missing(f"network {ref} not found")


@pytest.fixture
def cluster(engine: FakeEngine) -> FakeEngine:
    engine.routes = {
        "GET /networks": NETWORKS,
        "GET /networks/(.+)": one,
        "POST /networks/create": {"Id": "f" * 64, "Warning": ""},
        "POST /networks/prune": {"NetworksDeleted": ["net-9", "net-10"]},
        "POST /networks/.+/(connect|disconnect)": DONE,
        "DELETE /networks/net-9": refused(403, "error while removing network: network net-9 has active endpoints ()"),
        "DELETE /networks/(.+)": lambda asked: answer if isinstance(answer := one(asked), type(DONE)) else DONE,
    }
    return engine


SAME = [
    "ls",
    "ls -q",
    "ls --no-trunc",
    "ls --format {{.Name}}:{{.IPv4}}:{{.IPv6}}:{{.Internal}}:{{.Labels}}:{{.CreatedAt}}",
    "ls --format json",
    "ls --filter driver=bridge --filter label=a",
    "inspect net-10 net-9",
    "inspect -v net-10",
    "inspect -f {{.IPAM.Driver}} net-10 gone",
    "rm net-10",
    "rm net-9 gone net-10",
    "rm -f gone",
    "rm mesh",
    "prune -f",
    "prune -f --filter label=x --filter until=1h",
    "prune",
    "create plain",
    "create -d macvlan -o parent=eth0.10 -o flag --label a=b --label c --internal --attachable --scope local lan",
    "create --ipv6 --ipv4=false --ipam-driver x --ipam-opt a=b six",
    "create --ipv6=false four",
    "create --subnet 10.1.0.0/16,10.2.0.0/16 --gateway 10.2.0.1 --ip-range 10.1.5.0/24 --aux-address x=10.1.0.7 many",
    "create --subnet 10.1.0.0/16 --subnet 10.1.2.0/24 x",
    "create --subnet 10.1.0.0/16 --gateway 10.9.0.1 x",
    "create --subnet 10.1.0.0/16 --ip-range 10.9.0.0/24 x",
    "create --subnet 10.1.0.0/16 --aux-address a=10.9.0.1 x",
    "create --subnet 10.1.0.0/16 --subnet 10.2.0.0/16 --gateway 10.1.0.1 --gateway 10.1.0.2 x",
    "create --gateway 10.9.0.1 x",
    "create --subnet nonsense --gateway 10.9.0.1 x",
    "create --subnet 10.1.0.0/16 --ip-range nonsense x",
    "create --config-only c",
    "create --config-from c x",
    "create --ingress mesh",
    "create",
    "connect net-9 web",
    "connect --ip 10.9.0.7 --ip6 fd00::7 --alias a --alias b --link db:data --driver-opt x=y --gw-priority 3 net-9 web",
    "connect --link-local-ip 169.254.3.4 net-9 web",
    "disconnect net-9 web",
    "disconnect -f net-9 web",
]


@pytest.mark.parametrize("line", SAME)
def test_prints_and_asks_what_docker_does(
    cluster: FakeEngine, run: Run, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    words = ["network", *line.split(" ")]
    assert DOCKER is not None
    done = subprocess.run(
        [DOCKER, "-H", cluster.host, *words], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    asked_by_docker = changes(cluster)
    cluster.asked.clear()
    ours = run(*words)
    assert ours.out == done.stdout, ours.err
    assert (ours.err.strip() != "", ours.code) == (done.stderr.strip() != "", done.returncode), (ours.err, done.stderr)
    assert changes(cluster) == asked_by_docker


def changes(engine: FakeEngine) -> list[object]:
    """The requests that change something, in order, without what says nothing; docker's subnets come in any order."""
    return [
        (asked.method, asked.path, _filled(asked.body), _filters(asked))
        for asked in engine.asked
        if asked.method not in ("GET", "HEAD")
    ]


def _filters(asked: Asked) -> dict[str, set[str]]:
    """As lists or as mappings, which the API takes both."""
    return {key: set(values) for key, values in json.loads(asked.query.get("filters") or "{}").items()}


def _filled(value: object) -> object:
    if isinstance(value, dict):
        left = {key: _filled(each) for key, each in value.items()}
        if isinstance(subnets := left.get("Config"), list):
            left["Config"] = sorted(subnets, key=str)
        return {
            key: each for key, each in left.items() if each not in (None, "", [], {}, 0) or key.startswith("Enable")
        }
    return [_filled(each) for each in value] if isinstance(value, list) else value


def test_a_warning_is_told(cluster: FakeEngine, run: Run) -> None:
    cluster.routes["POST /networks/create"] = {"Id": "f" * 64, "Warning": "IPAM options are kept without effect: a"}
    ours = run("network", "create", "--ipam-opt", "a=b", "x")
    assert (ours.out, ours.code) == ("f" * 64 + "\n", 0)
    assert ours.err == "WARNING: IPAM options are kept without effect: a\n"
