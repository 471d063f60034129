"""A daemon that is killed and started again finds its containers, which never noticed (features D10)."""

from __future__ import annotations

import docker
import pytest

from tests.multihost.test_services import SLEEP
from tests.multihost.testbed import Testbed
from tests.waiting import wait_until

MANAGER, WORKER = 1, 4


@pytest.mark.parametrize("host", [WORKER, MANAGER])
def test_a_killed_daemon_finds_its_containers_again(patient: Testbed, host: int) -> None:
    client = patient.client(MANAGER)
    name = f"untouched-{host}"
    mode = docker.types.ServiceMode("global")
    service = client.services.create("busybox:latest", command=SLEEP, name=name, mode=mode)
    wait_until(lambda: len(patient.tasks(name)) == 4, "four tasks run")

    def pids() -> dict[str, int]:
        containers = patient.client(host).containers.list()
        return {c.id: patient.client(host).api.inspect_container(c.id)["State"]["Pid"] for c in containers}

    before = pids()
    assert before
    tasks = {task["ID"] for task in patient.tasks(name)}
    patient.kill_daemon(host)
    patient.start(host)

    def same() -> bool:
        nodes = patient.client(MANAGER, timeout_s=25).nodes.list()
        ready = all(node.attrs["Status"]["State"] == "ready" for node in nodes)
        return ready and {task["ID"] for task in patient.tasks(name)} == tasks

    wait_until(same, "every node is ready and the same tasks run")
    assert pids() == before
    service.remove()
    wait_until(lambda: not patient.client(MANAGER).api.tasks(), "every task is gone")
