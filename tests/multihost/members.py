"""What tests of membership ask of a host and its place in the cluster."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

from tests.multihost.testbed import Testbed
from tests.waiting import wait_until


def swarm_info(testbed: Testbed, host: int) -> dict[str, Any]:
    info: dict[str, Any] = testbed.client(host, timeout_s=25).info()["Swarm"]
    return info


def node(testbed: Testbed, host: int, *, via: int = 1) -> dict[str, Any]:
    """The node object of a host that is a member."""
    found: dict[str, Any] = testbed.client(via, timeout_s=25).nodes.get(testbed.node_id(host)).attrs
    return found


def reachability(testbed: Testbed, host: int, *, via: int = 1) -> str:
    """`ManagerStatus.Reachability`, "" for a node that is no manager."""
    return str(node(testbed, host, via=via).get("ManagerStatus", {}).get("Reachability", ""))


def set_role(testbed: Testbed, host: int, role: str) -> None:
    testbed.update_node(testbed.node_id(host), Role=role)


def token(testbed: Testbed, role: str, *, via: int = 1) -> str:
    return str(testbed.client(via).api.inspect_swarm()["JoinTokens"][role])


def join(testbed: Testbed, host: int, join_token: str, *, via: int = 1) -> None:
    testbed.client(host).swarm.join([f"{testbed.ip(via)}:2377"], join_token, advertise_addr=testbed.ip(host))


def leave(testbed: Testbed, host: int, *, force: bool = False, via: int = 1) -> None:
    """Leave, and remove the node object once the managers know it is gone."""
    node_id = testbed.node_id(host)
    testbed.client(host).api.leave_swarm(force=force)
    api = testbed.client(via, timeout_s=25).api
    wait_until(lambda: api.inspect_node(node_id)["Status"]["State"] == "down", "the node is down")
    api.remove_node(node_id)


def processes(testbed: Testbed, host: int) -> dict[str, list[int]]:
    """PIDs of the daemon's processes on a host by what they are called: swarmd (node, zygote), swarm-manager."""
    found: dict[str, list[int]] = {}
    for pid in sorted(testbed.daemon_pids(host)):
        with contextlib.suppress(OSError):
            found.setdefault(Path(f"/proc/{pid}/comm").read_text().strip(), []).append(pid)
    return found


def kill_manager(testbed: Testbed, host: int) -> int:
    """Kill the manager process of a host, nothing else; return its PID."""
    (pid,) = processes(testbed, host)["swarm-manager"]
    os.kill(pid, signal.SIGKILL)
    return pid


def manager_again(testbed: Testbed, host: int, killed: int) -> bool:
    return processes(testbed, host).get("swarm-manager", [killed]) != [killed] and bool(
        swarm_info(testbed, host)["ControlAvailable"]
    )
