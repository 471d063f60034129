"""The last one standing: a manager that has lost the others makes a new cluster with the state it has."""

from __future__ import annotations

import docker
import pytest

from tests.multihost.members import (
    join,
    reachability,
    token,
)
from tests.multihost.testbed import Testbed
from tests.waiting import wait_until

WORKER = 4


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

    # One that comes back belongs to the group of old and does no harm; told to leave, it can join.
    four.start(1)
    wait_until(
        lambda: "the log of another Raft group, from before a new cluster was forced" in four.log(1), "it is refused"
    )
    assert [n["ID"] for n in api.nodes() if n.get("ManagerStatus")] == [me]
    four.client(1).api.leave_swarm(force=True)
    join(four, 1, token(four, "Manager", via=2), via=2)
    wait_until(lambda: reachability(four, 1, via=2) == "reachable", "it is a manager of the new cluster")
    assert {"kept", "after"} <= {config.name for config in four.client(1).configs.list()}
