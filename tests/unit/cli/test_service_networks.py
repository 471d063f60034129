"""Networks of ``service create`` and ``update``: what ``docker`` and ``swarm`` make of the same flags."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.fake_engine import Asked, FakeEngine, missing
from tests.unit.cli.sample_cluster import fill
from tests.unit.cli.samples import service
from tests.unit.cli.test_docker_parity import docker

pytestmark = pytest.mark.skipif(shutil.which("docker") is None, reason="no docker command to compare with")

NETWORKS = {name.ljust(25, "n"): name for name in ("front", "back", "third")}
FRONT, BACK, THIRD = NETWORKS
CREATE = "service create -d --no-resolve-image --name n"
UPDATE = "service update -d --no-resolve-image web"


@pytest.fixture
def engine(engine: FakeEngine) -> FakeEngine:
    """Of a cluster with three networks and a service on the first and on its hosts' own."""

    def network(asked: Asked) -> Any:
        ref = asked.path.rpartition("/")[2]
        for network_id, name in NETWORKS.items():
            if ref in (network_id, name) and asked.query.get("scope") == "swarm":
                return {"Name": name, "Id": network_id, "Scope": "swarm", "Driver": "overlay"}
        return missing(f"network {ref} not found")

    fill(engine)
    web = service(1, "web")
    web["Spec"]["TaskTemplate"]["Networks"] = [{"Target": FRONT, "Aliases": ["www"]}, {"Target": "host"}]
    engine.routes |= {
        "GET /services/(.+)": web,
        "GET /networks/(.+)": network,
        "POST /services/create": {"ID": "made"},
    }
    return engine


def networks_sent(engine: FakeEngine) -> list[Any]:
    """Networks of the specs that were sent, without what is empty."""
    specs = [asked.body for asked in engine.asked if asked.method == "POST" and asked.path.startswith("/services/")]
    engine.asked.clear()
    sent = [spec["TaskTemplate"].get("Networks") or [] for spec in specs]
    return [[{key: item for key, item in each.items() if item} for each in networks] for networks in sent]


@pytest.mark.parametrize(
    "line",
    [
        f"{CREATE} --network front busybox:1",
        f"{CREATE} --network third --network back --endpoint-mode dnsrr busybox:1",
        f"{CREATE} --network name=front,alias=a,alias=b,driver-opt=k=v busybox:1",
        f"{CREATE} --network {BACK} busybox:1",
        f"{CREATE} --network gone busybox:1",
        f"{UPDATE} --network-add third --network-rm front",
        f"{UPDATE} --network-add name=back,alias=x",
        f"{UPDATE} --network-rm {FRONT}",
        f"{UPDATE} --network-rm back",
        f"{UPDATE} --network-rm front --network-add name=front,alias=new",
        f"{UPDATE} --network-add front",
        f"{UPDATE} --network-add gone",
        f"{UPDATE} --network-rm gone",
        f"{UPDATE} --endpoint-mode dnsrr",
    ],
)
def test_networks_are_dockers(engine: FakeEngine, run: Run, line: str) -> None:
    words = line.split(" ")
    _, their_err, their_code = docker(engine, *words)
    theirs = networks_sent(engine)
    ours = run(*words)
    assert ours.code == their_code, (ours.err, their_err)
    assert networks_sent(engine) == theirs
    assert ours.err == their_err


def test_networks_of_every_node_go_by_name(engine: FakeEngine, run: Run) -> None:
    assert run(*CREATE.split(" "), "--network", "host", "busybox:1").code == 0
    assert networks_sent(engine) == [[{"Target": "host"}]]


def test_pretty_shows_networks_by_name(engine: FakeEngine, run: Run) -> None:
    words = ("service", "inspect", "--pretty", "web")
    shown = run(*words).out
    assert "Networks: front host" in shown
    assert shown == docker(engine, *words)[0]
