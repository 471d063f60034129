"""The last one standing: a manager that has lost the others makes a new cluster with the state it has."""

from __future__ import annotations

from functools import partial

import docker
import pytest

from tests.multihost.members import join, reachability, swarm_info, token
from tests.multihost.testbed import Testbed
from tests.waiting import wait_until

WORKER = 4
FORCED = "a new cluster was forced from this one"


def _finds_out(testbed: Testbed, host: int) -> bool:
    return FORCED in swarm_info(testbed, host)["Error"]


def test_one_of_three_managers_makes_a_new_cluster_with_the_state_it_has(four: Testbed) -> None:
    four.client(1).configs.create(name="kept", data=b"x")
    wait_until(lambda: "kept" in {c.name for c in four.client(2).configs.list()}, "the config is replicated")
    four.kill(1)
    four.kill(3)
    with pytest.raises(docker.errors.APIError) as refused:
        four.client(2, timeout_s=25).configs.create(name="lost", data=b"x")
    assert refused.value.response.status_code in (500, 503)
    me, worker = four.node_id(2), four.node_id(WORKER)
    four.client(2).api.init_swarm(f"{four.ip(2)}:2377", "0.0.0.0:2377", force_new_cluster=True)
    assert four.node_id(2) == me
    assert "kept" in {config.name for config in four.client(2).configs.list()}
    four.client(2).configs.create(name="after", data=b"x")
    api = four.client(2).api
    assert [n["ID"] for n in api.nodes() if n.get("ManagerStatus")] == [me]
    wait_until(lambda: api.inspect_node(worker)["Status"]["State"] == "ready", "the worker finds the new cluster")

    # Those that come back would be a second cluster, with a majority: they find out, say so, and change nothing.
    four.start(1)
    four.start(3)
    for host in (1, 3):
        wait_until(partial(_finds_out, four, host), "the manager of before finds out")
        with pytest.raises(docker.errors.APIError, match=FORCED):
            four.client(host, timeout_s=25).configs.create(name="second", data=b"x")
    # Told to leave, they can join.
    assert [n["ID"] for n in api.nodes() if n.get("ManagerStatus")] == [me]
    four.client(1).api.leave_swarm(force=True)
    join(four, 1, token(four, "Manager", via=2), via=2)
    wait_until(lambda: reachability(four, 1, via=2) == "reachable", "it is a manager of the new cluster")
    assert {"kept", "after"} <= {config.name for config in four.client(1).configs.list()}
