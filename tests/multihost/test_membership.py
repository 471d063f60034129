"""Who is in the cluster, and as what: promotion, demotion, leaving, joining again, and daemons killed in parts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator

import docker
import pytest

from tests.multihost.members import (
    join,
    kill_manager,
    leave,
    manager_again,
    node,
    processes,
    reachability,
    set_role,
    swarm_info,
    token,
)
from tests.multihost.testbed import Testbed
from tests.waiting import wait_until

WORKER = 4


@pytest.fixture
def alone() -> Iterator[Testbed]:
    """Two hosts in no cluster."""
    testbed = Testbed(2, name="mo", network="192.168.95")
    try:
        testbed.up()
        yield testbed
    finally:
        testbed.down()


# ---------------------------------------------------------------------- roles


def test_a_worker_is_promoted_survives_its_managers_death_and_is_demoted(four: Testbed) -> None:
    set_role(four, WORKER, "manager")
    wait_until(lambda: swarm_info(four, WORKER)["ControlAvailable"], "the host has a manager")
    wait_until(lambda: reachability(four, WORKER) == "reachable", "it is in the Raft group")
    assert len(four.client(WORKER).nodes.list()) == 4
    # Told of the death of a manager that was started by a promotion, too.
    killed = kill_manager(four, WORKER)
    wait_until(lambda: manager_again(four, WORKER, killed), "the manager is back")

    set_role(four, WORKER, "worker")
    raft = four.directory(WORKER) / "state" / "raft"
    wait_until(lambda: not raft.exists(), "the host has forgotten the Raft log")
    assert "swarm-manager" not in processes(four, WORKER)
    assert not swarm_info(four, WORKER)["ControlAvailable"]
    assert reachability(four, WORKER) == ""
    with pytest.raises(docker.errors.APIError, match="Worker nodes can't be used to view or modify cluster state"):
        four.client(WORKER).nodes.list()
    wait_until(lambda: node(four, WORKER)["Status"]["State"] == "ready", "it works on as a worker")

    # Promoted again: the certificates from before the demotion are void, a new one opens the Raft streams.
    set_role(four, WORKER, "manager")
    wait_until(lambda: reachability(four, WORKER) == "reachable", "it is in the Raft group again")
    wait_until(lambda: len(four.client(WORKER).nodes.list()) == 4, "it answers as a manager")
    set_role(four, WORKER, "worker")
    wait_until(lambda: not raft.exists(), "it is a worker again")


# ---------------------------------------------------------------------- processes


def test_a_killed_manager_process_is_started_again(four: Testbed) -> None:
    killed = kill_manager(four, 3)
    wait_until(lambda: manager_again(four, 3, killed), "the manager is back")
    wait_until(lambda: reachability(four, 3) == "reachable", "the others see it")


def test_a_killed_node_process_comes_back_to_the_manager_that_outlived_it(four: Testbed) -> None:
    before = processes(four, 3)
    os.kill(before["swarmd"][0], signal.SIGKILL)
    wait_until(lambda: "swarmd" not in processes(four, 3), "node and zygote end")
    assert processes(four, 3)["swarm-manager"] == before["swarm-manager"]
    four.start(3)
    wait_until(lambda: swarm_info(four, 3)["ControlAvailable"], "the node has its manager again")
    assert processes(four, 3)["swarm-manager"] == before["swarm-manager"]


def test_a_second_daemon_on_the_same_state_is_refused(four: Testbed) -> None:
    command = four.daemon_command(WORKER)
    second = [*command[: command.index("--host")], "--host", "unix:///run/second.sock"]
    done = subprocess.run(
        four.inside(WORKER, second), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("swarmd: another swarmd (PID ")
    assert swarm_info(four, WORKER)["LocalNodeState"] == "active"


# ---------------------------------------------------------------------- leaving and joining


def test_a_worker_leaves_is_refused_with_bad_tokens_and_joins_again(four: Testbed) -> None:
    leave(four, WORKER)
    left = {path.name for path in (four.directory(WORKER) / "state").iterdir()}
    assert left - {"manager.lock"} == {"engine", "swarmd.lock"}  # the lock is there if it was a manager before
    good = token(four, "Worker")
    other_secret = good[:-1] + ("0" if good[-1] != "0" else "1")
    digest = good.split("-")[2]
    other_cluster = good.replace(digest, digest[:-1] + ("0" if digest[-1] != "0" else "1"))
    for bad, text in (
        (other_secret, "A valid join token is necessary to join this cluster"),
        (other_cluster, "remote CA does not match fingerprint"),
        ("SWMTKN-1-nonsense", "invalid join token"),
    ):
        with pytest.raises(docker.errors.APIError, match=text) as refused:
            join(four, WORKER, bad)
        assert refused.value.response.status_code == 400
        assert swarm_info(four, WORKER)["LocalNodeState"] == "inactive"
    with pytest.raises(docker.errors.APIError, match="This node is not part of a swarm") as none:
        four.client(WORKER).api.leave_swarm()
    assert none.value.response.status_code == 503
    join(four, WORKER, good)
    wait_until(lambda: node(four, WORKER)["Status"]["State"] == "ready", "it is ready")
    with pytest.raises(docker.errors.APIError, match="already part of a swarm") as member:
        join(four, WORKER, good)
    assert member.value.response.status_code == 503


@pytest.mark.parametrize("who", ["follower", "leader"])
def test_a_manager_leaves_by_force_and_joins_again(four: Testbed, who: str) -> None:
    leader = four.leader(1)
    going = leader if who == "leader" else next(host for host in (1, 2, 3) if host != leader)
    via = next(host for host in (1, 2, 3) if host != going)
    with pytest.raises(docker.errors.APIError, match="participating as a manager") as refused:
        four.client(going).api.leave_swarm()
    assert refused.value.response.status_code == 503
    leave(four, going, force=True, via=via)
    managers = [n for n in four.client(via).nodes.list() if n.attrs.get("ManagerStatus")]
    assert len(managers) == 2
    join(four, going, token(four, "Manager", via=via), via=via)
    wait_until(lambda: reachability(four, going, via=via) == "reachable", "it is a manager again")


def test_managers_in_the_raft_group_and_nodes_that_are_up_are_not_removed(four: Testbed) -> None:
    api = four.client(1).api
    with pytest.raises(docker.errors.APIError, match="It must be demoted to worker before removal"):
        api.remove_node(four.node_id(2))
    with pytest.raises(docker.errors.APIError, match="is not down and can't be removed"):
        api.remove_node(four.node_id(WORKER))


# ---------------------------------------------------------------------- init and join that fail


def test_an_init_that_cannot_listen_says_so_and_leaves_nothing(alone: Testbed) -> None:
    for port in (2377, 7946):
        with listening(alone, 1, port):
            with pytest.raises(docker.errors.APIError, match=f"cannot listen on .*:{port}"):
                alone.client(1).swarm.init(advertise_addr=alone.ip(1), listen_addr="0.0.0.0:2377")
            assert swarm_info(alone, 1)["LocalNodeState"] == "inactive"
            assert not (alone.directory(1) / "state" / "node.json").exists()
    alone.client(1).swarm.init(advertise_addr=alone.ip(1), listen_addr="0.0.0.0:2377")

    with listening(alone, 2, 7946), pytest.raises(docker.errors.APIError, match=r"cannot listen on .*:7946"):
        join(alone, 2, token(alone, "Manager"))
    assert swarm_info(alone, 2)["LocalNodeState"] == "inactive"
    join(alone, 2, token(alone, "Worker"))

    # Where an init was cut short, the next start undoes it: nobody was told that there is a cluster.
    alone.kill(1)
    (alone.directory(1) / "state" / "init.unfinished").touch()
    alone.start(1)
    assert swarm_info(alone, 1)["LocalNodeState"] == "inactive"
    assert not (alone.directory(1) / "state" / "raft").exists()


@contextlib.contextmanager
def listening(testbed: Testbed, host: int, port: int) -> Iterator[None]:
    """Somebody else has the port on that host."""
    pid = testbed.init_pid(host)
    code = f"import socket,sys; s=socket.create_server(('0.0.0.0',{port})); print('up',flush=True); sys.stdin.read()"
    command = ["nsenter", "--target", str(pid), "--net", "python3", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "up\n"
        try:
            yield
        finally:
            other.communicate()
